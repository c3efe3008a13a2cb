//! How the server begins and ends.

use crate::client::{Reply, Server};
use crate::common::{Workplace, model};
use serde_json::{Value, json};
use std::net::TcpListener;

const SLOW: [&str; 6] = ["--max-steps", "1000", "--threads", "1", "--cache-mb", "0"];

/// Takes minutes, if nobody ends it.
fn endless() -> Value {
    json!({ "prompts": "a red apple", "samples": 1000, "steps": 200 })
}

#[test]
fn a_signal_drains() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[&SLOW[..], &["--max-batch-size", "2"]].concat());
        let endless = server.post_unread("/prior", &endless());
        server.wait_until("it is computed", || server.metric("prior_embed_batch_rows_count") >= 1.0);
        let tokens = server.metric("prior_embed_tokens_total");
        let mut short = server.post_unread("/prior", &json!({ "prompts": "two cats", "samples": 3, "steps": 200 }));
        server.wait_until("it is accepted", || server.metric("prior_embed_tokens_total") > tokens);
        server.signal(signal);
        // As long as there is work, it answers that it is about to end.
        server.wait_until("it drains", || server.get("/health").status == 503);
        let reply = server.post("/embed", &json!({ "inputs": "a" }));
        assert_eq!((reply.status, &reply.json()["error_type"]), (503, &json!("Unhealthy")));
        assert_eq!((reply.header("connection"), reply.header("retry-after")), (Some("close"), Some("1")));
        assert_eq!(Reply::read(&mut short).ok()["image_embeds"].as_array().unwrap().len(), 3);
        drop(endless);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    }
}

#[test]
fn it_ends_at_once_without_work_though_connections_are_open() {
    let mut server = Server::start(&[]);
    let _idle = [server.connect(), server.connect()];
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn the_grace_is_bounded() {
    let mut server = Server::start(&[&SLOW[..], &["--grace", "0"]].concat());
    let mut stream = server.post_unread("/prior", &endless());
    server.wait_until("it is computed", || server.metric("prior_embed_batch_rows_count") >= 1.0);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(143));
    server.wait_until("it says why", || server.log().contains("with requests unanswered"));
    assert!(Reply::try_read(&mut stream).is_none());
}

#[test]
fn a_second_signal_ends_it() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut server = Server::start(&[&SLOW[..], &["--grace", "3600"]].concat());
        let _stream = server.post_unread("/prior", &endless());
        server.wait_until("it is computed", || server.metric("prior_embed_batch_rows_count") >= 1.0);
        server.signal(signal);
        server.wait_until("it drains", || server.get("/health").status == 503);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(code));
    }
}

/// A model that never comes.
#[test]
fn it_is_not_ready_before_the_model_is() {
    let place = Workplace::new();
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let environment = [
        ("HF_ENDPOINT", endpoint.as_str()),
        ("HF_HOME", place.folder.path().to_str().unwrap()),
        ("HF_HUB_OFFLINE", "0"),
        ("NO_PROXY", "127.0.0.1"),
    ];
    let mut server = Server::spawn(&["--model", "owner/name"], &environment);
    let health = server.get("/health");
    assert_eq!((health.status, health.header("retry-after")), (503, Some("1")), "{health:?}");
    let reply = server.post("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (503, &json!("server_error")));
    assert_eq!(server.metric("prior_embed_ready"), 0.0);
    assert_eq!(server.get("/info").status, 503);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_socket_goes_with_a_server_that_fails() {
    let place = Workplace::new();
    let (socket, broken) = (place.path("socket"), place.copy_model());
    std::fs::write(broken.join("text_encoder/model.safetensors"), "no weights").unwrap();
    let options = ["--uds", socket.to_str().unwrap(), "--model", broken.to_str().unwrap()];
    let mut server = Server::spawn(&options, &[]);
    assert_eq!(server.wait().code(), Some(2), "{}", server.log());
    server.wait_until("it says why", || server.log().contains("text_encoder"));
    assert!(!socket.exists());
}

#[test]
fn what_cannot_be_served_ends_with_a_line() {
    let place = Workplace::new();
    let broken = place.copy_model();
    std::fs::remove_file(broken.join("prior/diffusion_pytorch_model.safetensors")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let model = model();
    let (broken, model) = (broken.to_str().unwrap(), model.to_str().unwrap());
    for (options, words) in [
        (&["--model", broken][..], "prior"),
        (&["--model", "no/such/model/at/all"], "no/such/model"),
        (&["--steps", "300"], "--steps 300 is more than --max-steps 250"),
        (&["--model", model, "--temperature", "1"], "temperature"),
        (&["--host", "no.such.host.invalid"], "cannot listen on --host no.such.host.invalid"),
        (&["--timeout", "0"], "--timeout"),
        (&["--port", &port], "cannot listen"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.arg("serve").args(["--port", "0"]).args(options).env("HF_HUB_OFFLINE", "1");
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {text}");
        assert!(text.contains(words), "{options:?}: {text}");
    }
}
