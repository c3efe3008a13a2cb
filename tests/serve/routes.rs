//! What the routes answer beside numbers.

use crate::client::{PATIENCE, Reply, Server, send};
use crate::common::{Workplace, model};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

#[test]
fn what_was_computed_is_kept() {
    let server = Server::start(&[]);
    let body = json!({ "prompts": ["a red apple", "two cats"], "seed": 1 });
    let first = server.post("/prior", &body).ok();
    let counts = || {
        ["rows_total", "cache_hits_total", "cache_misses_total"]
            .map(|name| server.metric(&format!("prior_embed_{name}")) as usize)
    };
    assert_eq!(counts(), [2, 0, 2]);
    assert_eq!(server.post("/prior", &body).ok(), first);
    assert_eq!(counts(), [2, 2, 2]);
    // Another seed, other settings, another negative prompt.
    for other in [json!({ "seed": 2 }), json!({ "steps": 3 }), json!({ "negative_prompts": "dark" })] {
        let mut asked = json!({ "prompts": "a red apple", "seed": 1 });
        asked.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        assert_ne!(server.post("/prior", &asked).ok()["image_embeds"][0], first["image_embeds"][0], "{asked}");
    }
    assert_eq!(counts(), [5, 2, 5]);
    assert!(server.metric("prior_embed_cache_bytes") > 5.0 * 192.0 * 4.0);

    let server = Server::start(&["--cache-mb", "0"]);
    assert_eq!(server.post("/prior", &body).ok(), first);
    assert_eq!(server.post("/prior", &body).ok(), first);
    assert_eq!(server.metric("prior_embed_rows_total"), 4.0);
    assert_eq!(server.metric("prior_embed_cache_misses_total"), 0.0);
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    for number in 0..20 {
        let body = json!({ "inputs": format!("number {number}") }).to_string();
        send(&mut stream, "POST", "/embed", &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(Reply::read(&mut stream).status, 200);
    }
    // It, and that of the question.
    server.wait_until("the others are closed", || server.metric("prior_embed_connections") == 2.0);
}

#[test]
fn lines_come_in_order() {
    let server = Server::start(&["--max-batch-size", "8"]);
    let prompts: Vec<String> = (0..100).map(|number| format!("number {number}")).collect();
    let body = json!({ "prompts": prompts, "steps": 3, "seed": 4 });
    let reply = server.post_with("/prior", &[("accept", "application/x-ndjson")], &body);
    assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
    let text = reply.text();
    for (place, line) in text.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["row"], json!(place));
        assert_eq!((&line["prompt"], &line["seed"]), (&json!(prompts[place]), &json!(place + 4)));
        assert_eq!(line["image_embeds"].as_array().unwrap().len(), 192);
    }
    assert_eq!(text.lines().count(), 100);
    assert!(server.metric("prior_embed_batch_rows_count") >= 13.0);
}

