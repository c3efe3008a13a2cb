//! The numbers are those of the command line.

use crate::client::{Server, assert_close, numbers, rows};
use crate::common::{Workplace, assert_done, model, read_npy};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::thread;

/// A row of a file of prompts, as `/prior` has it.
fn asked(number: u64) -> Value {
    let negative = if number.is_multiple_of(3) { "dark" } else { "" };
    let prompts = ["a red apple", "two cats", "rain over a house by the sea", "", "a smiling face with a hat"];
    json!({
        "prompt": format!("{} {}", prompts[number as usize % 5], number / 10),
        "negative_prompt": negative,
        "seed": 100 + number * 7,
        "steps": 5 + number % 2,
        "guidance_scale": if number.is_multiple_of(4) { 1.0 } else { 3.5 },
    })
}

/// The embeddings of rows by the command line.
fn by_command_line(place: &Workplace, options: &[&str], all: &[Value]) -> Vec<Vec<f32>> {
    let lines: String = all.iter().map(|row| format!("{row}\n")).collect();
    fs::write(place.path("rows.jsonl"), lines).unwrap();
    let mut command = place.bare();
    command.args(["--prompts", "rows.jsonl", "--out", "rows.npy", "--overwrite", "-q"]).args(options);
    assert_done(&mut command);
    let array = read_npy(&fs::read(place.path("rows.npy")).unwrap());
    array.rows().into_iter().map(|row| row.to_vec()).collect()
}

/// Many clients at once, whose rows are computed in whatever batches.
fn assert_equal(options: &[&str]) {
    let all: Vec<Value> = (0..48).map(asked).collect();
    let expected = by_command_line(&Workplace::new(), options, &all);
    let server = Server::start(&[options, &["--cache-mb", "0", "--max-wait-ms", "20"]].concat());
    thread::scope(|scope| {
        for (part, expected) in all.chunks(2).zip(expected.chunks(2)) {
            let server = &server;
            scope.spawn(move || {
                for (row, expected) in part.iter().zip(expected) {
                    let body = json!({
                        "prompts": [row["prompt"], "beside it"],
                        "negative_prompts": [row["negative_prompt"], "other"],
                        "seeds": [row["seed"], 3],
                        "steps": row["steps"],
                        "guidance_scale": row["guidance_scale"],
                    });
                    let answer = server.post("/prior", &body).ok();
                    assert_close(&rows(&answer["image_embeds"])[0], expected, &row.to_string());
                    assert_eq!(answer["seeds"], json!([row["seed"], 3]));
                }
            });
        }
    });
    assert_eq!(server.metric("prior_embed_rows_total"), 96.0);
}

#[test]
fn whatever_the_batch() {
    assert_equal(&[]);
}

#[test]
fn of_another_model_too() {
    assert_equal(&["--model", model().to_str().unwrap()]);
}

