//! A run that is stopped anywhere can be resumed, and ends in the same bytes.

use super::*;

#[test]
fn bytes_depend_on_rows_and_not_on_batches_or_stops() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(23, 5);
    for format in OutputFormat::of_embeddings() {
        for dtype in [OutputDtype::F32, OutputDtype::F16] {
            let at = |name: &str| {
                let path = folder.path().join(format!("{}-{}-{name}", format.name(), dtype.name()));
                let mut options = options(&path, format);
                (options.out_dtype, options.normalize) = (dtype, true);
                (path, options)
            };
            let (whole, options) = at("whole");
            write_whole(&run, options, 23);
            let (single, options) = at("single");
            write_whole(&run, options, 1);
            let (stopped, mut options) = at("stopped");
            options.resume = true;
            for end in [7, 7, 20, 23] {
                let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
                run.write_until(&mut writer, end, 3).unwrap();
                assert_eq!(writer.rows_done(), end as u64);
            }
            let writer = EmbeddingWriter::open(options).unwrap();
            assert_eq!(writer.rows_done(), 23);
            writer.finish().unwrap();
            assert_eq!(contents(&single), contents(&whole), "{format:?}");
            assert_eq!(contents(&stopped), contents(&whole), "{format:?}");
        }
    }
    let (records, outputs): (Vec<_>, Vec<_>) =
        names(folder.path()).into_iter().partition(|name| name.ends_with("stopped.run.json"));
    assert_eq!(
        (records.len(), outputs.len()),
        (2 * OutputFormat::of_embeddings().count(), 3 * 2 * OutputFormat::of_embeddings().count()),
        "nothing else is left"
    );
}

#[test]
fn temporary_rows_are_never_in_the_way() {
    let folder = TempDir::new().unwrap();
    let (path, hidden) = (folder.path().join("e.jsonl"), folder.path().join(".e.jsonl.prior-embed"));
    let run = Run::new(6, 3);
    let plain = options(&path, OutputFormat::JsonLines);
    let temporary = WriteOptions { keep: false, ..plain.clone() };
    let mut writer = EmbeddingWriter::open(temporary.clone()).unwrap();
    run.write_until(&mut writer, 4, 2).unwrap();
    drop(writer);
    assert!(names(folder.path()).is_empty(), "an error leaves nothing");
    for next in [temporary.clone(), plain.clone(), WriteOptions { resume: true, ..plain }] {
        let mut killed = EmbeddingWriter::open(temporary.clone()).unwrap();
        run.write_until(&mut killed, 4, 2).unwrap();
        // As after a kill, nothing is cleaned up.
        fs::rename(&hidden, folder.path().join("away")).unwrap();
        drop(killed);
        fs::rename(folder.path().join("away"), &hidden).unwrap();
        let mut writer = EmbeddingWriter::open(next).unwrap();
        assert_eq!(writer.rows_done(), 0);
        run.write(&mut writer, 3).unwrap();
        writer.finish().unwrap();
        assert!(names(folder.path()).iter().all(|name| name.starts_with("e.jsonl")), "{:?}", names(folder.path()));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn names_may_have_the_maximum_length() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(6, 3);
    for (name, length) in [("é".repeat(122) + ".npy", 248), ("a".repeat(251) + ".npy", 255)] {
        assert_eq!(name.len(), length);
        let plain = options(&folder.path().join(&name), OutputFormat::Npy);
        let mut writer = EmbeddingWriter::open(plain.clone()).unwrap();
        run.write_until(&mut writer, 4, 2).unwrap();
        drop(writer);
        let mut writer = EmbeddingWriter::open(WriteOptions { resume: true, ..plain.clone() }).unwrap();
        assert_eq!(writer.rows_done(), 4);
        run.write(&mut writer, 3).unwrap();
        writer.finish().unwrap();
        assert!(folder.path().join(&name).is_file());
        let shard = Some(Shard { index: 1, count: 1 });
        let error = error_of(EmbeddingWriter::open(WriteOptions { shard, overwrite: true, ..plain }), 2);
        assert!(error.contains("shorter"), "its record's name would be longer: {error}");
    }
}

#[test]
fn names_of_a_shards_second_output_and_record_may_be_long() {
    let run = Run::new(6, 3);
    for length in (214..=244).step_by(6) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("n".repeat(length - 4) + ".npy");
        let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
        options.outputs.push(Output { path: path.clone(), format: OutputFormat::Npy, arrays: Arrays::NEGATIVE });
        (options.shard, options.total_rows) = (Some(Shard { index: 1, count: 1 }), Some(6));
        write_whole(&run, options, 2);
        assert_eq!(Array2::<f32>::read_npy(File::open(&path).unwrap()).unwrap(), run.negative);
        assert!(path.with_extension("npy.shard.json").is_file());
        assert_eq!(names(folder.path()).len(), 4);
    }
}