/// Makes a model whose prompts of more than 10 tokens have embeddings of NaN.
fn break_long_prompts(model: &Path) {
    let path = model.join("text_encoder/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let tensor = &header["text_model.embeddings.position_embedding.weight"];
    assert_eq!(tensor["dtype"], "F32");
    let row = 4 * tensor["shape"][1].as_u64().unwrap() as usize;
    let start = 8 + header_len + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    for at in (start + 10 * row..start + 11 * row).step_by(4) {
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_row_that_the_model_fails_on_fails_alone() {
    let place = Workplace::new();
    let model = place.copy_model();
    break_long_prompts(&model);
    let options = ["--steps", "3", "--max-wait-ms", "1000", "--cache-mb", "0"];
    let server = Server::start(&[&["--model", model.to_str().unwrap()], &options[..]].concat());
    let long = "a very long prompt with far too many words for this model to take";

    let body = json!({ "prompts": ["short", long, "cats", "rain"] });
    let reply = server.post_with("/prior", &[("accept", "application/x-ndjson")], &body);
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<bool> = lines.iter().map(|line| line.get("error").is_some()).collect();
    assert_eq!((reply.status, failed), (200, vec![false, true, false, false]));
    assert!(lines[1]["error"]["message"].as_str().unwrap().contains("not finite"), "{}", lines[1]);
    assert_eq!(lines[1]["row"], 1);

    // Requests that are computed together fail apart.
    std::thread::scope(|scope| {
        let server = &server;
        let ask =
            |prompt: &'static str| scope.spawn(move || server.post("/prior", &json!({ "prompts": prompt })).status);
        let asked = [ask("short"), ask(long), ask("cats"), ask(long)];
        assert_eq!(asked.map(|asked| asked.join().unwrap()), [200, 500, 200, 500]);
    });
    let reply = server.post("/embed", &json!({ "inputs": ["short", long] }));
    assert_eq!((reply.status, &reply.json()["error_type"]), (424, &json!("Backend")));
    assert_eq!(server.metric("prior_embed_failed_rows_total"), 4.0);
    server.wait_until("it is logged", || server.log().contains("POST /embed 424"));
    let log = server.log();
    assert!(log.contains("an embedding is not finite") && !log.contains("very long prompt"), "{log}");
}

#[test]
fn prompts_that_are_too_long() {
    let server = Server::start(&[]);
    let long = "many words ".repeat(100);
    let refused = |path: &str, body: Value, status: u16, words: &str| {
        let reply = server.post(path, &body);
        assert!(reply.status == status && reply.text().contains(words), "{reply:?}");
    };
    refused("/embed", json!({ "inputs": ["a", long] }), 413, "inputs[1] has more than the 48 tokens");
    refused("/v1/embeddings", json!({ "input": long }), 400, "context_length_exceeded");
    refused("/prior", json!({ "prompts": long, "truncate": false }), 400, "prompts[0] has more than");
    refused(
        "/prior",
        json!({ "prompts": "a", "negative_prompts": long, "truncate": false }),
        400,
        "negative_prompts[0]",
    );
    server.post("/embed", &json!({ "inputs": ["a", long], "truncate": true })).ok();
    assert_eq!(server.post("/prior", &json!({ "prompts": ["a", long] })).ok()["truncated"], json!([1]));

    let server = Server::start(&["--truncate"]);
    let answer = server.post("/v1/embeddings", &json!({ "input": long })).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], 48);
    assert_eq!(server.post("/embed", &json!({ "inputs": long, "truncate": false })).status, 413);
}

#[test]
fn a_sequence_of_latents_has_three_dimensions() {
    let path = model().parent().unwrap().parent().unwrap().join("shap_e/shap_e");
    let server = Server::start(&["--model", path.to_str().unwrap(), "--steps", "3"]);
    let [tokens, dim] =
        ["/row_shape/0", "/row_shape/1"].map(|at| server.get("/info").ok().pointer(at).unwrap().as_u64().unwrap());
    let answer = server.post("/prior", &json!({ "prompts": ["a", "b"] })).ok();
    assert_eq!(answer["shape"], json!([2, tokens, dim]));
    let reply = server.post_with("/prior", &[("accept", "application/x-npy")], &json!({ "prompts": ["a", "b"] }));
    assert!(String::from_utf8_lossy(&reply.body[..128]).contains(&format!("(2, {tokens}, {dim})")), "{:?}", reply.body);
    let reply = server.post("/prior", &json!({ "prompts": "a", "negative_prompts": "b" }));
    assert!(reply.status == 400 && reply.text().contains("takes no negative prompts"), "{reply:?}");
}

#[test]
fn it_tells_of_itself() {
    let server = Server::start(&["--model", model().to_str().unwrap(), "--max-rows", "9"]);
    let models = server.get("/v1/models").ok();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("kandinsky22")));
    let info = server.get("/info").ok();
    assert_eq!((&info["model_id"], &info["max_client_batch_size"]), (&json!("kandinsky22"), &json!(9)));
    assert_eq!(server.get("/health").ok(), json!({ "status": "ok" }));
    let openapi = server.get("/openapi.json").ok();
    assert_eq!(openapi["openapi"], "3.1.0");
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("prior_embed_") || name == "process_resident_memory_bytes", "{line}");
        value.parse::<f64>().unwrap();
    }
    assert_eq!(server.metric("prior_embed_ready"), 1.0);
    let reply = server.post("/v1/embeddings", &json!({ "input": "a", "model": "gpt" }));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn a_unix_domain_socket() {
    let place = Workplace::new();
    let path = place.path("socket");
    let options = ["--uds", path.to_str().unwrap()];
    let mut server = Server::spawn(&options, &[]);
    assert_eq!(server.address, path.to_str().unwrap());
    let ask = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        send(&mut stream, "GET", "/health", &[], b"");
        Reply::read(&mut stream).status
    };
    server.wait_until("it is ready", || ask() == 200);
    // A second server does not take it.
    let mut other = Server::spawn(&options, &[]);
    assert_eq!(other.wait().code(), Some(2));
    other.wait_until("it says why", || other.log().contains("in use by another server"));
    assert_eq!(ask(), 200);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!path.exists());
    // The socket of one that was killed is in nobody's way; another file is.
    drop(Server::spawn(&options, &[]));
    assert!(path.exists());
    let server = Server::spawn(&options, &[]);
    server.wait_until("it is ready", || ask() == 200);
    drop(server);
    fs::write(place.path("file"), "mine").unwrap();
    let mut refused = Server::spawn(&["--uds", place.path("file").to_str().unwrap()], &[]);
    assert_eq!(refused.wait().code(), Some(2));
    assert_eq!(fs::read(place.path("file")).unwrap(), b"mine");
}
