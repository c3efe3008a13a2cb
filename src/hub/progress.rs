//! Progress events of a download.

/// Receives progress events.
pub trait DownloadProgress {
    /// A download of `files` files with `bytes` bytes in all begins.
    fn begin(&mut self, _model: &str, _files: usize, _bytes: u64) {}
    /// `bytes` of all those bytes have arrived; the current file is `path`.
    fn position(&mut self, _path: &str, _bytes: u64) {}
    /// Something the user may wonder about, such as a long pause.
    fn note(&mut self, _message: &str) {}
    /// All files have arrived.
    fn end(&mut self) {}
}

/// The no-op observer.
impl DownloadProgress for () {}
