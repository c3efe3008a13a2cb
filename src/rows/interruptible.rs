//! Reads that can be given up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How often a read that waits for data looks at its flag.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A pipe, terminal or device. A read that waits for data ends with an error soon after `interrupt` is set, so that the
/// thread it blocks can be joined.
pub(super) struct Interruptible {
    file: File,
    interrupt: Arc<AtomicBool>,
}

impl Interruptible {
    pub(super) fn new(file: File, interrupt: Arc<AtomicBool>) -> Self {
        Self { file, interrupt }
    }

    /// Standard input, without the buffer and the lock of [`std::io::Stdin`].
    ///
    /// # Errors
    /// If the process has no more file descriptors.
    pub(super) fn stdin(interrupt: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self::new(io::stdin().as_fd().try_clone_to_owned()?.into(), interrupt))
    }
}

impl Read for Interruptible {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&TICK)) {
                Ok(0) | Err(Errno::INTR) => {}
                // Data, the end, or an error that the read reports.
                Ok(_) => return self.file.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_read_ends_with_the_data_the_pipe_or_an_interrupt() {
        let (reader, mut writer) = io::pipe().unwrap();
        let interrupt = Arc::new(AtomicBool::new(false));
        let mut input = Interruptible::new(File::from(OwnedFd::from(reader)), Arc::clone(&interrupt));
        writer.write_all(b"ab").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(input.read(&mut buffer).unwrap(), 2);
        let waiting = std::thread::spawn(move || {
            let interrupted = input.read(&mut [0; 8]).is_err();
            (interrupted, input)
        });
        interrupt.store(true, Ordering::Relaxed);
        let (interrupted, mut input) = waiting.join().unwrap();
        assert!(interrupted);
        drop(writer);
        interrupt.store(false, Ordering::Relaxed);
        assert_eq!(input.read(&mut buffer).unwrap(), 0);
    }
}
