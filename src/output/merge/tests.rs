//! Merged shards are the whole, byte for byte; anything else is refused.

use super::*;
use crate::cli::errors::exit_code;
use crate::output::shard::Shard;
use crate::output::tests::{FILES, Run, contents, options};
use parquet::file::metadata::{ColumnChunkMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter};
use std::fs;
use tempfile::TempDir;

const ROWS: usize = 23;

/// Which rows a shard takes.
type Share = fn(row: usize, index: usize, count: usize) -> bool;

const STRIDED: Share = |row, index, count| row % count == index;
/// Two rows a prompt, and prompts in turns.
const PAIRS: Share = |row, index, count| row / 2 % count == index;
const BLOCKS: Share = |row, index, count| row * count / ROWS == index;

fn merge_options(format: OutputFormat) -> MergeOptions {
    MergeOptions { format, rows_per_file: 4, overwrite: false, provenance: None }
}

/// Writes a whole run and its shards.
struct Shards {
    folder: TempDir,
    format: OutputFormat,
    whole: PathBuf,
    parts: Vec<PathBuf>,
}

impl Shards {
    fn new(format: OutputFormat, count: usize, share: Share) -> Self {
        let folder = TempDir::new().unwrap();
        let run = Run::new(ROWS, 5);
        let whole = folder.path().join(format!("whole.{}", format.name()));
        write(&run, options(&whole, format));
        let mut shards = Self { folder, format, whole, parts: Vec::new() };
        for index in 0..count {
            let rows: Vec<usize> = (0..ROWS).filter(|row| share(*row, index, count)).collect();
            let path = shards.path(&format!("part{index}"));
            write(&run.select(&rows), shards.options(&path, index, count));
            shards.parts.push(path);
        }
        shards
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.{}", self.format.name()))
    }

    fn options(&self, path: &Path, index: usize, count: usize) -> WriteOptions {
        let mut options = options(path, self.format);
        options.shard = Some(Shard { index: index as u64 + 1, count: count as u64 });
        options.total_rows = Some(ROWS as u64);
        options.dim = Some(5);
        options
    }

    fn merge(&self, parts: &[PathBuf], out: &str) -> Result<PathBuf> {
        let out = self.path(out);
        assert_eq!(merge(parts, &out, &merge_options(self.format))?, Some(ROWS as u64));
        Ok(out)
    }

