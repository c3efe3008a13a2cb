//! Clients that are slow, greedy or gone.

use crate::client::{Reply, Server, is_closed, send};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;

/// Takes minutes, if nobody ends it.
fn endless() -> Value {
    json!({ "prompts": "a red apple", "samples": 1000, "steps": 500 })
}

const SLOW: [&str; 6] = ["--max-steps", "1000", "--threads", "1", "--cache-mb", "0"];

#[test]
fn slow_clients_are_cut_off() {
    let server = Server::start(&["--timeout", "0.3"]);
    // Nothing, a part of a head, and a head that never ends.
    for start in ["", "POST /embed HT", "GET /health HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).unwrap();
        assert!(Reply::try_read(&mut stream).is_none_or(|reply| reply.status == 408), "{start:?}");
        assert!(is_closed(&mut stream), "{start:?}");
    }
    // A connection that is kept and not used.
    let mut stream = server.connect();
    send(&mut stream, "GET", "/health", &[], b"");
    assert_eq!(Reply::read(&mut stream).status, 200);
    assert!(is_closed(&mut stream));
    // A body that does not come.
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        )
        .unwrap();
    let reply = Reply::read(&mut stream);
    assert!(reply.status == 408 && reply.text().contains("did not come within 0.3 s"), "{reply:?}");
    // A request that takes longer than that is not cut off.
    let server = Server::start(&[&SLOW[..], &["--timeout", "0.05"]].concat());
    server.post("/prior", &json!({ "prompts": "a", "steps": 300 })).ok();
}

