//! Numbered folders: files appear once they are full, and shards share a folder.

use super::*;
use crate::output::merge::finished;
use std::collections::BTreeMap;
use std::path::PathBuf;

const ROWS: usize = 23;

fn folder_options(path: &Path, rows_per_file: u64) -> WriteOptions {
    let total_rows = Some(ROWS as u64);
    WriteOptions { rows_per_file, total_rows, resume: true, ..options(path, OutputFormat::Folder) }
}

/// The bytes of a folder's visible files.
fn visible(path: &Path) -> Vec<(String, Vec<u8>)> {
    contents(path).into_iter().filter(|(name, _)| !name.starts_with('.')).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in contents(from) {
        let file = to.join(name.trim_end_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

/// Resumes what is at `path`, and returns the number of rows that counted.
fn resume(run: &Run, options: &WriteOptions, batch: usize) -> u64 {
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    let rows = writer.rows_done();
    run.write(&mut writer, batch).unwrap();
    writer.finish().unwrap();
    rows
}

#[test]
fn files_appear_once_they_are_full() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let path = folder.path().join("e");
    let mut writer = EmbeddingWriter::open(folder_options(&path, 4)).unwrap();
    for (rows, files) in [(3, 0), (6, 1), (9, 2), (23, 5)] {
        run.write_until(&mut writer, rows, 3).unwrap();
        let there = fs::read_dir(path.join("img_emb")).map_or(0, Iterator::count);
        assert_eq!(there, files, "after {rows} rows");
        // Nothing is stored twice: of the embeddings the hidden folder holds the current file's alone.
        let hidden = names(&path.join(".prior-embed"));
        for kind in ["img_emb", "rows"] {
            assert_eq!(hidden.iter().filter(|name| name.starts_with(kind)).count(), 1, "{hidden:?}");
        }
    }
    writer.finish().unwrap();
    assert_eq!(names(&path), ["img_emb", "metadata", "negative_img_emb"]);
    assert_eq!(names(&path.join("img_emb")).len(), 6);
}

#[test]
fn a_run_that_is_killed_after_any_batch_resumes_to_the_same_bytes() {
    let run = Run::new(ROWS, 3);
    for rows_per_file in [1, 4, 7, 23, 100] {
        for batch in [1, 3, 10] {
            let folder = TempDir::new().unwrap();
            let at = |name: &str| folder.path().join(name);
            resume(&run, &folder_options(&at("whole"), rows_per_file), ROWS);
            let whole = contents(&at("whole"));
            let mut writer = EmbeddingWriter::open(folder_options(&at("e"), rows_per_file)).unwrap();
            for rows in (batch..=ROWS).step_by(batch) {
                run.write_until(&mut writer, rows, batch).unwrap();
                let state = at(&format!("{rows}"));
                copy(&at("e"), &state);
                assert_eq!(resume(&run, &folder_options(&state, rows_per_file), batch), rows as u64);
                assert!(contents(&state) == whole, "{rows_per_file} rows a file, after {rows}");
            }
        }
    }
}

/// A run with files of 4 rows that stopped after 15 in batches of 5.
struct Stopped {
    folder: TempDir,
    run: Run,
    options: WriteOptions,
    whole: Vec<(String, Vec<u8>)>,
}

impl Stopped {
    fn new() -> Self {
        let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
        resume(&run, &folder_options(&folder.path().join("whole"), 4), ROWS);
        let options = folder_options(&folder.path().join("e"), 4);
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write_until(&mut writer, 15, 5).unwrap();
        drop(writer);
        let whole = contents(&folder.path().join("whole"));
        Self { folder, run, options, whole }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("e").join(name)
    }
}

#[test]
fn a_run_that_is_killed_while_a_file_is_published_resumes() {
    for moved in [["img_emb"].as_slice(), &["img_emb", "negative_img_emb"]] {
        let stopped = Stopped::new();
        for name in moved {
            fs::rename(
                stopped.at(&format!("{name}/{name}_0002.npy")),
                stopped.at(&format!(".prior-embed/{name}_2.npy")),
            )
            .unwrap();
        }
        assert_eq!(resume(&stopped.run, &stopped.options, 5), 15);
        assert!(contents(&stopped.at("")) == stopped.whole);
    }
}

#[test]
fn a_run_that_is_killed_within_a_batch_resumes_at_its_start() {
    // The first file is whole, and the batch that crosses its end is not in the journal.
    let stopped = Stopped::new();
    let journal = stopped.at(".prior-embed/journal.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    assert!(lines[1].contains("\"file\"") && lines[2].contains("\"rows\":5"), "{text}");
    fs::write(&journal, lines[..2].concat()).unwrap();
    for kind in ["img_emb", "negative_img_emb", "metadata"] {
        let folder = stopped.at(kind);
        names(&folder).iter().skip(1).for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    }
    assert_eq!(resume(&stopped.run, &stopped.options, 5), 0);
    assert!(contents(&stopped.at("")) == stopped.whole);
}

#[test]
fn a_damaged_or_missing_file_is_computed_again() {
    // The batch that a file starts in is computed with it.
    for (file, rows) in [("0000.npy", 0), ("0001.npy", 0), ("0002.npy", 5)] {
        for remove in [false, true] {
            let stopped = Stopped::new();
            let path = stopped.at(&format!("img_emb/img_emb_{file}"));
            if remove {
                fs::remove_file(&path).unwrap();
            } else {
                let mut bytes = fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&path, bytes).unwrap();
            }
            assert_eq!(resume(&stopped.run, &stopped.options, 5), rows, "{file}");
            assert!(contents(&stopped.at("")) == stopped.whole, "{file}");
        }
    }
}