#[test]
fn rows_of_an_earlier_run_are_kept_until_told_otherwise() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("e.jsonl");
    let run = Run::new(6, 3);
    let plain = options(&path, OutputFormat::JsonLines);
    let mut writer = EmbeddingWriter::open(plain.clone()).unwrap();
    run.write_until(&mut writer, 4, 2).unwrap();
    assert!(error_of(EmbeddingWriter::open(plain.clone()), 2).contains("another run"), "it is locked");
    drop(writer);
    let message = error_of(EmbeddingWriter::open(plain.clone()), 2);
    assert!(message.contains("stopped after 4 rows; --resume continues, --overwrite starts again"), "{message}");
    let mut other = plain.clone();
    other.resume = true;
    other.fingerprint = Default::default();
    other.fingerprint.push("--steps", 30);
    other.normalize = true;
    let message = error_of(EmbeddingWriter::open(other), 2);
    assert!(message.contains("--steps was 25, is 30; --normalize was false, is true"), "{message}");
    let resume = WriteOptions { resume: true, ..plain.clone() };
    assert_eq!(EmbeddingWriter::open(resume.clone()).unwrap().rows_done(), 4);
    let overwrite = WriteOptions { overwrite: true, ..plain };
    write_whole(&run, overwrite, 6);
    assert!(error_of(EmbeddingWriter::open(resume), 2).contains("is there already"));
    assert_eq!(names(folder.path()), ["e.jsonl"]);
}

/// A run of 10 rows that stopped after 8, and the bytes of a whole one.
struct Stopped {
    folder: TempDir,
    run: Run,
    options: WriteOptions,
    state: Vec<(String, Vec<u8>)>,
    expected: Vec<u8>,
}

impl Stopped {
    fn new() -> Self {
        let (folder, run) = (TempDir::new().unwrap(), Run::new(10, 3));
        let [whole, path] = ["whole.jsonl", "e.jsonl"].map(|name| folder.path().join(name));
        write_whole(&run, options(&whole, OutputFormat::JsonLines), 10);
        let options = WriteOptions { resume: true, ..options(&path, OutputFormat::JsonLines) };
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write_until(&mut writer, 8, 2).unwrap();
        drop(writer);
        let state = contents(&folder.path().join(WORKING));
        Self { expected: fs::read(whole).unwrap(), folder, run, options, state }
    }

    /// Restores the run's files to this state.
    fn put_back(&self, state: &[(String, Vec<u8>)]) {
        let (path, working) = (self.folder.path().join("e.jsonl"), self.folder.path().join(WORKING));
        let _ = fs::remove_dir_all(&working);
        let _ = fs::remove_file(&path);
        fs::create_dir(&working).unwrap();
        for (name, bytes) in state {
            fs::write(working.join(name.trim_end_matches('/')), bytes).unwrap();
        }
    }

    /// Restores this state, resumes, and returns the number of rows that counted.
    fn resume(&self, state: &[(String, Vec<u8>)]) -> u64 {
        self.put_back(state);
        let mut writer = EmbeddingWriter::open(self.options.clone()).unwrap();
        let rows = writer.rows_done();
        self.run.write(&mut writer, 3).unwrap();
        writer.finish().unwrap();
        assert!(fs::read(self.folder.path().join("e.jsonl")).unwrap() == self.expected);
        rows
    }
}

/// Where a run to `e.jsonl` gathers its rows.
const WORKING: &str = ".e.jsonl.prior-embed";

