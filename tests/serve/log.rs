//! What is logged.

use crate::client::Server;
use serde_json::{Value, json};

#[test]
fn requests_have_ids() {
    let server = Server::start(&[]);
    let body = json!({ "inputs": "a secret wish" });
    let reply = server.post_with("/embed", &[("x-request-id", "client-7")], &body);
    assert_eq!(reply.header("x-request-id"), Some("client-7"));
    let own = |headers: &[(&str, &str)]| {
        server.post_with("/embed", headers, &body).header("x-request-id").unwrap().to_string()
    };
    let ids = [own(&[]), own(&[]), own(&[("x-request-id", &"x".repeat(129))]), own(&[("x-request-id", "\u{e9}")])];
    for (place, id) in ids.iter().enumerate() {
        assert!(id.len() < 40 && !ids[..place].contains(id), "{ids:?}");
    }
    let refused = server.request("POST", "/embed", &[("x-request-id", "client-8")], b"");
    assert_eq!((refused.status, refused.header("x-request-id")), (415, Some("client-8")));
    server.wait_until("it is logged", || server.log().contains("client-8"));
    let log = server.log();
    assert!(log.contains("POST /embed 200 ") && log.contains(", rows 1, id client-7"), "{log}");
    assert!(!log.contains("secret") && !log.contains("/health"), "{log}");
}

#[test]
fn lines_may_be_json() {
    let options = ["--log-format", "json", "--log-prompts", "--host", "0.0.0.0"];
    let server = Server::start(&options);
    server.post_with("/embed", &[("x-request-id", "it")], &json!({ "inputs": ["a\nb", "\u{1b}[31m"] })).ok();
    server.wait_until("it is logged", || server.log().contains("\"it\""));
    let lines: Vec<Value> = server.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |message: &str| lines.iter().find(|line| line["message"].as_str().unwrap().contains(message)).unwrap();
    assert_eq!(find("ready")["level"], "info");
    assert!(find("may use the server")["level"] == "warning", "{lines:?}");
    let line = find("request");
    let found = ["id", "method", "path", "status", "rows", "prompts"].map(|key| line[key].clone());
    let expected = [json!("it"), json!("POST"), json!("/embed"), json!(200), json!(2), json!(["a\nb", "\u{1b}[31m"])];
    assert_eq!(found, expected);
    assert!(line["milliseconds"].as_f64().unwrap() > 0.0 && line["time"].as_f64().unwrap() > 1.7e9);
}

#[test]
fn a_quiet_server_says_nothing() {
    let server = Server::start(&["--quiet"]);
    server.post("/embed", &json!({ "inputs": "a" })).ok();
    assert_eq!(server.log(), "");
}
