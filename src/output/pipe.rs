//! A stream to write to.

use super::batch::Interrupted;
use super::paths::shown;
use crate::bad_input::OrBadInput;
use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long to sleep while a nonblocking pipe is full.
const PAUSE: Duration = Duration::from_millis(2);

/// How often to check for an interrupt while waiting for a reader.
const TICK: Duration = Duration::from_millis(50);

/// How long a reader that is merely slow has to take the pending bytes after an interrupt.
const GRACE: Duration = Duration::from_millis(500);

/// Bytes that a pipe takes at once if it takes any: POSIX' `PIPE_BUF` on Linux.
const PIPE_BYTES: usize = 4096;

/// What a stream goes to.
pub(crate) trait Target: Write + Send {
    /// Waits a moment for it to take bytes, and tells how many it takes without blocking; 0 if none yet.
    ///
    /// # Errors
    /// If the system cannot tell.
    fn room(&self) -> io::Result<usize>;

    /// Whether nobody can read it any more, as far as the system tells before a write fails.
    fn is_closed(&self) -> bool {
        false
    }
}

impl Target for File {
    fn room(&self) -> io::Result<usize> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        match poll(&mut [PollFd::new(self, PollFlags::OUT)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(0),
            Ok(_) => Ok(PIPE_BYTES),
            Err(error) => Err(error.into()),
        }
    }

    fn is_closed(&self) -> bool {
        let (now, mut polled) = (Timespec { tv_sec: 0, tv_nsec: 0 }, [PollFd::new(self, PollFlags::empty())]);
        // Errors are reported without being asked for.
        poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }
}

/// A stream that is written to no faster than it is read, so that the wait for a stalled reader can be interrupted.
pub(crate) struct Pipe {
    target: Box<dyn Target>,
    interrupt: Arc<AtomicBool>,
}

impl Pipe {
    pub(crate) fn new(target: Box<dyn Target>, interrupt: Arc<AtomicBool>) -> Self {
        Self { target, interrupt }
    }

    /// Whether nobody can read it any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.target.is_closed()
    }

    /// Writes and flushes. Retries where another process has made the pipe nonblocking.
    ///
    /// # Errors
    /// [`Interrupted`] if the interrupt is set while the reader is stalled. The inner result is that of writing.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<io::Result<()>> {
        let mut asked = None;
        while !bytes.is_empty() {
            if self.interrupt.load(Ordering::Relaxed) && asked.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                return Err(Interrupted.into());
            }
            let written = self.target.room().and_then(|room| match &bytes[..room.min(bytes.len())] {
                [] => Ok(None),
                bytes => self.target.write(bytes).map(Some),
            });
            match written {
                Ok(Some(0)) => return Ok(Err(ErrorKind::WriteZero.into())),
                Ok(written) => bytes = &bytes[written.unwrap_or(0)..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(self.target.flush())
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

/// Standard output without its lock and buffer.
///
/// # Errors
/// If it is closed.
pub(crate) fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;

    #[cfg(unix)]
    #[test]
    fn an_interrupt_ends_the_wait_for_a_stalled_reader() {
        let (reader, writer) = io::pipe().unwrap();
        let interrupt = Arc::new(AtomicBool::new(false));
        let mut sink = Pipe::new(Box::new(File::from(OwnedFd::from(writer))), Arc::clone(&interrupt));
        sink.write(&[1; 100]).unwrap().unwrap();
        let asking = thread::spawn(move || {
            thread::sleep(TICK);
            interrupt.store(true, Ordering::Relaxed);
        });
        let error = sink.write(&[2; 1 << 20]).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error}");
        asking.join().unwrap();
        drop(reader);
    }

    /// Takes three bytes at a time, and is full every other time.
    #[derive(Default)]
    struct Slow {
        got: Arc<Mutex<Vec<u8>>>,
        turns: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turns += 1;
            if self.turns.is_multiple_of(2) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = bytes.len().min(3);
            self.got.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Target for Slow {
        fn room(&self) -> io::Result<usize> {
            Ok(1 + self.turns % 4)
        }
    }

    #[test]
    fn a_pipe_without_a_reader_is_closed() {
        let (reader, writer) = io::pipe().unwrap();
        let pipe = Pipe::new(Box::new(File::from(OwnedFd::from(writer))), Arc::default());
        assert!(!pipe.is_closed());
        drop(reader);
        assert!(pipe.is_closed());
        let file = tempfile::tempfile().unwrap();
        assert!(!Pipe::new(Box::new(file), Arc::default()).is_closed());
    }

    #[test]
    fn a_full_pipe_is_retried() {
        let slow = Slow { turns: 1, ..Slow::default() };
        let got = Arc::clone(&slow.got);
        Pipe::new(Box::new(slow), Arc::default()).write(b"every byte, once").unwrap().unwrap();
        assert_eq!(*got.lock().unwrap(), b"every byte, once");
    }
}
