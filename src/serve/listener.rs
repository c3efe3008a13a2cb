//! Sockets and connections.

use super::options::{Address, is_loopback};
use super::server::Server;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use anyhow::{Context, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// Bytes that a connection buffers: the head of a request must fit.
const BUFFER: usize = 64 << 10;

/// A pause where the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// A socket that clients can connect to, though nobody answers yet.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// What clients connect to: `http://127.0.0.1:8080`, or `unix:` and a path.
    pub address: String,
    /// Whether other machines may reach it.
    pub is_open: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// Removes the file of a Unix domain socket when it is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be bound.
    pub fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Tcp(host, port) => {
                let bound = std::net::TcpListener::bind((host.as_str(), *port)).and_then(|socket| {
                    // Again, with a longer queue than the standard library asks for.
                    rustix::net::listen(&socket, BACKLOG)?;
                    socket.set_nonblocking(true)?;
                    Ok((socket.local_addr()?, socket))
                });
                let (local, socket) = bound.or_bad_input(|| {
                    format!("cannot listen on --host {host} --port {port}; give others, --port 0 for any free one")
                })?;
                let is_open = !is_loopback(local.ip());
                Ok(Self { socket: Socket::Tcp(socket), address: format!("http://{local}"), is_open })
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let bound = std::os::unix::net::UnixListener::bind(path).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
                let socket = bound.or_bad_input(|| format!("cannot listen on --uds {path:?}"))?;
                let socket = Socket::Unix(socket, SocketFile(path.clone()));
                Ok(Self { socket, address: format!("unix:{}", path.display()), is_open: false })
            }
        }
    }

    /// Whether it listens on addresses that this machine alone has.
    pub(super) fn is_local(&self) -> bool {
        !self.is_open && matches!(self.socket, Socket::Tcp(_))
    }

    /// Answers connections from now on, in the runtime that is entered.
    ///
    /// # Errors
    /// If the runtime does not take the socket.
    pub(super) fn serve(self, router: Router, server: &Arc<Server>) -> Result<Serving> {
        let graceful = Arc::new(GracefulShutdown::new());
        let connections = Connections {
            router,
            graceful: Arc::clone(&graceful),
            count: Arc::clone(&server.connections),
            permits: Arc::new(Semaphore::new(server.options.limits.connections)),
            timeout: server.options.limits.timeout,
        };
        let accepting = match self.socket {
            Socket::Tcp(socket) => {
                let socket = TcpListener::from_std(socket).context("cannot serve")?;
                tokio::spawn(connections.accept(socket, None))
            }
            Socket::Unix(socket, file) => {
                let socket = UnixListener::from_std(socket).context("cannot serve")?;
                tokio::spawn(connections.accept(socket, Some(file)))
            }
        };
        Ok(Serving { accepting, graceful })
    }
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(bad_input!("--uds {path:?} is there and no socket; give another path"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).or_bad_input(|| format!("cannot replace --uds {path:?}"))
        }
        _ => Err(bad_input!("--uds {path:?} is in use by another server; give another path")),
    }
}

/// A socket that gives streams.
trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The stream of the next connection, which ends if a client takes nothing for so long.
    fn next(&self, timeout: Duration) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self, timeout: Duration) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Small answers go out at once. Without it, they are slower.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        {
            let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            // Without it, such a client holds its answer in memory until it leaves.
            let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, milliseconds);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = timeout;
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self, _: Duration) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// Makes answers to connections.
struct Connections {
    router: Router,
    graceful: Arc<GracefulShutdown>,
    /// Open connections.
    count: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

impl Connections {
    /// Answers connections for ever. While there are as many as are allowed, others wait.
    async fn accept(self, socket: impl Accept, _file: Option<SocketFile>) {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await {
            match socket.next(self.timeout).await {
                Ok(stream) => {
                    let open = Open::new(&self.count, permit);
                    let watcher = self.graceful.watcher();
                    tokio::spawn(answer(stream, self.router.clone(), self.timeout, watcher, open));
                }
                // No file descriptors are left, or no memory.
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Answers the requests of a connection.
async fn answer<I>(stream: I, router: Router, timeout: Duration, watcher: Watcher, _open: Open)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(timeout).max_buf_size(BUFFER);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Errors are the client's: it has left, or does not speak HTTP.
    let _ = watcher.watch(connection).await;
}

/// An open connection.
struct Open {
    count: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(count: &Arc<AtomicUsize>, permit: OwnedSemaphorePermit) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: Arc::clone(count), _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Serving {
    accepting: JoinHandle<()>,
    graceful: Arc<GracefulShutdown>,
}

impl Serving {
    /// Takes no more connections, and waits for the answers that are under way. Returns whether all are done in time.
    pub(super) async fn end(self, grace: Duration) -> bool {
        self.accepting.abort();
        // It ends with an error, since it was aborted; then nobody else has the connections.
        let _ = self.accepting.await;
        match Arc::try_unwrap(self.graceful) {
            Ok(graceful) => timeout(grace, graceful.shutdown()).await.is_ok(),
            Err(_) => false,
        }
    }
}
