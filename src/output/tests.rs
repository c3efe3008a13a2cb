//! Every format is read back by a library that did not write it, and a run that is stopped anywhere ends in the same
//! bytes.

mod folder;
mod foreign;
mod resume;

use super::shard::Shard;
use super::*;
use crate::cli::errors::exit_code;
use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt64Type};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use half::f16;
use ndarray::{Array2, Axis, s};
use ndarray_npy::{NpzReader, ReadNpyExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use tempfile::TempDir;

/// All of a run's rows.
pub(crate) struct Run {
    pub(crate) rows: Vec<OutputRow>,
    pub(crate) image: Array2<f32>,
    pub(crate) negative: Array2<f32>,
    pub(crate) text: Array2<f32>,
}

impl Run {
    pub(crate) fn new(rows: usize, dim: usize) -> Self {
        let row = |row: usize| OutputRow {
            row: row as u64,
            id: (!row.is_multiple_of(3)).then(|| format!("id-{row}")),
            prompt: format!("prompt \"{row}\"\nä\u{0}").into(),
            seed: u64::MAX - row as u64,
        };
        let value = |(row, column): (usize, usize)| ((row * 31 + column * 17) as f32).sin() / 3.0;
        Self {
            rows: (0..rows).map(row).collect(),
            image: Array2::from_shape_fn((rows, dim), value),
            negative: Array2::from_shape_fn((rows, dim), |(row, column)| -value((column, row + 1))),
            text: Array2::from_shape_fn((rows, dim), |(row, column)| value((row, column + 7))),
        }
    }

    /// Some of its rows.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self {
            rows: rows.iter().map(|row| self.rows[*row].clone()).collect(),
            image: self.image.select(Axis(0), rows),
            negative: self.negative.select(Axis(0), rows),
            text: self.text.select(Axis(0), rows),
        }
    }

    /// Writes the rows that are missing, `batch` at a time.
    pub(crate) fn write(&self, writer: &mut EmbeddingWriter, batch: usize) -> Result<()> {
        let done = writer.rows_done() as usize;
        self.write_until(writer, self.rows.len().max(done), batch)
    }

    fn write_until(&self, writer: &mut EmbeddingWriter, end: usize, batch: usize) -> Result<()> {
        let mut start = writer.rows_done() as usize;
        while start < end {
            let stop = end.min(start + batch);
            assert_eq!(writer.write(&self.batch(start, stop))?, Flow::Continue);
            start = stop;
        }
        Ok(())
    }

    fn batch(&self, start: usize, stop: usize) -> Batch<'_> {
        Batch {
            rows: &self.rows[start..stop],
            image: Some(self.image.slice(s![start..stop, ..])),
            negative: Some(self.negative.slice(s![start..stop, ..])),
            text: Some(self.text.slice(s![start..stop, ..])),
            scores: Some(self.text.slice(s![start..stop, ..1])),
        }
    }
}

pub(crate) fn options(path: &Path, format: OutputFormat) -> WriteOptions {
    let arrays = if format.holds_several() { Arrays::BOTH } else { Arrays::IMAGE };
    let mut options = WriteOptions::new(vec![Output { path: path.to_path_buf(), format, arrays }]);
    options.rows_per_file = 4;
    options.fingerprint.push("--steps", 25);
    options
}

/// The formats whose shards can be merged.
pub(crate) const FILES: [OutputFormat; 7] = [
    OutputFormat::Npy,
    OutputFormat::Npz,
    OutputFormat::Safetensors,
    OutputFormat::JsonLines,
    OutputFormat::Base64Lines,
    OutputFormat::Parquet,
    OutputFormat::IpAdapter,
];

/// The bytes of a file or, with their names, of all files in a folder.
pub(crate) fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        all.extend(contents(&entry.path()).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
    }
    all.sort();
    all
}

fn write_whole(run: &Run, options: WriteOptions, batch: usize) {
    let mut writer = EmbeddingWriter::open(options).unwrap();
    run.write(&mut writer, batch).unwrap();
    writer.finish().unwrap();
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn error_of<T: std::fmt::Debug>(result: Result<T>, code: u8) -> String {
    let error = result.unwrap_err();
    assert_eq!(exit_code(&error), code, "{error:#}");
    error.to_string()
}

fn parquet_batches(path: &Path) -> Vec<arrow_array::RecordBatch> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    builder.build().unwrap().map(Result::unwrap).collect()
}

