//! Runs that share the rows of one, and their outputs merged.

use crate::common::{Workplace, assert_done, assert_refused, prompts, read_npy, stderr};
use arrow_array::UInt64Array;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use std::fs;

/// Ten prompts of two rows, in batches of three.
fn workplace() -> Workplace {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), (0..10).map(|number| prompts(number) + "\n").collect::<String>()).unwrap();
    place
}

fn embed(place: &Workplace, options: &[&str]) {
    let mut command = place.command();
    command.args(["-f", "p.txt", "--samples-per-prompt", "2", "--batch-size", "3"]);
    assert_done(command.args(options));
}

#[test]
fn merged_shards_are_the_whole_in_every_format() {
    for extension in ["npy", "npz", "safetensors", "jsonl", "parquet", "ipadpt"] {
        let place = workplace();
        let name = |part: &str| format!("{part}.{extension}");
        embed(&place, &["--out", &name("whole")]);
        for (shard, part) in [("1/3", "a"), ("2/3", "b"), ("3/3", "c")] {
            embed(&place, &["--shard", shard, "--out", &name(part)]);
        }
        // In any order.
        assert_done(place.bare().args(["merge", &name("c"), &name("a"), &name("b"), "--out", &name("all")]));
        let [all, whole] = ["all", "whole"].map(|part| fs::read(place.path(&name(part))).unwrap());
        assert!(all == whole, "{extension}: the bytes differ");
    }
}

/// The embeddings of a folder's rows, by the rows' indices.
fn rows_of_folder(place: &Workplace, folder: &str) -> BTreeMap<u64, Vec<u8>> {
    let mut rows = BTreeMap::new();
    for entry in place.path(folder).join("metadata").read_dir().unwrap() {
        let metadata = entry.unwrap().path();
        let name = metadata.file_stem().unwrap().to_str().unwrap().replace("metadata", "img_emb");
        let npy = read_npy(&fs::read(place.path(folder).join(format!("img_emb/{name}.npy"))).unwrap());
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(&metadata).unwrap()).unwrap();
        let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        let numbers = batches.iter().flat_map(|batch| {
            let column = batch.column_by_name("row").unwrap().as_any();
            column.downcast_ref::<UInt64Array>().unwrap().values().to_vec()
        });
        let numbers: Vec<u64> = numbers.collect();
        assert_eq!(numbers.len(), npy.nrows());
        for (row, values) in numbers.into_iter().zip(npy.rows()) {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(rows.insert(row, bytes).is_none(), "row {row} is there twice");
        }
    }
    rows
}

#[test]
fn shards_of_a_folder_need_no_merge() {
    let place = workplace();
    let options = ["--rows-per-file", "5", "--out-dir"];
    embed(&place, &[&options[..], &["whole"]].concat());
    for shard in ["2/3", "1/3", "3/3"] {
        embed(&place, &[&options[..], &["all", "--resume", "--shard", shard]].concat());
    }
    assert_eq!(rows_of_folder(&place, "all"), rows_of_folder(&place, "whole"));
    let names = ["img_emb", "metadata", "shard-1-of-3.json", "shard-2-of-3.json", "shard-3-of-3.json"];
    let mut found: Vec<_> = place.path("all").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, names);
    // A job that is sent again finds its shard done, and one with other settings does not mix with it.
    let again = |more: &[&str]| {
        let mut command = place.command();
        command.args(["-f", "p.txt", "--samples-per-prompt", "2", "--batch-size", "3"]).args(options).arg("all");
        command.args(["--resume", "--shard", "2/3"]).args(more);
        command
    };
    assert!(assert_done(&mut again(&[])).contains("already there"));
    assert_refused(&place, &mut again(&["--seed", "9"]), 2, &["all", "--seed was 0, is 9"]);
    assert_refused(&place, place.bare().args(["merge", "all", "--out", "all.npy"]), 2, &["all", "no merge"]);
    // Parts with prompts can be merged into a folder.
    for (shard, part) in [("1/2", "a.parquet"), ("2/2", "b.parquet")] {
        embed(&place, &["--shard", shard, "--out", part]);
    }
    let merge = ["merge", "a.parquet", "b.parquet", "--out-dir", "merged", "--rows-per-file", "5"];
    assert_done(place.bare().args(merge));
    for name in ["img_emb/img_emb_0003.npy", "metadata/metadata_0000.parquet"] {
        let [merged, whole] = ["merged", "whole"].map(|folder| fs::read(place.path(folder).join(name)).unwrap());
        assert!(merged == whole, "{name}");
    }
}