#[test]
fn a_second_output_beside_a_folder_holds_all_rows() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let second = folder.path().join("n.parquet");
    let mut options = folder_options(&folder.path().join("e"), 4);
    options.outputs[0].arrays = Arrays::IMAGE;
    options.outputs.push(Output { path: second.clone(), format: OutputFormat::Parquet, arrays: Arrays::NEGATIVE });
    for end in [5, 10, 15] {
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write_until(&mut writer, end, 5).unwrap();
    }
    // What is lost of the folder is computed again, with what belongs to it in the other.
    fs::remove_file(folder.path().join("e/metadata/metadata_0001.parquet")).unwrap();
    assert_eq!(resume(&run, &options, 5), 0);
    let [batch] = parquet_batches(&second).try_into().unwrap();
    assert_eq!(batch.num_rows(), ROWS);
    let list = batch["negative_image_embeds"].as_fixed_size_list().value(ROWS - 1);
    assert_eq!(list.as_primitive::<Float32Type>().values(), run.negative.row(ROWS - 1).as_slice().unwrap());
    assert_eq!(names(&folder.path().join("e/img_emb")).len(), 6);
}

#[test]
fn what_is_replaced_stays_until_the_new_folder_is_whole() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let path = folder.path().join("e");
    let old = WriteOptions { rows_per_file: 3, resume: false, ..folder_options(&path, 3) };
    write_whole(&run, old, 5);
    fs::write(path.join("notes.txt"), "precious").unwrap();
    let before = visible(&path);
    let options = WriteOptions { overwrite: true, ..folder_options(&path, 9) };
    let error = error_of(EmbeddingWriter::open(WriteOptions { overwrite: false, ..options.clone() }), 2);
    assert!(error.contains("is there already"), "{error}");
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    run.write_until(&mut writer, 20, 5).unwrap();
    assert!(visible(&path) == before);
    drop(writer);
    assert_eq!(resume(&run, &options, 5), 20);
    assert_eq!(names(&path.join("img_emb")), ["img_emb_0000.npy", "img_emb_0001.npy", "img_emb_0002.npy"]);
    assert_eq!(names(&path), ["img_emb", "metadata", "negative_img_emb", "notes.txt"]);
}

#[test]
fn a_run_that_is_given_up_or_started_again_takes_its_files_along() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let path = folder.path().join("e");
    let mut writer = EmbeddingWriter::open(folder_options(&path, 4)).unwrap();
    run.write_until(&mut writer, 10, 5).unwrap();
    assert!(path.join("img_emb/img_emb_0001.npy").exists());
    writer.discard().unwrap();
    assert!(names(folder.path()).is_empty());
    let stopped = Stopped::new();
    let again = WriteOptions { resume: false, ..stopped.options.clone() };
    let error = error_of(EmbeddingWriter::open(again.clone()), 2);
    assert!(error.contains("stopped after 15 rows; --resume continues, --overwrite starts again"), "{error}");
    let writer = EmbeddingWriter::open(WriteOptions { overwrite: true, ..again }).unwrap();
    assert_eq!((writer.rows_done(), visible(&stopped.at(""))), (0, vec![]));
}