#[test]
fn an_ip_adapters_file_is_an_archive_of_torch() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("e.ipadpt");
    let mut run = Run::new(5, 3);
    run.image = Array2::from_shape_fn((5, 3), |(row, column)| row as f32 - 0.25 * column as f32);
    write_whole(&run, options(&path, OutputFormat::IpAdapter), 2);
    let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
    let mut entry = |name: &str| {
        let mut entry = archive.by_name(name).unwrap();
        assert!(
            entry.compression() == zip::CompressionMethod::Stored && entry.data_start().unwrap().is_multiple_of(64),
            "{name}"
        );
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!([entry("archive/byteorder"), entry("archive/version")], [b"little".to_vec(), b"3\n".to_vec()]);
    assert!(entry("archive/data.pkl").starts_with(b"\x80\x02](ctorch._utils\n_rebuild_tensor_v2\n"));
    let numbers: Vec<u8> = run.image.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(entry("archive/data/0"), [vec![0; numbers.len()], numbers].concat());
    // Down to the last byte: no time, no order by chance.
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes.len(), crc32fast::hash(&bytes)), (846, 1_797_423_977));
}

#[test]
fn npy_has_numpys_header() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("e.npy");
    let run = Run::new(10, 3);
    write_whole(&run, options(&path, OutputFormat::Npy), 4);
    let bytes = fs::read(&path).unwrap();
    // Spelled out from numpy's documentation.
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    let header = std::str::from_utf8(&bytes[10..128]).unwrap();
    assert_eq!(header.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (10, 3)}");
    assert!(header.ends_with('\n'));
    assert_eq!(bytes.len(), 128 + 10 * 3 * 4);
    assert_eq!(Array2::<f32>::read_npy(bytes.as_slice()).unwrap(), run.image);
    assert_eq!(names(folder.path()), ["e.npy"]);
}

#[test]
fn npz_and_safetensors_hold_both_arrays_by_name() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(10, 3);
    let path = folder.path().join("e.npz");
    write_whole(&run, options(&path, OutputFormat::Npz), 4);
    let mut npz = NpzReader::new(File::open(&path).unwrap()).unwrap();
    assert_eq!(npz.names().unwrap(), ["image_embeds", "negative_image_embeds"]);
    assert_eq!(npz.by_name::<ndarray::OwnedRepr<f32>, ndarray::Ix2>("image_embeds").unwrap(), run.image);
    assert_eq!(npz.by_name::<ndarray::OwnedRepr<f32>, ndarray::Ix2>("negative_image_embeds").unwrap(), run.negative);
    let path = folder.path().join("e.safetensors");
    write_whole(&run, options(&path, OutputFormat::Safetensors), 4);
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, values) in [("image_embeds", &run.image), ("negative_image_embeds", &run.negative)] {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, [10, 3].as_slice()));
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(tensor.data(), expected);
    }
}

#[test]
fn jsonl_has_an_object_a_row() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("e.jsonl");
    let run = Run::new(5, 3);
    write_whole(&run, options(&path, OutputFormat::JsonLines), 4);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 5);
    for (row, line) in text.lines().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let known: OutputRow = serde_json::from_value(line.clone()).unwrap();
        assert_eq!(known, run.rows[row]);
        let image: Vec<f32> = serde_json::from_value(line["image_embeds"].clone()).unwrap();
        let negative: Vec<f32> = serde_json::from_value(line["negative_image_embeds"].clone()).unwrap();
        assert_eq!((image, negative), (run.image.row(row).to_vec(), run.negative.row(row).to_vec()));
    }
}

#[test]
fn jsonl_base64_has_the_bytes_of_each_row() {
    let folder = TempDir::new().unwrap();
    let mut run = Run::new(5, 3);
    // JSON's own numbers hold neither.
    (run.image[[1, 0]], run.image[[1, 2]]) = (f32::NAN, f32::NEG_INFINITY);
    let path = folder.path().join("e.jsonl-base64");
    write_whole(&run, options(&path, OutputFormat::of_path(&path).unwrap()), 4);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 5);
    for (row, line) in text.lines().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::from_value::<OutputRow>(line.clone()).unwrap(), run.rows[row]);
        for (name, array) in [("image_embeds", &run.image), ("negative_image_embeds", &run.negative)] {
            let bytes: Vec<u8> = array.row(row).iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(BASE64_STANDARD.decode(line[name].as_str().unwrap()).unwrap(), bytes);
        }
    }
}