#[test]
fn shards_of_a_folder_have_reports_of_their_own() {
    let place = Workplace::new();
    fs::write(place.path("p.jsonl"), "{\"prompt\": 1}\n{\"prompt\": 2}\n{\"prompt\": \"a\"}\n").unwrap();
    for shard in ["1/2", "2/2"] {
        let mut command = place.command();
        command.args(["-f", "p.jsonl", "--on-error", "skip", "--batch-size", "1", "--out-dir", "e", "--shard", shard]);
        assert_done(&mut command);
    }
    assert_eq!(place.names(), ["e", "e.shard-1-of-2.errors.jsonl", "e.shard-2-of-2.errors.jsonl", "p.jsonl"]);
}

#[test]
fn more_shards_than_batches_are_no_error() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a\nb\n").unwrap();
    let parts = ["1/3", "2/3", "3/3"].map(|shard| (shard, format!("{}.npy", &shard[..1])));
    for (shard, part) in &parts {
        assert_done(place.command().args(["-f", "p.txt", "--batch-size", "1", "--shard", shard, "--out", part]));
    }
    assert_eq!(read_npy(&fs::read(place.path("3.npy")).unwrap()).nrows(), 0);
    assert_done(place.bare().args(["merge", "1.npy", "2.npy", "3.npy", "--out", "all.npy"]));
    assert_eq!(read_npy(&fs::read(place.path("all.npy")).unwrap()).nrows(), 2);
}

#[test]
fn shards_of_a_single_batch_are_the_whole() {
    for count in [1, 3] {
        let place = Workplace::new();
        fs::write(place.path("p.txt"), (0..count).map(|number| prompts(number) + "\n").collect::<String>()).unwrap();
        let embed = |options: &[&str]| assert_done(place.command().args(["-f", "p.txt"]).args(options));
        embed(&["--out", "whole.npz"]);
        for (shards, parts) in [(["1/1"].as_slice(), ["a.npz"].as_slice()), (&["1/2", "2/2"], &["b.npz", "c.npz"])] {
            shards.iter().zip(parts).for_each(|(shard, part)| drop(embed(&["--shard", shard, "--out", part])));
            assert_done(place.bare().arg("merge").args(parts).args(["--out", "all.npz", "--overwrite"]));
            let [all, whole] = ["all.npz", "whole.npz"].map(|name| fs::read(place.path(name)).unwrap());
            assert!(all == whole, "{count} prompts in {} shards: the bytes differ", shards.len());
        }
    }
}

#[test]
fn shards_of_a_pipe_are_refused() {
    let place = Workplace::new();
    let mut command = place.command();
    command.args(["-f", "-", "--out", "e.npy", "--shard", "1/2"]).write_stdin("a\nb\n");
    assert_refused(&place, &mut command, 2, &["--shard", "standard input", "file"]);
    fs::write(place.path("p.txt"), "a\nb\n").unwrap();
    let mut command = place.command();
    command.args(["-f", "p.txt", "--shard", "1/2", "--out", "-", "--format", "parquet"]);
    assert_refused(&place, &mut command, 2, &["--shard", "name a file"]);
}

#[test]
fn the_reader_of_a_merge_may_go() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a cat\n".repeat(3000)).unwrap();
    assert_done(place.command().args(["-f", "p.txt", "--steps", "1", "--shard", "1/1", "--out", "a.jsonl"]));
    let script = format!("{:?} merge a.jsonl --out - --format jsonl | head -c 9", env!("CARGO_BIN_EXE_prior-embed"));
    let mut command = assert_cmd::Command::new("bash");
    let output = command.current_dir(place.folder.path()).args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(output.stdout.len(), 9);
}

#[test]
fn a_stale_record_is_not_taken_for_a_new_outputs() {
    let place = workplace();
    embed(&place, &["--shard", "1/1", "--out", "a.npy"]);
    fs::remove_file(place.path("a.npy")).unwrap();
    let mut command = place.command();
    assert_refused(&place, command.args(["-p", "x", "--out", "a.npy"]), 2, &["a.npy.shard.json", "--overwrite"]);
    embed(&place, &["--seed", "9", "--out", "a.npy", "--overwrite"]);
    assert!(!place.path("a.npy.shard.json").exists());
    assert_refused(&place, place.bare().args(["merge", "a.npy", "--out", "all.npy"]), 2, &["a.npy", "--shard"]);
}