fn shard_options(path: &Path, index: u64, count: u64) -> WriteOptions {
    WriteOptions { shard: Some(Shard { index, count }), ..folder_options(path, 4) }
}

#[test]
fn shards_share_a_folder_without_a_merge() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let path = folder.path().join("e");
    let rows = |index: usize| (0..ROWS).filter(|row| row / 2 % 3 == index - 1).collect::<Vec<_>>();
    // Side by side, and stopped halfway.
    let mut writers: Vec<_> =
        (1..=3).map(|index| EmbeddingWriter::open(shard_options(&path, index, 3)).unwrap()).collect();
    for (writer, index) in writers.iter_mut().zip(1..) {
        run.select(&rows(index)).write_until(writer, 4, 2).unwrap();
    }
    drop(writers);
    for index in [2, 1, 3] {
        assert_eq!(resume(&run.select(&rows(index)), &shard_options(&path, index as u64, 3), 2), 4);
        assert_eq!(finished(&shard_options(&path, index as u64, 3)).unwrap(), Some(rows(index).len() as u64));
    }
    let records = ["shard-1-of-3.json", "shard-2-of-3.json", "shard-3-of-3.json"];
    assert_eq!(names(&path), [&["img_emb", "metadata", "negative_img_emb"], &records[..]].concat());
    // Every row once, with its own metadata.
    let mut found = BTreeMap::new();
    for name in names(&path.join("img_emb")) {
        let npy = Array2::<f32>::read_npy(File::open(path.join("img_emb").join(&name)).unwrap()).unwrap();
        let metadata = name.replace("img_emb", "metadata").replace("npy", "parquet");
        let [batch] = parquet_batches(&path.join("metadata").join(metadata)).try_into().unwrap();
        let rows = batch["row"].as_primitive::<UInt64Type>().values().to_vec();
        assert_eq!(rows.len(), npy.nrows());
        rows.into_iter()
            .zip(npy.rows())
            .for_each(|(row, values)| assert!(found.insert(row, values.to_vec()).is_none()));
    }
    let expected = run.image.rows().into_iter().zip(0..).map(|(values, row)| (row, values.to_vec()));
    assert_eq!(found, expected.collect());
    // A finished shard is intact, or not.
    let file = path.join("img_emb/img_emb_0001.npy");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let message = error_of(finished(&shard_options(&path, 2, 3)), 2);
    assert!(message.contains("img_emb_0001.npy is damaged"), "{message}");
    assert!(finished(&shard_options(&path, 1, 3)).is_ok());
}

#[test]
fn shards_of_different_runs_do_not_share_a_folder() {
    let (folder, run) = (TempDir::new().unwrap(), Run::new(ROWS, 3));
    let path = folder.path().join("e");
    let other = |options: WriteOptions| {
        let mut options = options;
        options.fingerprint = Default::default();
        options.fingerprint.push("--steps", 30);
        options
    };
    for is_finished in [false, true] {
        let first = shard_options(&path, 1, 2);
        let mut writer = EmbeddingWriter::open(WriteOptions { overwrite: true, ..first }).unwrap();
        run.select(&[0, 1]).write(&mut writer, 1).unwrap();
        let _writer = if is_finished { writer.finish().map(|()| None).unwrap() } else { Some(writer) };
        let message = error_of(EmbeddingWriter::open(other(shard_options(&path, 2, 2))), 2);
        assert!(message.contains("shard 1/2 of another run: --steps was 25, is 30"), "{message}");
    }
    for options in [shard_options(&path, 1, 3), folder_options(&path, 4)] {
        assert!(error_of(EmbeddingWriter::open(options), 2).contains("is there already"));
    }
    // A shard without rows leaves its record alone.
    EmbeddingWriter::open(WriteOptions { dim: Some(3), ..shard_options(&path, 2, 2) }).unwrap().finish().unwrap();
    assert_eq!(names(&path.join("img_emb")), ["img_emb_0000.npy"]);
    assert!(path.join("shard-2-of-2.json").exists());
}