#[test]
fn parquet_has_one_row_per_embedding_in_both_types() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(5, 3);
    for dtype in [OutputDtype::F32, OutputDtype::F16] {
        let path = folder.path().join(format!("{}.parquet", dtype.name()));
        let mut options = options(&path, OutputFormat::Parquet);
        options.out_dtype = dtype;
        write_whole(&run, options, 2);
        let [batch] = parquet_batches(&path).try_into().unwrap();
        let columns: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(columns, ["row", "id", "prompt", "seed", "image_embeds", "negative_image_embeds"]);
        let ids = batch["id"].as_string::<i32>();
        for (place, row) in run.rows.iter().enumerate() {
            assert_eq!(batch["row"].as_primitive::<UInt64Type>().value(place), row.row);
            assert_eq!(batch["seed"].as_primitive::<UInt64Type>().value(place), row.seed);
            assert_eq!(batch["prompt"].as_string::<i32>().value(place), &*row.prompt);
            assert_eq!(ids.iter().nth(place).unwrap(), row.id.as_deref());
            let list = batch["negative_image_embeds"].as_fixed_size_list().value(place);
            let expected = run.negative.row(place);
            match dtype {
                OutputDtype::F32 => {
                    assert_eq!(list.as_primitive::<Float32Type>().values(), expected.as_slice().unwrap())
                }
                OutputDtype::F16 => {
                    let expected: Vec<f16> = expected.iter().map(|value| f16::from_f32(*value)).collect();
                    assert_eq!(list.as_primitive::<Float16Type>().values(), expected.as_slice());
                }
            }
        }
    }
}

#[test]
fn row_groups_depend_on_the_rows_alone() {
    let folder = TempDir::new().unwrap();
    let mut run = Run::new(206, 16_384);
    // Numbers alone give groups of 128 (8 MiB of 64 KiB rows, of one array); then long prompts.
    run.rows[200..].iter_mut().for_each(|row| row.prompt = "long".repeat(1 << 20).into());
    let path = folder.path().join("e.parquet");
    let mut options = options(&path, OutputFormat::Parquet);
    options.outputs[0].arrays = Arrays::IMAGE;
    write_whole(&run, options, 100);
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let groups: Vec<i64> = builder.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    // The short prompts of 128..200 take a few bytes, so that one long prompt fits beside them; two do not fit
    // together.
    assert_eq!(&groups[..4], [128, 73, 1, 1]);
    assert_eq!(groups.iter().sum::<i64>(), 206);
}

#[test]
fn a_folder_is_numbered_files_of_embeddings_and_captions() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("embeddings");
    let run = Run::new(10, 3);
    let mut options = options(&path, OutputFormat::Folder);
    options.outputs[0].arrays = Arrays::IMAGE;
    write_whole(&run, options, 3);
    assert_eq!(names(&path), ["img_emb", "metadata"]);
    assert_eq!(names(&path.join("img_emb")), ["img_emb_0000.npy", "img_emb_0001.npy", "img_emb_0002.npy"]);
    for (file, rows) in [(0, 0..4), (1, 4..8), (2, 8..10)] {
        let npy = File::open(path.join(format!("img_emb/img_emb_000{file}.npy"))).unwrap();
        assert_eq!(Array2::<f32>::read_npy(npy).unwrap(), run.image.slice(s![rows.clone(), ..]));
        let [batch] = parquet_batches(&path.join(format!("metadata/metadata_000{file}.parquet"))).try_into().unwrap();
        let captions: Vec<_> = batch["caption"].as_string::<i32>().iter().map(Option::unwrap).collect();
        let expected: Vec<_> = run.rows[rows].iter().map(|row| &*row.prompt).collect();
        assert_eq!(captions, expected);
    }
}