#[test]
fn files_are_those_of_the_command_line() {
    let place = Workplace::new();
    let prompts = ["a red apple", "two cats", "rain"];
    let server = Server::start(&["--cache-mb", "0"]);
    for (extension, media_type) in
        [("npy", "application/x-npy"), ("safetensors", "application/octet-stream"), ("jsonl", "application/x-ndjson")]
    {
        let out = format!("out.{extension}");
        let mut command = place.bare();
        prompts.iter().for_each(|prompt| {
            command.args(["-p", prompt]);
        });
        assert_done(command.args(["--seed", "7", "--samples-per-prompt", "2", "--normalize", "-q", "-o", &out]));
        let expected = fs::read(place.path(&out)).unwrap();
        let body = json!({ "prompts": prompts, "seed": 7, "samples": 2, "normalize": true });
        let reply = server.post_with("/prior", &[("accept", media_type)], &body);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(media_type)));
        if extension == "jsonl" {
            let lines = |bytes: &[u8]| -> Vec<Value> {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
            };
            assert_eq!(reply.body.iter().filter(|byte| **byte == b'\n').count(), 6);
            for (mut found, mut expected) in lines(&reply.body).into_iter().zip(lines(&expected)) {
                let take = |line: &mut Value| numbers(&line["image_embeds"].take());
                assert_close(&take(&mut found), &take(&mut expected), extension);
                assert_eq!(found, expected);
            }
        } else if extension == "npy" {
            assert_eq!((reply.body.len(), &reply.body[..128]), (expected.len(), &expected[..128]));
            // Another batch may round in another way.
            assert_close(&floats(&reply.body[128..]), &floats(&expected[128..]), extension);
        } else {
            let (found, expected) = (SafeTensors::deserialize(&reply.body), SafeTensors::deserialize(&expected));
            let (found, expected) = (found.unwrap(), expected.unwrap());
            assert_eq!(found.names(), ["image_embeds"]);
            let [found, expected] = [&found, &expected].map(|file| file.tensor("image_embeds").unwrap());
            assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()));
            assert_close(&floats(found.data()), &floats(expected.data()), extension);
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn negative_embeddings_are_those_of_the_command_line() {
    let place = Workplace::new();
    let mut command = place.bare();
    command.args(["-p", "a red apple", "-p", "two cats", "-n", "dark", "--seed", "7", "-q", "-o", "out.safetensors"]);
    assert_done(&mut command);
    let expected = fs::read(place.path("out.safetensors")).unwrap();
    let server = Server::start(&[]);
    let body = json!({
        "prompts": ["a red apple", "two cats"], "negative_prompts": "dark", "seed": 7, "negative_image_embeds": true,
    });
    let reply = server.post_with("/prior", &[("accept", "application/octet-stream")], &body);
    let [found, expected] = [&reply.body, &expected].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let answer = server.post("/prior", &body).ok();
    assert_eq!((&answer["shape"][0], &answer["seeds"]), (&json!(2), &json!([7, 8])));
    let lines = server.post_with("/prior", &[("accept", "application/x-ndjson")], &body).text();
    assert_eq!(lines.lines().count(), 2);
    for name in ["image_embeds", "negative_image_embeds"] {
        let [found, expected] = [&found, &expected].map(|file| floats(file.tensor(name).unwrap().data()));
        assert_close(&found, &expected, name);
        assert_eq!(rows(&answer[name]).concat(), found);
        let of_lines = lines.lines().map(|line| numbers(&serde_json::from_str::<Value>(line).unwrap()[name]));
        assert_eq!(of_lines.collect::<Vec<_>>().concat(), found);
    }
    let refused = |headers: &[(&str, &str)], body: &Value, words: &str| {
        let reply = server.post_with("/prior", headers, body);
        assert!(reply.status == 400 && reply.text().contains(words), "{reply:?}");
    };
    refused(&[("accept", "application/x-npy")], &body, "holds one array");
}