#[test]
fn truncated_at_any_byte_a_run_resumes_to_the_same_bytes() {
    let stopped = Stopped::new();
    let state = &stopped.state;
    assert_eq!(stopped.resume(state), 8);
    let mut seen = std::collections::BTreeSet::new();
    for place in 0..state.len() {
        let (name, bytes) = &state[place];
        // Without its header a journal does not say whose the rows are.
        let header = bytes.iter().position(|byte| *byte == b'\n').filter(|_| name.starts_with("journal"));
        let first = header.map_or(0, |end| end + 1);
        for len in (first..bytes.len()).filter(|len| len.is_multiple_of(7) || bytes.len() - len < 12) {
            let mut torn = state.clone();
            torn[place].1.truncate(len);
            let rows = stopped.resume(&torn);
            assert!(rows < 8, "{name} truncated to {len} goes unnoticed");
            seen.insert(rows);
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 2, 4, 6], "whole batches are kept");
}

#[test]
fn rows_with_a_damaged_header_are_not_dropped() {
    let stopped = Stopped::new();
    let journal = stopped.state.iter().position(|(name, _)| name.starts_with("journal")).unwrap();
    let header = stopped.state[journal].1.iter().position(|byte| *byte == b'\n').unwrap();
    let mut wrong: Vec<Vec<u8>> = (0..header).step_by(9).map(|cut| stopped.state[journal].1[..cut].to_vec()).collect();
    wrong.extend((0..header).step_by(9).map(|place| {
        let mut changed = stopped.state[journal].1.clone();
        changed[place] ^= 1;
        changed
    }));
    for text in wrong {
        let mut state = stopped.state.clone();
        state[journal].1 = text;
        stopped.put_back(&state);
        for (resume, overwrite) in [(true, false), (false, false), (true, true), (false, true)] {
            let options = WriteOptions { resume, overwrite, restart: true, ..stopped.options.clone() };
            let message = error_of(EmbeddingWriter::open(options), 2);
            assert!(message.contains("is in the way") && message.contains("journal.jsonl is damaged"), "{message}");
            assert_eq!(contents(&stopped.folder.path().join(WORKING)), state, "nothing is touched");
        }
    }
    // An empty one, of a run that was killed as it started, is not in the way.
    stopped.put_back(&[("journal.jsonl".into(), Vec::new())]);
    assert_eq!(EmbeddingWriter::open(stopped.options.clone()).unwrap().rows_done(), 0);
}

#[test]
fn a_wrong_complete_line_does_not_count() {
    let stopped = Stopped::new();
    let mut writer = EmbeddingWriter::open(stopped.options.clone()).unwrap();
    stopped.run.write(&mut writer, 2).unwrap();
    let path = stopped.folder.path().join("e.jsonl");
    fs::write(&path, "precious").unwrap();
    assert!(error_of(writer.finish(), 2).contains("appeared"));
    fs::remove_file(&path).unwrap();
    let state = contents(&stopped.folder.path().join(WORKING));
    let journal = state.iter().position(|(name, _)| name.starts_with("journal")).unwrap();
    let text = String::from_utf8(state[journal].1.clone()).unwrap();
    assert!(text.contains("\"complete\":{\"rows\":10"), "{text}");
    for (right, wrong) in [("\"complete\":{\"rows\":10", "\"complete\":{\"rows\":9"), ("\"complete\"", "\"complety\"")]
    {
        let mut state = state.clone();
        state[journal].1 = text.replace(right, wrong).into_bytes();
        assert_eq!(stopped.resume(&state), 10, "the rows are there");
        // The rows were moved, and the line that says so cannot be trusted.
        state.retain(|(name, _)| !name.starts_with("output-0"));
        stopped.put_back(&state);
        let message = error_of(EmbeddingWriter::open(stopped.options.clone()), 2);
        assert!(message.contains("cannot be opened"), "{message}");
        assert_eq!(contents(&stopped.folder.path().join(WORKING)), state, "nothing is touched");
    }
}

