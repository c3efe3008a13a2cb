//! What a stream's bytes go to.

use std::io::{self, ErrorKind, Write};
use std::thread::sleep;
use std::time::Duration;

/// How long to wait for room where the system does not wait for us.
const PAUSE: Duration = Duration::from_millis(2);

/// Standard output without a buffer: so that nobody has to guess what of a write that failed went out.
///
/// # Errors
/// If the system has no more file descriptors.
pub(super) fn standard_output() -> io::Result<Box<dyn Write + Send>> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        Ok(Box::new(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
    #[cfg(not(unix))]
    {
        Ok(Box::new(io::stdout()))
    }
}

/// Writes all bytes, at once. Where another process has made a pipe one that does not wait for its reader, this does.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write_all(sink: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, and has no room every other time.
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
    fn a_pipe_without_room_is_waited_for() {
        let mut slow = Slow::default();
        write_all(&mut slow, b"every byte, once").unwrap();
        assert_eq!(slow.got, b"every byte, once");
    }
}