#[test]
fn without_a_negative_prompt_it_is_that_of_a_black_image() {
    let large = model();
    let body =
        json!({ "prompts": ["a red apple", "two cats"], "samples": 2, "seed": 7, "negative_image_embeds": true });
    // A file has it, or an image encoder makes it.
    for model in ["emoji", large.to_str().unwrap()] {
        let place = Workplace::new();
        let mut command = place.bare();
        command.args(["-p", "a red apple", "-p", "two cats", "--samples-per-prompt", "2", "--seed", "7", "-q"]);
        assert_done(command.args(["--model", model, "-o", "out.safetensors"]));
        let expected = fs::read(place.path("out.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let server = Server::start(&["--model", model, "--cache-mb", "0"]);
        // The first of several asks for it while the others wait.
        let answers: Vec<Value> = thread::scope(|scope| {
            let ask = || scope.spawn(|| server.post("/prior", &body).ok());
            let asked: Vec<_> = (0..4).map(|_| ask()).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        let lines = server.post_with("/prior", &[("accept", "application/x-ndjson")], &body).text();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let reply = server.post_with("/prior", &[("accept", "application/octet-stream")], &body);
        let file = SafeTensors::deserialize(&reply.body).unwrap();
        for name in ["image_embeds", "negative_image_embeds"] {
            let found = floats(file.tensor(name).unwrap().data());
            assert_close(&found, &floats(expected.tensor(name).unwrap().data()), name);
            answers.iter().for_each(|answer| assert_eq!(rows(&answer[name]).concat(), found));
            assert_eq!(lines.iter().flat_map(|line| numbers(&line[name])).collect::<Vec<_>>(), found);
        }
        // No row of the queue is spent on it.
        assert_eq!(server.metric("prior_embed_rows_total"), 6.0 * 4.0);
    }
}

#[test]
fn what_has_no_black_image_is_refused() {
    let body = json!({ "prompts": "a", "negative_image_embeds": true });
    let root = model().parent().unwrap().parent().unwrap().to_path_buf();
    for (model, words) in [
        ("pipelines/no_image_encoder", "has no image encoder here to make it with; give negative_prompts"),
        ("shap_e/shap_e", "has no negative embeddings"),
    ] {
        let server = Server::start(&["--steps", "3", "--model", root.join(model).to_str().unwrap()]);
        let reply = server.post("/prior", &body);
        let param = &reply.json()["error"]["param"];
        assert!(reply.status == 400 && reply.text().contains(words) && param == "negative_image_embeds", "{reply:?}");
        assert_eq!(server.metric("prior_embed_rows_total"), 0.0);
    }
    // The server's own negative prompt does without.
    let path = root.join("pipelines/no_image_encoder");
    let server = Server::start(&["--steps", "3", "--negative-prompt", "dark", "--model", path.to_str().unwrap()]);
    let given = json!({ "prompts": "a", "negative_image_embeds": true, "negative_prompts": "dark" });
    assert_eq!(server.post("/prior", &body).ok(), server.post("/prior", &given).ok());
}

#[test]
fn every_route_has_the_same_numbers() {
    let place = Workplace::new();
    let texts = ["a red apple", "two cats"];
    let expected = by_command_line(&place, &[], &texts.map(|text| json!({ "prompt": text })));
    let server = Server::start(&[]);

    let listed = server.post("/v1/embeddings", &json!({ "input": texts, "model": "emoji", "user": "me" })).ok();
    assert_eq!((&listed["object"], &listed["model"]), (&json!("list"), &json!("emoji")));
    let tokens = |input: Value| server.post("/v1/embeddings", &json!({ "input": input })).ok()["usage"].take();
    let count = |usage: &Value| usage["prompt_tokens"].as_u64().unwrap();
    let of_each: u64 = texts.iter().map(|text| count(&tokens(json!(text)))).sum();
    assert_eq!(listed["usage"], json!({ "prompt_tokens": of_each, "total_tokens": of_each }));
    // At least a token a word, and those of start and end.
    assert!(of_each >= 2 + 3 + 2 + 2, "{of_each}");
    let body = json!({ "input": texts, "model": "emoji", "encoding_format": "base64", "dimensions": 192 });
    let base64 = server.post("/v1/embeddings", &body).ok();
    let unit = rows(&server.post("/embed", &json!({ "inputs": texts })).ok());
    let raw = rows(&server.post("/embed", &json!({ "inputs": texts, "normalize": false, "unknown": 1 })).ok());
    for (place, expected) in expected.iter().enumerate() {
        let (object, coded) = (&listed["data"][place], &base64["data"][place]);
        assert_eq!((&object["index"], &object["object"]), (&json!(place), &json!("embedding")));
        assert_close(&numbers(&object["embedding"]), expected, "floats");
        let bytes = STANDARD.decode(coded["embedding"].as_str().unwrap()).unwrap();
        let decoded = floats(&bytes);
        assert_eq!(decoded, numbers(&object["embedding"]));
        assert_eq!(raw[place], decoded);
        let length = decoded.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        let scaled: Vec<f32> = decoded.iter().map(|number| (f64::from(*number) / length) as f32).collect();
        assert_close(&unit[place], &scaled, "scaled");
    }
    let one = server.post("/v1/embeddings", &json!({ "input": texts[0] })).ok();
    assert_eq!(one["data"].as_array().unwrap().len(), 1);
    assert_eq!(one["data"][0], listed["data"][0]);
    assert_eq!(rows(&server.post("/embed", &json!({ "inputs": texts[0] })).ok()), unit[..1]);
}

#[test]
fn defaults_are_the_servers_own() {
    let place = Workplace::new();
    let options = ["--seed", "5", "--steps", "3", "--guidance-scale", "2", "-n", "dark"];
    let prompts = [json!({ "prompt": "a red apple" }), json!({ "prompt": "two cats" })];
    let expected = by_command_line(&place, &options, &prompts);
    let server = Server::start(&options);
    let answer = server.post("/embed", &json!({ "inputs": ["a red apple", "two cats"], "normalize": false })).ok();
    rows(&answer).iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected, "defaults"));
    let info = server.get("/info").ok();
    assert_eq!((&info["steps"], &info["guidance_scale"]), (&json!(3), &json!(2.0)));

    let by_prompt = by_command_line(&place, &["--seed-by", "prompt"], &prompts);
    let server = Server::start(&["--seed-by", "prompt"]);
    let turned = server.post("/v1/embeddings", &json!({ "input": ["two cats", "a red apple"] })).ok();
    assert_close(&numbers(&turned["data"][1]["embedding"]), &by_prompt[0], "seed by prompt");
    assert_close(&numbers(&turned["data"][0]["embedding"]), &by_prompt[1], "seed by prompt");
}