#[test]
fn an_output_without_rows_has_a_dimension() {
    let folder = TempDir::new().unwrap();
    for format in OutputFormat::of_embeddings() {
        let path = folder.path().join(format.name());
        let mut options = options(&path, format);
        assert_eq!(exit_code(&EmbeddingWriter::open(options.clone()).unwrap().finish().unwrap_err()), 2);
        assert!(names(folder.path()).iter().all(|name| !name.starts_with(&format!(".{}", format.name()))));
        options.dim = Some(3);
        EmbeddingWriter::open(options).unwrap().finish().unwrap();
        assert!(path.exists());
    }
    let npy = Array2::<f32>::read_npy(File::open(folder.path().join("npy")).unwrap()).unwrap();
    assert_eq!(npy.dim(), (0, 3));
}

#[test]
fn a_second_output_is_written_from_the_same_rows() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let run = Run::new(10, 3);
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    let path = other.path().join("n.parquet");
    options.outputs.push(Output { path: path.clone(), format: OutputFormat::Parquet, arrays: Arrays::NEGATIVE });
    write_whole(&run, options.clone(), 4);
    let [batch] = parquet_batches(&path).try_into().unwrap();
    let list = batch["negative_image_embeds"].as_fixed_size_list().value(9);
    assert_eq!(list.as_primitive::<Float32Type>().values(), run.negative.row(9).as_slice().unwrap());
    let npy = Array2::<f32>::read_npy(File::open(folder.path().join("e.npy")).unwrap()).unwrap();
    assert_eq!(npy, run.image);
    assert_eq!((names(folder.path()).len(), names(other.path()).len()), (1, 1));
    options.outputs[1].path = folder.path().join("../").join(folder.path().file_name().unwrap()).join("e.npy");
    options.overwrite = true;
    assert!(error_of(EmbeddingWriter::open(options), 2).contains("named twice"));
}

#[test]
fn unwritable_outputs_are_refused_before_the_first_row() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("there.npy"), "old").unwrap();
    let refused = |name: &str, format, words: &str| {
        let message = error_of(EmbeddingWriter::open(options(&folder.path().join(name), format)), 2);
        assert!(message.contains(words), "{message}");
    };
    refused("there.npy", OutputFormat::Npy, "is there already; give another name");
    refused("none/e.npy", OutputFormat::Npy, "there is no folder");
    refused("", OutputFormat::Npy, "is a folder");
    refused("there.npy", OutputFormat::Folder, "is a file");
    let mut both = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    both.outputs[0].arrays = Arrays::BOTH;
    assert!(error_of(EmbeddingWriter::open(both), 2).contains("--negative-out"));
    assert_eq!(names(folder.path()), ["there.npy"]);
    let mut options = options(&folder.path().join("there.npy"), OutputFormat::Npy);
    options.overwrite = true;
    write_whole(&Run::new(2, 2), options, 2);
    assert!(fs::read(folder.path().join("there.npy")).unwrap().starts_with(b"\x93NUMPY"));
}

#[test]
fn a_number_beyond_float16_costs_no_other_row() {
    let folder = TempDir::new().unwrap();
    let mut run = Run::new(6, 3);
    run.image[[4, 1]] = 1e6;
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    options.out_dtype = OutputDtype::F16;
    let mut writer = EmbeddingWriter::open(options).unwrap();
    let message = error_of(run.write(&mut writer, 2), 1);
    assert!(message.contains("row 4 holds 1000000"), "{message}");
    assert_eq!(writer.rows_done(), 4);
}

#[test]
fn a_shards_record_lists_its_rows() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("e.npy");
    let mut options = options(&path, OutputFormat::Npy);
    options.shard = Some(Shard { index: 2, count: 3 });
    options.resume = true;
    let run = Run::new(10, 3).select(&[1, 4, 7]);
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    run.write_until(&mut writer, 2, 1).unwrap();
    drop(writer);
    let mut writer = EmbeddingWriter::open(options).unwrap();
    run.write(&mut writer, 1).unwrap();
    writer.set_total_rows(10);
    writer.finish().unwrap();
    let record = fs::read_to_string(folder.path().join("e.npy.shard.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["rows"], serde_json::json!([[1, 1, 3, 3]]));
    assert_eq!((&record["index"], &record["count"], &record["total_rows"]), (&2.into(), &3.into(), &10.into()));
}
