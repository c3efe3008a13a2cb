//! Requests that are refused, each with one clear answer.

use crate::client::Server;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn what_is_wrong_is_told() {
    let server = Server::start(&["--max-steps", "50", "--max-rows", "20", "--max-prompt-bytes", "1000"]);
    let long = "x".repeat(1001);
    let many = vec!["a"; 21];
    let prior = |body: Value| ("/prior", body.to_string());
    let openai = |body: Value| ("/v1/embeddings", body.to_string());
    let tei = |body: Value| ("/embed", body.to_string());
    let text = |path, body: &str| (path, body.to_string());
    for ((path, body), status, words) in [
        (prior(json!({})), 400, "missing field `prompts`"),
        (prior(json!({ "prompts": [] })), 400, "prompts must not be empty"),
        (prior(json!({ "prompts": 3 })), 400, "prompts: invalid type: integer `3`, expected a string or a list"),
        (prior(json!({ "prompts": "a", "step": 3 })), 400, "unknown field `step`"),
        (prior(json!({ "prompts": "a", "steps": 0 })), 400, "steps is 0; it must be between 1 and 50"),
        (prior(json!({ "prompts": "a", "steps": 51 })), 400, "steps is 51"),
        (prior(json!({ "prompts": "a", "steps": -1 })), 400, "steps: invalid value: integer `-1`"),
        (prior(json!({ "prompts": "a", "steps": 2.5 })), 400, "steps: invalid type: floating point `2.5`"),
        (prior(json!({ "prompts": "a", "seed": -1 })), 400, "seed: invalid value: integer `-1`"),
        (text("/prior", r#"{"prompts": "a", "seed": 18446744073709551616}"#), 400, "seed: invalid type"),
        (prior(json!({ "prompts": ["a", "b"], "seed": u64::MAX })), 400, "the seed of row 1 would not be below 2^64"),
        (prior(json!({ "prompts": "a", "seeds": [1, 2] })), 400, "seeds has 2 items for 1 prompts"),
        (prior(json!({ "prompts": "a", "seed": 1, "seeds": [1] })), 400, "seed and seeds exclude each other"),
        (prior(json!({ "prompts": "a", "negative_prompts": ["b", "c"] })), 400, "negative_prompts has 2 items"),
        (text("/prior", r#"{"prompts": "a", "guidance_scale": NaN}"#), 400, "not valid JSON"),
        (text("/prior", r#"{"prompts": "a", "guidance_scale": 1e999}"#), 400, "number out of range"),
        (prior(json!({ "prompts": "a", "temperature": 0.5 })), 400, "temperature"),
        (prior(json!({ "prompts": "a", "samples": 0 })), 400, "samples must not be 0"),
        (prior(json!({ "prompts": "a", "samples": u64::MAX })), 400, "rows are more than the 20"),
        (prior(json!({ "prompts": ["a", "b"], "samples": 11 })), 400, "22 rows are more than the 20"),
        (prior(json!({ "prompts": ["a", long] })), 400, "prompts[1] has 1001 bytes, more than the 1000 allowed"),
        (prior(json!({ "prompts": "a", "negative_prompts": long })), 400, "negative_prompts[0] has 1001 bytes"),
        (openai(json!({ "input": "" })), 400, "input[0] is empty"),
        (openai(json!({ "input": [] })), 400, "input must not be empty"),
        (openai(json!({ "input": [1, 2] })), 400, "input[0]: token ids"),
        (openai(json!({ "input": [[1, 2]] })), 400, "input[0]: a list in a list"),
        (openai(json!({ "input": "a", "encoding_format": "hex" })), 400, "encoding_format: unknown variant `hex`"),
        (openai(json!({ "input": "a", "dimensions": 64 })), 400, "dimensions is 64"),
        (openai(json!({ "input": "a", "foo": 64 })), 400, "unknown field `foo`"),
        (tei(json!({ "inputs": 1 })), 422, "inputs: invalid type"),
        (tei(json!({ "inputs": [] })), 422, "inputs must not be empty"),
        (tei(json!({ "inputs": "a", "normalize": "yes" })), 422, "normalize: invalid type"),
        (tei(json!({ "inputs": many })), 413, "21 rows are more than the 20"),
        (text("/embed", ""), 400, "not valid JSON: EOF"),
        (text("/embed", "{\"inputs\": \"a\"} {}"), 400, "not valid JSON: trailing characters"),
        (text("/embed", "[]"), 422, "invalid length 0"),
    ] {
        let reply = server.request("POST", path, &[JSON], body.as_bytes());
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        let answer = reply.json();
        let message = if path == "/embed" { &answer["error"] } else { &answer["error"]["message"] };
        let message = message.as_str().unwrap();
        assert!(message.contains(words) && message.lines().count() == 1, "{body}: {message}");
        let kind = if path == "/embed" { &answer["error_type"] } else { &answer["error"]["type"] };
        assert_eq!(kind, if path == "/embed" { "Validation" } else { "invalid_request_error" });
    }
    assert_eq!(server.metric("prior_embed_rows_total"), 0.0);
    server.post("/prior", &json!({ "prompts": vec!["a"; 20], "steps": 2 })).ok();
}

#[test]
fn bodies_that_are_no_json() {
    let server = Server::start(&[]);
    let deep = format!("{{\"prompts\": {}", "[".repeat(1_000_000));
    // What is ignored is read without recursion.
    let ignored = format!("{{\"inputs\": \"a\", \"x\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(server.request("POST", "/embed", &[JSON], ignored.as_bytes()).status, 200);
    let bad = b"{\"prompts\": \"a\xffb\"}".to_vec();
    for (path, body, words) in [
        ("/prior", deep.into_bytes(), "prompts[0]"),
        ("/prior", bad, "not UTF-8, from byte 14 on"),
        ("/prior", b"{\"prompts\": \"a\xed\xa0\x80\"}".to_vec(), "not UTF-8"),
        ("/prior", br#"{"prompts": "\ud800"}"#.to_vec(), "not valid JSON"),
    ] {
        let reply = server.request("POST", path, &[JSON], &body);
        assert!(reply.status == 400 && reply.text().contains(words), "{words}: {reply:?}");
    }
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
        let reply = server.request("POST", "/prior", &[("content-type", media_type)], br#"{"prompts": "a"}"#);
        assert!(reply.status == 415 && reply.text().contains("Content-Type: application/json"), "{reply:?}");
    }
    let with_charset = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(server.request("POST", "/prior", &with_charset, br#"{"prompts": "a"}"#).status, 200);
    let reply = server.post_with("/prior", &[("accept", "image/png")], &json!({ "prompts": "a" }));
    assert!(reply.status == 406 && reply.text().contains("application/x-npy"), "{reply:?}");
}

#[test]
fn other_routes_and_methods() {
    let server = Server::start(&[]);
    let before = server.metric("prior_embed_requests_total");
    for (method, path, status, words) in [
        ("GET", "/index.html", 404, "there is no /index.html"),
        ("GET", "/v1/embeddings", 405, "use POST"),
        ("DELETE", "/v1/embeddings", 405, "does not take DELETE"),
        ("POST", "/health", 405, "use GET"),
        ("GET", "/../etc/passwd", 404, "unknown_url"),
        ("OPTIONS", "/prior", 405, "does not take OPTIONS"),
    ] {
        let reply = server.request(method, path, &[], b"");
        assert!(reply.status == status && reply.text().contains(words), "{method} {path}: {reply:?}");
    }
    // And one that asked for the counters.
    assert_eq!(server.metric("prior_embed_requests_total") - before, 7.0);
}

#[test]
fn keys() {
    let server = Server::spawn(&["--api-key", "secret"], &[]);
    server.wait_until("it is ready", || server.get("/health").status == 200);
    let body = json!({ "input": "a", "prompts": "a", "inputs": "a" });
    for path in ["/v1/embeddings", "/embed", "/prior", "/info", "/v1/models", "/nothing"] {
        let method = if path.contains("embed") || path == "/prior" { "POST" } else { "GET" };
        for value in ["Bearer wrong", "Bearer secret2", "Basic secret", ""] {
            let headers = [JSON, ("authorization", value)];
            let reply = server.request(method, path, &headers, body.to_string().as_bytes());
            assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{path}: {reply:?}");
            assert!(!reply.text().contains("secret"));
        }
    }
    let reply = server.request("GET", "/v1/models", &[], b"");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    let key = [("authorization", "Bearer secret")];
    server.post_with("/v1/embeddings", &key, &json!({ "input": "a" })).ok();
    for path in ["/health", "/metrics", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert!(!server.log().contains("secret"));
}

#[test]
fn other_sites_are_kept_out() {
    let server = Server::start(&[]);
    let status = |path, host| server.request("GET", path, &[("host", host)], b"").status;
    assert_eq!((status("/info", "localhost:8080"), status("/info", "rebound.example.org")), (200, 401));
    assert_eq!(status("/health", "rebound.example.org"), 200);
}

#[test]
fn keys_come_from_the_environment_or_a_file_too() {
    let place = crate::common::Workplace::new();
    std::fs::write(place.path("key"), "from-file\n").unwrap();
    let file = place.path("key");
    let options = ["--api-key-file", file.to_str().unwrap()];
    for (options, environment, key) in [
        (&options[..], &[("PRIOR_EMBED_API_KEY", "unused")][..], "Bearer from-file"),
        (&[], &[("PRIOR_EMBED_API_KEY", "from-env")], "Bearer from-env"),
    ] {
        let server = Server::spawn(options, environment);
        let status = |value| server.request("GET", "/v1/models", &[("authorization", value)], b"").status;
        assert_eq!((status("Bearer x"), status(key)), (401, 200), "{key}");
    }
    std::fs::write(place.path("key"), "\n").unwrap();
    for (options, environment) in [(&options[..], &[][..]), (&[], &[("PRIOR_EMBED_API_KEY", "two words")])] {
        let mut server = Server::spawn(options, environment);
        assert_eq!(server.wait().code(), Some(2));
        server.wait_until("it says why", || server.log().contains("holds no key"));
    }
}
