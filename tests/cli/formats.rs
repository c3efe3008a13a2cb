//! Prompts and embeddings in every format, and options of single rows.

use crate::common::{Workplace, assert_done, assert_refused, largest, read_npy, read_npz};
use arrow_array::{Array, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use ndarray::Array2;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;

const PROMPTS: [&str; 3] = ["a red apple", "two cats", "rain, \"heavy\""];

fn write_parquet(place: &Workplace, name: &str, column: &str) {
    let prompts: Arc<dyn Array> = Arc::new(StringArray::from(PROMPTS.to_vec()));
    let batch = RecordBatch::try_from_iter([(column, prompts)]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(place.path(name)).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The same prompts in a file of each format.
fn inputs(place: &Workplace) -> Vec<&'static str> {
    let jsonl: String = PROMPTS.iter().map(|prompt| format!("{}\n", serde_json::json!({"prompt": prompt}))).collect();
    let csv = "number,prompt\r\n1,a red apple\r\n2,two cats\r\n3,\"rain, \"\"heavy\"\"\"\r\n";
    fs::write(place.path("p.txt"), PROMPTS.join("\r\n")).unwrap();
    fs::write(place.path("p.jsonl"), &jsonl).unwrap();
    fs::write(place.path("p.csv"), csv).unwrap();
    fs::write(place.path("p.tsv"), "prompt\na red apple\ntwo cats\n\"rain, \"\"heavy\"\"\"\n").unwrap();
    let mut gzip = flate2::write::GzEncoder::new(File::create(place.path("p.csv.gz")).unwrap(), Default::default());
    gzip.write_all(csv.as_bytes()).unwrap();
    gzip.finish().unwrap();
    fs::write(place.path("p.jsonl.zst"), zstd::encode_all(jsonl.as_bytes(), 0).unwrap()).unwrap();
    write_parquet(place, "p.parquet", "prompt");
    vec!["p.txt", "p.jsonl", "p.csv", "p.tsv", "p.csv.gz", "p.jsonl.zst", "p.parquet"]
}

/// The image embeddings in a file of any format.
fn read(place: &Workplace, name: &str) -> Array2<f32> {
    let bytes = || fs::read(place.path(name)).unwrap();
    let rows = |rows: Vec<Vec<f32>>| Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap();
    match name.rsplit('.').next().unwrap() {
        "npy" => read_npy(&bytes()),
        "npz" => read_npz(bytes(), "image_embeds"),
        "safetensors" => {
            let bytes = bytes();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let tensor = tensors.tensor("image_embeds").unwrap();
            let numbers = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), numbers.collect()).unwrap()
        }
        "jsonl" => rows(
            String::from_utf8(bytes())
                .unwrap()
                .lines()
                .map(|line| {
                    serde_json::from_value(serde_json::from_str::<Value>(line).unwrap()["image_embeds"].clone())
                        .unwrap()
                })
                .collect(),
        ),
        _ => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(place.path(name)).unwrap()).unwrap();
            let mut all = Vec::new();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                let lists = batch.column_by_name("image_embeds").unwrap();
                let lists = lists.as_any().downcast_ref::<FixedSizeListArray>().unwrap();
                for row in 0..lists.len() {
                    let numbers = lists.value(row);
                    all.push(numbers.as_any().downcast_ref::<Float32Array>().unwrap().values().to_vec());
                }
            }
            rows(all)
        }
    }
}

#[test]
fn every_input_goes_to_every_output() {
    let place = Workplace::new();
    let inputs = inputs(&place);
    let prompts = PROMPTS.iter().flat_map(|prompt| ["-p", prompt]);
    assert_done(place.command().args(prompts).args(["--out", "given.npy"]));
    let expected = read(&place, "given.npy");
    assert_eq!(expected.nrows(), 3);
    for (number, input) in inputs.iter().enumerate() {
        for output in ["e.npy", "e.npz", "e.safetensors", "e.jsonl", "e.parquet"] {
            let output = format!("{number}{output}");
            assert_done(place.command().args(["-f", input, "--out", &output]));
            assert_eq!(read(&place, &output), expected, "{input} to {output}");
        }
    }
}

#[test]
fn names_of_formats_and_columns_can_be_given() {
    let place = Workplace::new();
    write_parquet(&place, "p", "caption");
    let options = ["-f", "p", "--format-in", "parquet", "--prompt-column", "caption", "--out", "e", "--format", "npy"];
    assert_done(place.command().args(options));
    assert_eq!(read_npy(&fs::read(place.path("e")).unwrap()).nrows(), 3);
    fs::write(place.path("p.csv"), "caption,title\na,b\n").unwrap();
    let refused = |options: &[&str], words: &[&str]| {
        assert_refused(&place, place.command().args(options).args(["--out", "f.npy"]), 2, words);
    };
    refused(&["-f", "p.csv", "--prompt-column", "none"], &["none", "caption", "title"]);
    refused(&["-f", "p.csv"], &["--prompt-column", "caption"]);
    refused(&["-f", "p.csv", "--format-in", "xml"], &["--format-in"]);
    refused(&["-f", "p", "--prompt-column", "caption"], &["--prompt-column", "--format-in"]);
}