#[test]
fn large_bodies_and_heads_are_refused() {
    let server = Server::start(&["--max-body-bytes", "1000"]);
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n",
        )
        .unwrap();
    let reply = Reply::read(&mut stream);
    assert!(reply.status == 413 && reply.text().contains("larger than 1000 bytes"), "{reply:?}");
    assert!(is_closed(&mut stream));
    // One whose length is not told.
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("3e8\r\n{}\r\n", " ".repeat(1000));
    stream.write_all(&[chunk.as_bytes(), b"1\r\n \r\n"].concat()).unwrap();
    let reply = Reply::read(&mut stream);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("body_too_large")));
    // A body that ends early.
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        )
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(Reply::try_read(&mut stream).is_none_or(|reply| reply.status == 400));
    // A head.
    let mut stream = server.connect();
    let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let _ = stream.write_all(head.as_bytes());
    assert!(Reply::try_read(&mut stream).is_none_or(|reply| reply.status == 431));
    // No HTTP at all.
    let mut stream = server.connect();
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    assert!(Reply::try_read(&mut stream).is_none_or(|reply| reply.status == 400));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_client_that_sends_too_much_reads_why() {
    let server = Server::start(&["--max-body-bytes", "1000"]);
    let body = vec![b' '; 8 << 20];
    let headers = [("content-type", "application/json")];
    assert_eq!(server.request("POST", "/embed", &headers, &body).status, 413);
    let mut stream = server.connect();
    let head = "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2000\r\n";
    stream.write_all(format!("{head}expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(Reply::read(&mut stream).status, 413);
}

/// A client that asks and does not read holds nothing for ever.
#[cfg(target_os = "linux")]
#[test]
fn who_takes_no_answer_is_cut_off() {
    let server = Server::start(&["--timeout", "0.5", "--max-rows", "4000"]);
    // All rows but the first are in the cache, and together larger than the buffers of the connection.
    server.post("/prior", &json!({ "prompts": "a", "seed": 3 })).ok();
    // That of the question alone.
    let is_alone = || server.metric("prior_embed_connections") == 1.0;
    server.wait_until("the others are closed", is_alone);
    let mut stream = server.connect();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    let body = json!({ "prompts": vec!["a"; 4000], "seeds": vec![3; 4000] }).to_string();
    send(&mut stream, "POST", "/prior", &[("content-type", "application/json")], body.as_bytes());
    server.wait_until("it is answered", || server.metric("prior_embed_cache_hits_total") == 4000.0);
    server.wait_until("it is cut off", is_alone);
    drop(stream);
}

/// Keeps the engine busy, and fills the queue of 4 rows.
fn fill(server: &Server) -> Vec<TcpStream> {
    let mut streams = vec![server.post_unread("/prior", &endless())];
    server.wait_until("it is computed", || server.metric("prior_embed_batch_rows_count") >= 1.0);
    for _ in 0..3 {
        let tokens = server.metric("prior_embed_tokens_total");
        streams.push(server.post_unread("/prior", &json!({ "prompts": "two cats", "steps": 500 })));
        server.wait_until("it is accepted", || server.metric("prior_embed_tokens_total") > tokens);
    }
    streams
}

#[test]
fn a_full_queue_refuses() {
    let server = Server::start(&[&SLOW[..], &["--max-batch-size", "1", "--max-queue", "4"]].concat());
    let streams = fill(&server);
    let body = json!({ "input": "a", "inputs": "a" });
    let reply = server.post("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(reply.header("retry-after"), Some("1"));
    let reply = server.post("/embed", &body);
    assert_eq!((reply.status, &reply.json()["error_type"]), (429, &json!("Overloaded")));
    // What a client asks about the server itself is answered.
    assert_eq!(server.get("/health").status, 200);
    drop(streams);
    server.wait_until("the queue is empty", || server.metric("prior_embed_queue_rows") == 0.0);
    server.post("/embed", &body).ok();
}

#[test]
fn who_leaves_frees_the_rows() {
    let server = Server::start(&SLOW);
    for path in ["/prior", "/prior lines"] {
        let before = server.metric("prior_embed_rows_total");
        let mut stream = server.connect();
        let accept = if path == "/prior" { "*/*" } else { "application/x-ndjson" };
        let headers = [("content-type", "application/json"), ("accept", accept)];
        send(&mut stream, "POST", "/prior", &headers, endless().to_string().as_bytes());
        server.wait_until("it is computed", || server.metric("prior_embed_queue_rows") > 0.0);
        drop(stream);
        server.wait_until("the queue is empty", || server.metric("prior_embed_queue_rows") == 0.0);
        server.post("/embed", &json!({ "inputs": "a" })).ok();
        // Not 1,000: a batch or two may have been computed before the client left.
        assert!(server.metric("prior_embed_rows_total") - before < 500.0);
    }
    server.wait_until("it is logged", || server.log().contains("POST /prior 499"));
}

#[test]
fn a_large_request_is_in_nobodys_way() {
    let server = Server::start(&[&SLOW[..], &["--max-batch-size", "2"]].concat());
    let _large = server.post_unread("/prior", &json!({ "prompts": "a", "samples": 1000, "steps": 50 }));
    server.wait_until("it is computed", || server.metric("prior_embed_batch_rows_count") >= 1.0);
    for prompt in ["b", "c", "d"] {
        let before = server.metric("prior_embed_batch_rows_count");
        server.post("/prior", &json!({ "prompts": prompt, "steps": 50 })).ok();
        // The batch under way, and the next, which it is in.
        let batches = server.metric("prior_embed_batch_rows_count") - before;
        assert!(batches <= 4.0, "{batches}");
    }
    assert!(server.metric("prior_embed_queue_rows") > 900.0);
}

#[test]
fn connections_beyond_the_limit_wait() {
    let server = Server::start(&["--max-connections", "2"]);
    let mut held: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    for stream in &mut held {
        send(stream, "GET", "/health", &[], b"");
        assert_eq!(Reply::read(stream).status, 200);
    }
    let mut waiting = server.connect();
    send(&mut waiting, "GET", "/health", &[], b"");
    waiting.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(Reply::try_read(&mut waiting).is_none());
    held.pop();
    waiting.set_read_timeout(Some(crate::client::PATIENCE)).unwrap();
    assert_eq!(Reply::read(&mut waiting).status, 200);
}

#[test]
fn thousands_of_idle_connections_are_cheap() {
    let server = Server::start(&[]);
    let memory = || server.metric("process_resident_memory_bytes");
    let before = memory();
    let idle: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = server.connect();
            send(&mut stream, "GET", "/health", &[], b"");
            assert_eq!(Reply::read(&mut stream).status, 200);
            stream
        })
        .collect();
    let all = idle.len() as f64 + 1.0;
    server.wait_until("the others are closed", || server.metric("prior_embed_connections") == all);
    let each = (memory() - before) / idle.len() as f64;
    assert!(each < 50e3, "{each} bytes a connection");
}