#[test]
fn a_changed_byte_in_the_data_ends_what_counts() {
    let stopped = Stopped::new();
    let data = stopped.state.iter().position(|(name, _)| name.starts_with("output-0")).unwrap();
    for (line, rows) in [(0, 0), (2, 2), (7, 6)] {
        let mut torn = stopped.state.clone();
        let start = torn[data].1.split_inclusive(|byte| *byte == b'\n').take(line).map(<[u8]>::len).sum::<usize>();
        torn[data].1[start + 5] ^= 1;
        assert_eq!(stopped.resume(&torn), rows);
    }
    // Bytes beyond those in the journal are an unfinished batch.
    let mut longer = stopped.state.clone();
    longer.iter_mut().for_each(|(_, bytes)| bytes.extend_from_slice(b"torn"));
    assert_eq!(stopped.resume(&longer), 8);
}

#[test]
fn a_wrong_list_of_rows_ends_what_counts() {
    let folder = TempDir::new().unwrap();
    let [path, record] = ["e.jsonl", "e.jsonl.shard.json"].map(|name| folder.path().join(name));
    let journal = folder.path().join(WORKING).join("journal.jsonl");
    let run = Run::new(20, 3).select(&[1, 4, 7, 10, 13, 16]);
    let mut options = options(&path, OutputFormat::JsonLines);
    (options.shard, options.total_rows) = (Some(Shard { index: 2, count: 3 }), Some(18));
    write_whole(&run, options.clone(), 2);
    let expected = [&path, &record].map(|path| fs::read(path).unwrap());
    options.resume = true;
    let right = "[[7,1,3,2]]";
    for wrong in ["[[7,1,3,3]]", "[[7,1,0,2]]", "[[1,1,3,2]]", "[]", "[[7,1,3,0]]"] {
        fs::remove_file(&path).unwrap();
        fs::remove_file(&record).unwrap();
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write_until(&mut writer, 6, 2).unwrap();
        drop(writer);
        let text = fs::read_to_string(&journal).unwrap();
        assert!(text.contains(right), "{text}");
        fs::write(&journal, text.replace(right, wrong)).unwrap();
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        assert_eq!(writer.rows_done(), 2, "{wrong}");
        run.write(&mut writer, 2).unwrap();
        writer.finish().unwrap();
        assert_eq!([&path, &record].map(|path| fs::read(path).unwrap()), expected, "{wrong}");
    }
}

#[test]
fn a_run_that_stopped_while_files_were_moved_is_finished() {
    let run = Run::new(10, 3);
    for format in OutputFormat::of_embeddings() {
        let folder = TempDir::new().unwrap();
        let (whole, path) = (folder.path().join("whole"), folder.path().join("e"));
        write_whole(&run, options(&whole, format), 10);
        let plain = options(&path, format);
        let mut writer = EmbeddingWriter::open(plain.clone()).unwrap();
        run.write(&mut writer, 4).unwrap();
        // What appears in its place is not replaced, and the run loses nothing.
        let intruder = if format == OutputFormat::Folder { path.join("img_emb") } else { path.clone() };
        fs::write(&intruder, "precious").unwrap();
        let message = error_of(writer.finish(), 2);
        assert!(message.contains("appeared"), "{message}");
        assert_eq!(fs::read(&intruder).unwrap(), b"precious");
        fs::remove_file(&intruder).unwrap();
        let working = working_of(&path, format);
        let saved = folder.path().join("saved");
        copy(&working, &saved);
        let resume = WriteOptions { resume: true, ..plain };
        let writer = EmbeddingWriter::open(resume.clone()).unwrap();
        assert_eq!(writer.rows_done(), 10);
        writer.finish().unwrap();
        assert_eq!(contents(&path), contents(&whole), "{format:?}");
        // Everything is moved, but the folder is not removed yet.
        copy(&saved, &working);
        for name in names(&working).iter().filter(|name| *name != "journal.jsonl") {
            fs::remove_file(working.join(name)).unwrap();
        }
        EmbeddingWriter::open(resume).unwrap().finish().unwrap();
        assert_eq!(contents(&path), contents(&whole), "{format:?}");
        assert!(!working.exists());
    }
}

fn working_of(path: &Path, format: OutputFormat) -> std::path::PathBuf {
    match format {
        OutputFormat::Folder => path.join(".prior-embed"),
        _ => path.with_file_name(".e.prior-embed"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_run_that_ends_before_its_first_row_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    for format in OutputFormat::of_embeddings() {
        drop(EmbeddingWriter::open(options(&folder.path().join("e"), format)).unwrap());
        assert!(names(folder.path()).is_empty(), "{format:?}");
    }
}
