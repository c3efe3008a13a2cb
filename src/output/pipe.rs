//! A stream to write to.

use super::batch::Interrupted;
use super::paths::shown;
use crate::bad_input::OrBadInput;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// The thread has ended.
const GONE: &str = "internal error: nothing to write with";

/// How long to sleep while a nonblocking pipe is full.
const PAUSE: Duration = Duration::from_millis(2);

/// How often to check for an interrupt while waiting for a reader.
const TICK: Duration = Duration::from_millis(50);

/// How long a reader that is merely slow has to take the pending bytes after an interrupt.
const GRACE: Duration = Duration::from_millis(500);

/// Writes in a thread of its own, so that waiting for a stalled reader can be interrupted.
pub(crate) struct Pipe {
    bytes: SyncSender<Vec<u8>>,
    written: Receiver<io::Result<()>>,
    interrupt: Arc<AtomicBool>,
}

impl Pipe {
    /// # Errors
    /// If the system has no more threads.
    pub(crate) fn new(mut target: Box<dyn Write + Send>, interrupt: Arc<AtomicBool>) -> Result<Self> {
        let (bytes, receiver) = sync_channel::<Vec<u8>>(1);
        let (sender, written) = sync_channel(1);
        let work = move || {
            for bytes in receiver {
                if sender.send(write_all(&mut *target, &bytes)).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().spawn(work).context("cannot start a thread")?;
        Ok(Self { bytes, written, interrupt })
    }

    /// Writes and flushes. Not usable after [`Interrupted`].
    ///
    /// # Errors
    /// [`Interrupted`] if the interrupt is set while the reader is stalled. The inner result is that of writing.
    pub(crate) fn write(&mut self, bytes: Vec<u8>) -> Result<io::Result<()>> {
        self.bytes.send(bytes).context(GONE)?;
        let mut asked = None;
        loop {
            match self.written.recv_timeout(TICK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Disconnected) => bail!(GONE),
                Err(RecvTimeoutError::Timeout) if !self.interrupt.load(Ordering::Relaxed) => {}
                Err(RecvTimeoutError::Timeout) if asked.get_or_insert_with(Instant::now).elapsed() < GRACE => {}
                Err(RecvTimeoutError::Timeout) => return Err(Interrupted.into()),
            }
        }
    }
}

/// Opens an existing pipe or device for writing. Waits for the reader of a pipe.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it cannot be opened; [`Interrupted`] before a reader comes.
pub(crate) fn open(path: &Path, interrupt: &AtomicBool) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let failed = || format!("cannot write to {}", shown(path));
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NXIO) if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) => {
                if interrupt.load(Ordering::Relaxed) {
                    return Err(Interrupted.into());
                }
                thread::sleep(TICK);
            }
            file => {
                let file = file.or_bad_input(failed)?;
                // From here on writing blocks.
                let flags = fcntl_getfl(&file).or_bad_input(failed)?;
                fcntl_setfl(&file, flags - OFlags::NONBLOCK).or_bad_input(failed)?;
                return Ok(file.into());
            }
        }
    }
}

/// Standard output without its lock and buffer: a blocked write must not delay the process' end.
///
/// # Errors
/// If it is closed.
pub(crate) fn stdout() -> io::Result<Box<dyn Write + Send>> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        Ok(Box::new(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
    #[cfg(not(unix))]
    Ok(Box::new(io::stdout()))
}

/// Writes all bytes and flushes. Retries where another process has made the pipe nonblocking.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn write_all(sink: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn an_interrupt_ends_the_wait_for_a_stalled_reader() {
        let (reader, writer) = io::pipe().unwrap();
        let interrupt = Arc::new(AtomicBool::new(false));
        let mut sink = Pipe::new(Box::new(writer), Arc::clone(&interrupt)).unwrap();
        sink.write(vec![1; 100]).unwrap().unwrap();
        let asking = thread::spawn(move || {
            thread::sleep(TICK);
            interrupt.store(true, Ordering::Relaxed);
        });
        let error = sink.write(vec![2; 1 << 20]).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error}");
        asking.join().unwrap();
        drop(reader);
    }

    /// Takes three bytes at a time, and is full every other time.
    #[derive(Default)]
    struct Slow {
        got: Vec<u8>,
        turns: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turns += 1;
            if self.turns.is_multiple_of(2) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = bytes.len().min(3);
            self.got.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_pipe_is_retried() {
        let mut slow = Slow::default();
        write_all(&mut slow, b"every byte, once").unwrap();
        assert_eq!(slow.got, b"every byte, once");
    }
}
