//! Tests of rows that are gathered beside an output.

use crate::output::tests::{Run, options};
use crate::output::{Arrays, EmbeddingWriter, Interrupted, Output, OutputFormat};
use ndarray::Array2;
use ndarray_npy::ReadNpyExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Writes two rows, after which the disk is full.
#[cfg(target_os = "linux")]
fn fill_disk_after_two_rows(writer: &mut EmbeddingWriter, run: &Run) {
    run.select(&[0, 1]).write(writer, 2).unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    writer.file.as_mut().unwrap().working.columns[0].file = Some(full);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_tells_how_to_resume() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(6, 3);
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    options.resume = true;
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    fill_disk_after_two_rows(&mut writer, &run);
    let error = run.write(&mut writer, 2).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(".e.npy.prior-embed/output-0"), "{message}");
    assert!(message.contains("2 rows are kept, and --resume continues from row 2 once there is room"), "{message}");
    assert_eq!(crate::cli::errors::exit_code(&error), 1);
    assert!(writer.finish().is_err(), "an unfinished output does not appear");
    assert!(!folder.path().join("e.npy").exists());
    let mut writer = EmbeddingWriter::open(options).unwrap();
    assert_eq!(writer.rows_done(), 2);
    run.write(&mut writer, 2).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("e.npy")).unwrap().len(), 128 + 6 * 3 * 4);
}

#[test]
fn rows_are_synced_within_a_moment() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(6, 3);
    let mut writer = EmbeddingWriter::open(options(&folder.path().join("e.npy"), OutputFormat::Npy)).unwrap();
    let now = Instant::now();
    let mut write = |rows: &[usize], last_sync: Instant| {
        writer.file.as_mut().unwrap().working.last_sync = last_sync;
        if rows.is_empty() {
            writer.sync_if_due().unwrap();
        } else {
            run.select(&(0..rows[0]).chain(rows.iter().copied()).collect::<Vec<_>>()).write(&mut writer, 2).unwrap();
        }
        writer.file.as_ref().unwrap().working.is_unsynced
    };
    let (lately, long_ago) = (now + Duration::from_secs(100), now.checked_sub(Duration::from_secs(1)).unwrap());
    assert!(write(&[0, 1], lately), "not every batch is synced");
    assert!(!write(&[], long_ago), "no other row has to come");
    assert!(!write(&[2, 3], long_ago), "nor does the next one wait");
}

#[test]
fn an_interrupt_does_not_wait_for_the_output() {
    for format in [OutputFormat::Npz, OutputFormat::Safetensors, OutputFormat::Parquet] {
        let folder = TempDir::new().unwrap();
        let run = Run::new(6, 3);
        let mut options = options(&folder.path().join("e"), format);
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write(&mut writer, 2).unwrap();
        options.interrupt.store(true, Ordering::Relaxed);
        assert!(writer.finish().unwrap_err().is::<Interrupted>(), "{format:?}");
        assert!(!folder.path().join("e").exists());
        (options.resume, options.interrupt) = (true, Arc::default());
        let writer = EmbeddingWriter::open(options).unwrap();
        assert_eq!(writer.rows_done(), 6);
        writer.finish().unwrap();
        assert!(folder.path().join("e").exists());
    }
}