    /// Asserts that a merge is refused in words, and leaves nothing.
    fn assert_refused(&self, parts: &[PathBuf], words: &str) {
        let error = self.merge(parts, "refused").unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error:#}");
        assert!(error.to_string().contains(words), "{words:?} is not in: {error}");
        let left = fs::read_dir(self.folder.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(left.iter().all(|name| !name.contains("refused")), "{left:?}");
    }
}

fn write(run: &Run, options: WriteOptions) {
    let mut writer = EmbeddingWriter::open(options).unwrap();
    run.write(&mut writer, 3).unwrap();
    writer.finish().unwrap();
}

#[test]
fn shards_in_any_order_are_the_whole() {
    for format in FILES {
        for (share, count) in [(STRIDED, 3), (PAIRS, 2), (BLOCKS, 4), (STRIDED, 1)] {
            let shards = Shards::new(format, count, share);
            let mut parts = shards.parts.clone();
            parts.rotate_left(count / 2);
            let out = shards.merge(&parts, "merged").unwrap();
            assert!(contents(&out) == contents(&shards.whole), "{format:?} {count}");
        }
    }
}

#[test]
fn shards_without_rows_are_shards() {
    let shards = Shards::new(OutputFormat::Npy, ROWS + 2, STRIDED);
    let out = shards.merge(&shards.parts, "merged").unwrap();
    assert!(contents(&out) == contents(&shards.whole));
}

#[test]
fn shards_can_be_merged_into_another_format() {
    let shards = Shards::new(OutputFormat::Parquet, 3, STRIDED);
    let lines = Shards::new(OutputFormat::JsonLines, 3, BLOCKS);
    let out = shards.folder.path().join("merged.jsonl");
    let options = merge_options(OutputFormat::JsonLines);
    merge(&shards.parts, &out, &options).unwrap();
    assert!(contents(&out) == contents(&lines.whole));
    let arrays = Shards::new(OutputFormat::Safetensors, 3, STRIDED);
    let error = merge(&arrays.parts, &arrays.folder.path().join("merged.jsonl"), &options).unwrap_err();
    assert!(error.to_string().contains("holds no prompts, which jsonl needs"), "{error}");
}

#[test]
fn a_missing_repeated_or_foreign_part_is_named() {
    for format in FILES {
        let shards = Shards::new(format, 3, STRIDED);
        let [first, second, third] = shards.parts.clone().try_into().unwrap();
        shards.assert_refused(&[], "no parts");
        shards.assert_refused(&[third.clone(), first.clone()], "2 of 3 shards are there; shard 2/3 is missing");
        shards.assert_refused(&[first.clone(), second.clone(), first.clone()], "are both shard 1/3");
        shards.assert_refused(&[first.clone(), second.clone(), shards.path("nowhere")], "nowhere");
        shards.assert_refused(&[first.clone(), second.clone(), shards.whole.clone()], "--shard");
        let strange = shards.path("strange");
        let mut options = shards.options(&strange, 2, 3);
        options.fingerprint = Default::default();
        options.fingerprint.push("--steps", 30);
        write(&Run::new(ROWS, 5).select(&[2, 5]), options);
        shards.assert_refused(&[first, second, strange], "--steps was 25, is 30");
    }
}

#[test]
fn repeated_and_missing_rows_are_named() {
    let shards = Shards::new(OutputFormat::Npy, 2, STRIDED);
    let part = |name: &str, rows: &[usize]| {
        let path = shards.path(name);
        write(&Run::new(ROWS, 5).select(rows), shards.options(&path, 1, 2));
        path
    };
    let first = shards.parts[0].clone();
    let odd: Vec<usize> = (1..ROWS).step_by(2).collect();
    shards.assert_refused(&[first.clone(), part("short", &odd[..10])], "row 21 of 23 is in none of the parts");
    shards.assert_refused(&[first.clone(), part("twice", &[[1, 2].as_slice(), &odd[1..]].concat())], "row 2 is in");
    shards.assert_refused(&[first, part("more", &[odd.as_slice(), &[22]].concat())], "row 22");
}

#[test]
fn a_damaged_part_is_named_and_nothing_is_written() {
    for format in FILES {
        let shards = Shards::new(format, 2, STRIDED);
        let whole = fs::read(&shards.parts[1]).unwrap();
        let step = (whole.len() / 25).max(1);
        for cut in (0..whole.len()).step_by(step) {
            fs::write(&shards.parts[1], &whole[..cut]).unwrap();
            shards.assert_refused(&shards.parts, "part1");
        }
        fs::write(&shards.parts[1], [whole.as_slice(), b"{more}\n"].concat()).unwrap();
        if !matches!(format, OutputFormat::Npz | OutputFormat::Parquet | OutputFormat::IpAdapter) {
            shards.assert_refused(&shards.parts, "part1");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_system_error_is_not_called_damage() {
    use std::os::unix::fs::symlink;
    let shards = Shards::new(OutputFormat::Npz, 2, STRIDED);
    let file = &shards.parts[1];
    fs::remove_file(file).unwrap();
    symlink(file, file).unwrap();
    let error = shards.merge(&shards.parts, "refused").unwrap_err();
    let line = crate::cli::errors::one_line(&error, false);
    assert!(line.starts_with("cannot read ") && line.contains("part1.npz\" ("), "{line}");
    assert_eq!(exit_code(&error), 2);
}

#[test]
fn bytes_changed_anywhere_never_panic_nor_reach_the_whole() {
    for format in FILES {
        let shards = Shards::new(format, 2, STRIDED);
        let whole = fs::read(&shards.parts[1]).unwrap();
        for place in (0..whole.len()).step_by((whole.len() / 60).max(1)) {
            let mut changed = whole.clone();
            changed[place] ^= 0x55;
            fs::write(&shards.parts[1], changed).unwrap();
            if let Ok(out) = shards.merge(&shards.parts, "changed") {
                assert!(contents(&out) == contents(&shards.whole), "{format:?}: byte {place}");
                fs::remove_file(out).unwrap();
            }
        }
    }
}

/// Changes where a Parquet file says that its columns are.
fn damage_columns(path: &std::path::Path, change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder) {
    let bytes = fs::read(path).unwrap();
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&fs::File::open(path).unwrap()).unwrap();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let groups = metadata.row_groups().iter().map(|group| {
        let columns = group.columns().iter().map(|column| change(column.clone().into_builder()).build().unwrap());
        let columns = columns.collect();
        group.clone().into_builder().set_column_metadata(columns).build().unwrap()
    });
    let groups = groups.collect();
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    let mut damaged = bytes[..bytes.len() - 8 - footer].to_vec();
    ParquetMetaDataWriter::new(&mut damaged, &metadata).finish().unwrap();
    fs::write(path, damaged).unwrap();
}

#[test]
fn damaged_column_metadata_is_an_error_and_no_panic() {
    let changes: [fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder; 7] = [
        |column| column.set_data_page_offset(-5),
        |column| column.set_data_page_offset(i64::MIN),
        |column| column.set_data_page_offset(1 << 40),
        |column| column.set_dictionary_page_offset(Some(-1)),
        |column| column.set_total_compressed_size(-1),
        |column| column.set_total_compressed_size(i64::MAX / 16),
        |column| column.set_total_uncompressed_size(1 << 40),
    ];
    let shards = Shards::new(OutputFormat::Parquet, 2, STRIDED);
    let file = &shards.parts[1];
    let whole = fs::read(file).unwrap();
    for change in changes {
        fs::write(file, &whole).unwrap();
        damage_columns(file, change);
        shards.assert_refused(&shards.parts, "is damaged");
    }
}

#[test]
fn rows_of_another_run_beside_a_record_are_noticed() {
    for format in FILES.into_iter().filter(|format| !format.sink().holds_record()) {
        let shards = Shards::new(format, 2, STRIDED);
        let strange = shards.path("strange");
        let mut other = Run::new(ROWS, 5).select(&(1..ROWS).step_by(2).collect::<Vec<_>>());
        other.image[[3, 2]] += 1e-6;
        write(&other, shards.options(&strange, 1, 2));
        // The record of the one beside the rows of the other.
        let part = &shards.parts[1];
        assert!(fs::copy(&strange, part).unwrap() > 0);
        shards.assert_refused(&shards.parts, "not those that its record was made for");
    }
}

#[test]
fn a_stale_record_is_not_taken_for_a_new_outputs() {
    for format in FILES.into_iter().filter(|format| !format.sink().holds_record()) {
        let shards = Shards::new(format, 2, STRIDED);
        let part = shards.parts[0].clone();
        let stale = part.with_extension(format!("{}.shard.json", format.name()));
        fs::remove_file(&part).unwrap();
        let mut fresh = options(&part, format);
        fresh.outputs[0].arrays = crate::output::Arrays::IMAGE;
        let error = EmbeddingWriter::open(fresh.clone()).unwrap_err();
        assert!(error.to_string().contains("there already"), "{error}");
        assert!(stale.exists());
        fresh.overwrite = true;
        write(&Run::new(ROWS, 5), fresh);
        assert!(!stale.exists(), "{format:?}");
        assert!(part.exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn names_may_be_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    for format in FILES {
        let shards = Shards::new(format, 2, STRIDED);
        let mut parts = shards.parts.clone();
        let strange = std::ffi::OsStr::from_bytes(b"part\xff.").to_os_string();
        parts[1] = shards.folder.path().join(strange).with_extension(format.name());
        write(&Run::new(ROWS, 5).select(&(1..ROWS).step_by(2).collect::<Vec<_>>()), shards.options(&parts[1], 1, 2));
        let out = shards.merge(&parts, "merged").unwrap();
        assert!(contents(&out) == contents(&shards.whole), "{format:?}");
    }
}

#[test]
fn an_inconsistent_record_is_refused() {
    let shards = Shards::new(OutputFormat::Npy, 2, STRIDED);
    let path = shards.path("part1").with_extension("npy.shard.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in [
        ("index", serde_json::json!(0)),
        ("index", serde_json::json!(3)),
        ("dim", serde_json::json!(0)),
        ("dim", serde_json::json!(u64::MAX)),
        ("rows", serde_json::json!([[0, u64::MAX, 0, 1]])),
        ("rows", serde_json::json!([[5, 1, 0, 1], [1, 1, 0, 1]])),
        ("total_rows", serde_json::json!("many")),
        ("checksums", serde_json::json!({ "arrays": [], "rows": null })),
    ] {
        let mut wrong = record.clone();
        wrong[key] = value;
        fs::write(&path, wrong.to_string()).unwrap();
        shards.assert_refused(&shards.parts, "part1.npy");
    }
}

#[test]
fn a_killed_merge_is_not_in_the_way_and_a_stopped_run_is() {
    let shards = Shards::new(OutputFormat::Npy, 2, STRIDED);
    let out = shards.path("merged");
    let mut killed = options(&out, OutputFormat::Npy);
    killed.keep = false;
    let mut writer = EmbeddingWriter::open(killed).unwrap();
    Run::new(4, 5).write(&mut writer, 2).unwrap();
    // As after a kill, nothing is cleaned up.
    let [hidden, away] = [".merged.npy.prior-embed", "away"].map(|name| shards.folder.path().join(name));
    fs::rename(&hidden, &away).unwrap();
    drop(writer);
    fs::rename(&away, &hidden).unwrap();
    let out = shards.merge(&shards.parts, "merged").unwrap();
    assert!(contents(&out) == contents(&shards.whole));
    let mut writer = EmbeddingWriter::open(options(&shards.path("refused"), OutputFormat::Npy)).unwrap();
    Run::new(4, 5).write(&mut writer, 2).unwrap();
    drop(writer);
    let error = shards.merge(&shards.parts, "refused").unwrap_err();
    assert!(error.to_string().contains("an earlier run"), "{error}");
}