#[test]
fn a_row_may_have_options_of_its_own() {
    let place = Workplace::new();
    let lines = [
        r#"{"prompt": "a red apple", "seed": 40, "samples": 2}"#,
        r#"{"prompt": "two cats", "steps": 5, "guidance_scale": 2.5, "negative_prompt": "rain"}"#,
        r#"{"prompt": "rain"}"#,
    ];
    fs::write(place.path("p.jsonl"), lines.join("\n")).unwrap();
    assert_done(place.command().args(["-f", "p.jsonl", "--seed", "7", "--out", "e.npz"]));
    let npz = fs::read(place.path("e.npz")).unwrap();
    let (image, negative) = (read_npz(npz.clone(), "image_embeds"), read_npz(npz, "negative_image_embeds"));
    assert_eq!((image.nrows(), negative.nrows()), (4, 4));
    let alone = |options: &[&str], name: &str| {
        assert_done(place.command().args(options).args(["--out", "one.npz", "--overwrite"]));
        read_npz(fs::read(place.path("one.npz")).unwrap(), name).row(0).to_owned()
    };
    let same = |left: ndarray::ArrayView1<f32>, right: &ndarray::Array1<f32>| {
        let apart = left.iter().zip(right).fold(0.0_f32, |most, (left, right)| most.max((left - right).abs()));
        assert!(apart < 1e-5 * largest(&image), "{apart}");
    };
    same(image.row(0), &alone(&["-p", "a red apple", "--seed", "40"], "image_embeds"));
    same(image.row(1), &alone(&["-p", "a red apple", "--seed", "41"], "image_embeds"));
    let cats = ["-p", "two cats", "--steps", "5", "--guidance-scale", "2.5", "-n", "rain"];
    same(image.row(2), &alone(&[&cats[..], &["--seed", "9"]].concat(), "image_embeds"));
    same(image.row(3), &alone(&["-p", "rain", "--seed", "10"], "image_embeds"));
    // Its negative has the seed that counts on from the last of the four rows; alone, from that of one.
    same(negative.row(2), &alone(&[&cats[..], &["--seed", "12"]].concat(), "negative_image_embeds"));
    let black = alone(&["-p", "rain"], "negative_image_embeds");
    for row in [0, 1, 3] {
        assert_eq!(negative.row(row), black, "{row}");
    }
}

#[test]
fn numbers_can_be_float16_and_rows_of_unit_length() {
    let place = Workplace::new();
    let prompts = ["-p", "a red apple", "-p", "two cats"];
    assert_done(place.command().args(prompts).args(["--out", "e.npy"]));
    assert_done(place.command().args(prompts).args(["--out", "unit.npy", "--normalize"]));
    assert_done(place.command().args(prompts).args(["--out", "half.npy", "--out-dtype", "f16"]));
    let (exact, unit) = (read(&place, "e.npy"), read(&place, "unit.npy"));
    for (exact, unit) in exact.rows().into_iter().zip(unit.rows()) {
        let length = exact.dot(&exact).sqrt();
        assert!((unit.dot(&unit) - 1.0).abs() < 1e-5);
        assert!(exact.iter().zip(unit).all(|(exact, unit)| (exact / length - unit).abs() < 1e-6));
    }
    let half = fs::read(place.path("half.npy")).unwrap();
    assert_eq!(half.len(), 128 + exact.len() * 2);
    let numbers = half[128..].chunks_exact(2).map(|bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
    assert!(numbers.zip(&exact).all(|(half, exact)| (half - exact).abs() <= exact.abs() * 1e-3 + 1e-7));
}

#[test]
fn a_folder_of_numbered_files_holds_embeddings_and_captions() {
    let place = Workplace::new();
    inputs(&place);
    assert_done(place.command().args(["-f", "p.txt", "--out-dir", "out", "--rows-per-file", "2"]));
    assert_done(place.command().args(["-f", "p.txt", "--out", "e.npy"]));
    let files = ["img_emb/img_emb_0000.npy", "img_emb/img_emb_0001.npy"];
    let [first, second] = files.map(|name| read(&place, &format!("out/{name}")));
    assert_eq!((first.nrows(), second.nrows()), (2, 1));
    assert_eq!(ndarray::concatenate![ndarray::Axis(0), first, second], read(&place, "e.npy"));
    let metadata = File::open(place.path("out/metadata/metadata_0001.parquet")).unwrap();
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(metadata).unwrap().build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert_eq!(batch.num_rows(), 1);
    // It is not overwritten.
    let again = ["-f", "p.txt", "--out-dir", "out"];
    assert_refused(&place, place.command().args(again), 2, &["out", "--overwrite"]);
    assert_done(place.command().args(again).arg("--overwrite"));
    assert_eq!(fs::read_dir(place.path("out/img_emb")).unwrap().count(), 1);
}