#[test]
fn runs_with_the_same_second_output_do_not_take_each_others_rows() {
    let folder = TempDir::new().unwrap();
    let second = folder.path().join("n.npy");
    let negative = || Array2::<f32>::read_npy(std::fs::File::open(&second).unwrap()).unwrap();
    let runs = [Run::new(6, 3), Run::new(6, 3).select(&[5, 4, 3, 2, 1, 0])];
    let options = ["a.npy", "b.npy"].map(|name| {
        let mut options = options(&folder.path().join(name), OutputFormat::Npy);
        options.outputs.push(Output { path: second.clone(), format: OutputFormat::Npy, arrays: Arrays::NEGATIVE });
        options
    });
    let mut writers = options.clone().map(|options| EmbeddingWriter::open(options).unwrap());
    // Both have made their outputs before one of them moves its own into place.
    for (run, writer) in runs.iter().zip(&mut writers) {
        run.write(writer, 6).unwrap();
        let file = writer.file.as_mut().unwrap();
        file.assemble(3).unwrap();
        file.working.complete(3).unwrap();
    }
    let [first, last] = writers;
    first.finish().unwrap();
    assert_eq!(negative(), runs[0].negative);
    let error = last.finish().unwrap_err();
    assert!(error.to_string().contains("n.npy\" appeared"), "{error}");
    std::fs::remove_file(&second).unwrap();
    let [_, mut resume] = options;
    resume.resume = true;
    EmbeddingWriter::open(resume).unwrap().finish().unwrap();
    assert_eq!(negative(), runs[1].negative);
    assert_eq!(folder.path().read_dir().unwrap().count(), 3);
}

#[cfg(target_os = "linux")]
#[test]
fn temporary_rows_are_not_kept_on_a_full_disk() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(6, 3);
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    options.keep = false;
    let mut writer = EmbeddingWriter::open(options).unwrap();
    fill_disk_after_two_rows(&mut writer, &run);
    let message = run.write(&mut writer, 2).unwrap_err().to_string();
    assert!(message.contains("nothing is kept") && !message.contains("--resume"), "{message}");
    drop(writer);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_second_output_may_be_on_another_device() {
    let folder = TempDir::new().unwrap();
    let elsewhere = ["/dev/shm", "/run"].iter().find_map(|folder| TempDir::new_in(folder).ok());
    let elsewhere = elsewhere.unwrap_or_else(|| TempDir::new().unwrap());
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    let path = elsewhere.path().join("n.npy");
    options.outputs.push(Output { path: path.clone(), format: OutputFormat::Npy, arrays: Arrays::NEGATIVE });
    let run = Run::new(6, 3);
    for overwrite in [false, true] {
        options.overwrite = overwrite;
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write(&mut writer, 2).unwrap();
        writer.finish().unwrap();
        assert_eq!(Array2::<f32>::read_npy(std::fs::File::open(&path).unwrap()).unwrap(), run.negative);
        assert_eq!([&folder, &elsewhere].map(|folder| folder.path().read_dir().unwrap().count()), [1, 1]);
    }
}

#[test]
fn rows_that_cannot_be_read_back_are_not_called_kept() {
    for format in [OutputFormat::Npz, OutputFormat::Safetensors, OutputFormat::Parquet] {
        let folder = TempDir::new().unwrap();
        let run = Run::new(6, 3);
        let mut options = options(&folder.path().join("e"), format);
        let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
        run.write(&mut writer, 2).unwrap();
        let image = folder.path().join(".e.prior-embed/image_embeds");
        std::fs::File::options().write(true).open(&image).unwrap().set_len(50).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("cannot read") && message.contains("--resume continues from"), "{message}");
        assert!(!message.contains("rows are kept"), "{message}");
        options.resume = true;
        let mut writer = EmbeddingWriter::open(options).unwrap();
        assert_eq!(writer.rows_done(), 4);
        run.write(&mut writer, 2).unwrap();
        writer.finish().unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn rows_that_may_not_be_on_disk_are_not_called_kept() {
    let folder = TempDir::new().unwrap();
    let run = Run::new(6, 3);
    let mut options = options(&folder.path().join("e.npy"), OutputFormat::Npy);
    options.resume = true;
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    run.select(&[0, 1]).write(&mut writer, 2).unwrap();
    writer.sync().unwrap();
    run.select(&[0, 1, 2, 3]).write(&mut writer, 2).unwrap();
    // A descriptor that cannot be synced, as if the disk failed.
    let broken =
        std::fs::File::from(rustix::fs::open(".", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap());
    writer.file.as_mut().unwrap().working.columns[0].file = Some(broken);
    let message = writer.sync().unwrap_err().to_string();
    assert!(message.contains("2 rows are kept"), "{message}");
    drop(writer);
    assert_eq!(EmbeddingWriter::open(options).unwrap().rows_done(), 2);
}