#[test]
fn a_finished_shard_is_not_an_error() {
    // The bytes of two numbers, which all of them hold.
    let mut first_numbers = None;
    for out in ["a.npy", "a.safetensors", "a.parquet"] {
        let place = workplace();
        let command = |options: &[&str]| {
            let mut command = place.command();
            command.args(["-f", "p.txt", "--batch-size", "3", "--out", out, "--resume"]).args(options);
            command
        };
        assert_eq!(assert_done(&mut command(&["--shard", "1/2"])), "");
        let bytes = fs::read(place.path(out)).unwrap();
        let note = assert_done(&mut command(&["--shard", "1/2", "--stats", "s.json"]));
        assert!(note.contains("already there") && note.lines().count() == 1, "{note}");
        let stats: serde_json::Value = serde_json::from_slice(&fs::read(place.path("s.json")).unwrap()).unwrap();
        assert_eq!((&stats["rows"], &stats["resumed_rows"]), (&6.into(), &6.into()));
        for (options, word) in [
            (["--shard", "2/2", "--steps", "3"], "--shard was 1/2, is 2/2"),
            (["--shard", "1/2", "--steps", "4"], "--steps was 3, is 4"),
            (["--shard", "1/2", "--out-dtype", "f16"], "--out-dtype was f32, is f16"),
        ] {
            assert_refused(&place, &mut command(&options), 2, &[out, word, "--overwrite"]);
        }
        assert!(fs::read(place.path(out)).unwrap() == bytes);
        // A changed or truncated one is not intact.
        let mut changed = bytes.clone();
        let numbers = first_numbers.get_or_insert_with(|| bytes[128..136].to_vec());
        let found = bytes.windows(8).position(|bytes| bytes == numbers).unwrap();
        changed[found] ^= 1;
        for wrong in [&changed, &bytes[..bytes.len() - 1]] {
            fs::write(place.path(out), wrong).unwrap();
            assert_refused(&place, &mut command(&["--shard", "1/2"]), 2, &[out, "not as this run wrote it"]);
        }
        fs::write(place.path(out), &bytes).unwrap();
        assert_done(&mut command(&["--shard", "1/2"]));
        fs::write(place.path("foreign.npy"), "x").unwrap();
        let mut foreign = command(&["--shard", "1/2", "--out", "foreign.npy"]);
        assert_refused(&place, &mut foreign, 2, &["foreign.npy", "there already", "--overwrite"]);
        // An output without a record of the run is refused.
        assert_refused(&place, &mut command(&[]), 2, &[out, "does not say"]);
    }
}

#[test]
fn an_incomplete_set_of_shards_is_refused() {
    let place = workplace();
    for (shard, part) in [("1/2", "a.npy"), ("2/2", "b.npy")] {
        embed(&place, &["--shard", shard, "--out", part]);
    }
    embed(&place, &["--shard", "2/2", "--seed", "5", "--out", "other.npy"]);
    let merge = |parts: &[&str], words: &[&str]| {
        let mut command = place.bare();
        assert_refused(&place, command.arg("merge").args(parts).args(["--out", "all.npy"]), 2, words);
    };
    merge(&["a.npy"], &["1 of 2 shards", "shard 2/2 is missing"]);
    merge(&["a.npy", "a.npy"], &["both shard 1/2"]);
    merge(&["a.npy", "other.npy"], &["other.npy", "--seed was 0, is 5"]);
    merge(&["a.npy", "none.npy"], &["none.npy"]);
    #[cfg(target_arch = "x86_64")]
    {
        let mut command = place.command();
        command.args(["-f", "p.txt", "--samples-per-prompt", "2", "--batch-size", "3", "--shard", "2/2"]);
        assert_done(command.args(["--out", "elsewhere.npy"]).env("ATEN_CPU_CAPABILITY", "default"));
        merge(&["a.npy", "elsewhere.npy"], &["elsewhere.npy", "the processor's instruction set", "is DEFAULT"]);
    }
    fs::write(place.path("all.npy"), "precious").unwrap();
    merge(&["a.npy", "b.npy"], &["all.npy", "--overwrite"]);
    // Any number of shards will do.
    assert_done(place.command().args(["-p", "x", "--shard", "1/18446744073709551615", "--out", "one.npy"]));
    for shard in ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"] {
        let option = format!("--shard={shard}");
        assert_refused(&place, place.command().args(["-p", "x", "--out", "e.npy", &option]), 2, &["--shard"]);
    }
}
