//! Reads and decodes the pictures of a block, in several threads.

use super::batcher::Block;
use super::summary::Decoding;
use crate::images::ImageProcessor;
use crate::rows::PictureFile;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Bytes that pictures which are being decoded may take together. One of any size goes through alone.
const MAX_BYTES: u64 = 1 << 30;

/// The pixel values of a picture, or why there are none; `None` for a row without a picture.
pub(super) type Pixels = Option<Result<Vec<f32>, String>>;

/// A block, and the pixel values of its pictures.
pub(super) struct Decoded {
    pub(super) block: Block,
    pub(super) pixels: Vec<Pixels>,
}

impl Decoded {
    /// A block of prompts.
    pub(super) fn without_pictures(block: Block) -> Self {
        Self { block, pixels: Vec::new() }
    }
}

/// Bounds the memory of pictures that are being decoded, in all threads of a run.
#[derive(Debug, Default)]
pub(super) struct DecodingMemory {
    taken: Mutex<u64>,
    changed: Condvar,
}

struct Permit<'a> {
    memory: &'a DecodingMemory,
    bytes: u64,
}

impl DecodingMemory {
    /// Waits until there is room for `bytes`.
    fn take(&self, bytes: u64) -> Permit<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut u64| *taken > 0 && taken.saturating_add(bytes) > MAX_BYTES;
        let mut taken = self.changed.wait_while(taken, is_full).unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_add(bytes);
        Permit { memory: self, bytes }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut taken = self.memory.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(self.bytes);
        self.memory.changed.notify_all();
    }
}

/// What decodes the pictures of a run.
#[derive(Debug)]
pub(super) struct PictureDecoder {
    pub(super) processor: Arc<ImageProcessor>,
    /// The height and width that the image encoder takes.
    pub(super) size: usize,
    /// Threads for each block.
    pub(super) threads: usize,
    pub(super) memory: DecodingMemory,
    pub(super) done: Mutex<Decoding>,
}

impl PictureDecoder {
    /// Reads and decodes the pictures of a block; those that are not begun when `cancel` is set are left out.
    pub(super) fn decode(&self, block: Block, cancel: &AtomicBool) -> Decoded {
        let files: Vec<Option<&PictureFile>> =
            block.prompts.iter().map(|prompt| prompt.as_ref()?.picture.as_deref()).collect();
        let next = AtomicUsize::new(0);
        let decode_some = || {
            let mut done = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                match files.get(place) {
                    Some(Some(file)) if !cancel.load(Ordering::Relaxed) => done.push((place, self.pixels(file))),
                    Some(_) => {}
                    None => return done,
                }
            }
        };
        let mut pixels: Vec<Pixels> = vec![None; files.len()];
        thread::scope(|scope| {
            // Where the system has no more threads, this one does it all.
            let spawn = |_| thread::Builder::new().name("decoder".into()).spawn_scoped(scope, decode_some).ok();
            let others: Vec<_> = (1..self.threads.min(files.len())).filter_map(spawn).collect();
            let mut done = decode_some();
            for other in others {
                // A panic leaves rows without pixels.
                done.extend(other.join().unwrap_or_default());
            }
            done.into_iter().for_each(|(place, result)| pixels[place] = Some(result));
        });
        Decoded { pixels, block }
    }

    fn pixels(&self, file: &PictureFile) -> Result<Vec<f32>, String> {
        let start = Instant::now();
        let bytes = file.read()?;
        let mut pixels = 0;
        let values = self.processor.pixel_values(&bytes, self.size, |header| {
            pixels = header.pixels();
            self.memory.take(header.bytes())
        });
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.bytes += bytes.len() as u64;
        done.pixels += pixels;
        done.time += start.elapsed();
        values
    }

    /// What was decoded so far.
    pub(super) fn done(&self) -> Decoding {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn pictures_wait_for_memory() {
        let memory = DecodingMemory::default();
        let first = memory.take(MAX_BYTES * 5);
        thread::scope(|scope| {
            let (sender, taken) = channel();
            let memory = &memory;
            scope.spawn(move || {
                let permit = memory.take(1);
                sender.send(()).unwrap();
                drop(permit);
            });
            assert!(taken.recv_timeout(Duration::from_millis(100)).is_err(), "there is no room");
            drop(first);
            taken.recv().unwrap();
        });
        assert_eq!(*memory.taken.lock().unwrap(), 0);
    }
}
