//! A server that a test has started, and a client of a few lines.

use serde_json::Value;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server, which ends with the test.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`, or a path.
    pub address: String,
    log: Arc<Mutex<String>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one with the built-in model, and waits until it is ready.
    pub fn start(options: &[&str]) -> Self {
        let server = Self::spawn(options, &[]);
        server.wait_until("it is ready", || server.get("/health").status == 200);
        server
    }

    /// Starts one and waits until it listens.
    pub fn spawn(options: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.arg("serve").args(options).env_remove("PRIOR_EMBED_API_KEY").envs(environment.iter().copied());
        if !options.contains(&"--uds") {
            command.args(["--port", "0"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_default();
        let address = address.trim_start_matches("http://").trim_start_matches("unix:").to_string();
        Self { child, address, log }
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until something is so.
    pub fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "not so: {what}; the log is {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal by its name, as `kill` has it.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end; the log is {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, &[], body)
    }

    /// The same with headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.request("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Sends a request on a connection of its own, and reads the reply.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        send(&mut stream, method, path, headers, body);
        Reply::read(&mut stream)
    }

    /// Posts JSON, and leaves the reply to the caller.
    pub fn post_unread(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        send(&mut stream, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes());
        stream
    }

    /// The value of a counter in `/metrics`, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines
            .filter(|(found, _)| found.split('{').next() == Some(name))
            .map(|(_, value)| value.parse::<f64>().unwrap())
            .sum()
    }
}

/// Sends a request.
pub fn send(stream: &mut impl Write, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += "host: localhost\r\n";
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if method == "POST" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    // The server may have answered before all is sent.
    let _ = stream.write_all(&[(head + "\r\n").as_bytes(), body].concat());
}

/// A reply.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{} {:?} {}", self.status, self.headers, self.text())
    }
}

impl Reply {
    /// Reads one from a connection.
    pub fn read(stream: &mut impl Read) -> Self {
        Self::try_read(stream).unwrap_or_else(|| panic!("no reply"))
    }

    /// The same; `None` if the connection ends first.
    pub fn try_read(stream: &mut impl Read) -> Option<Self> {
        let mut stream = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            let read = stream.read_line(&mut line).unwrap_or(0);
            (read > 0).then(|| line.trim_end().to_string())
        };
        let status = line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_string()));
        }
        let mut reply = Self { status, headers, body: Vec::new() };
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut size = String::new();
                stream.read_line(&mut size).ok()?;
                let size = usize::from_str_radix(size.trim(), 16).ok()?;
                let mut chunk = vec![0; size + 2];
                stream.read_exact(&mut chunk).ok()?;
                if size == 0 {
                    break;
                }
                reply.body.extend_from_slice(&chunk[..size]);
            }
        } else {
            reply.body = vec![0; reply.header("content-length")?.parse().ok()?];
            stream.read_exact(&mut reply.body).ok()?;
        }
        Some(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The same, if it is a success.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }
}

/// Whether the other side has closed a connection, once it does.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    // A reset is an end too.
    matches!(stream.read(&mut [0; 1]), Ok(0)) || stream.take_error().is_ok_and(|error| error.is_some()) || {
        let _ = stream.shutdown(Shutdown::Both);
        false
    }
}

/// The numbers in a list.
pub fn numbers(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The numbers in a list of lists.
pub fn rows(lists: &Value) -> Vec<Vec<f32>> {
    lists.as_array().unwrap().iter().map(numbers).collect()
}

/// Asserts that numbers are the same but for rounding.
pub fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * largest.max(1.0), "{what}: {found} is not {expected}");
    }
}
