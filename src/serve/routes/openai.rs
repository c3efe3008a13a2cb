//! `POST /v1/embeddings` and `GET /v1/models`, as OpenAI has them.
//!
//! Source: OpenAI's API reference, "Create embeddings".

use crate::serve::answer::{Embedded, Form, json};
use crate::serve::ask::Ask;
use crate::serve::body::{self, Texts};
use crate::serve::failure::{Failure, Kind, Style};
use crate::serve::server::Server;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The body of a request. `normalize` is ours.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingsRequest {
    input: Texts,
    model: Option<String>,
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<u64>,
    /// For OpenAI's own records.
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(default)]
    normalize: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    /// The bytes of float32, little-endian.
    Base64,
}

#[derive(Debug, Serialize)]
struct EmbeddingsResponse<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Answers `POST /v1/embeddings`.
pub(in crate::serve) async fn embeddings(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    embed(&server, request).await.unwrap_or_else(|failure| failure.response(Style::OpenAi))
}

async fn embed(server: &Arc<Server>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let asked: EmbeddingsRequest = body::read(&parts.headers, body, &server.options.limits).await?;
    let info = &server.model()?.info;
    if let Some(model) = asked.model.filter(|model| *model != info.model_id) {
        let message = format!("there is no model {model:?}; this server has {:?}", info.model_id);
        return Err(Failure::new(Kind::UnknownModel, message).about("model"));
    }
    if let Some(dimensions) = asked.dimensions.filter(|dimensions| *dimensions != info.embedding_dim as u64) {
        let dim = info.embedding_dim;
        let message = format!("dimensions is {dimensions}; the model's embeddings have {dim}, and cannot be shortened");
        return Err(Failure::of("dimensions", message));
    }
    let prompts = asked.input.into_vec();
    if let Some(place) = prompts.iter().position(String::is_empty) {
        return Err(Failure::of("input", format!("input[{place}] is empty")));
    }
    let ask = Ask::new(prompts, "input", server.options.defaults.truncate);
    let mut pending = server.embed(&ask, &parts)?;
    let embeddings = pending.all().await?;
    let form = Form { normalize: asked.normalize, ..Form::default() };
    let lists = Embedded::new(&pending.rows, &embeddings, form)?.lists()?;
    let numbers = |list: Vec<f32>| match asked.encoding_format {
        Some(EncodingFormat::Base64) => {
            let bytes: Vec<u8> = list.iter().flat_map(|number| number.to_le_bytes()).collect();
            Numbers::Base64(STANDARD.encode(bytes))
        }
        _ => Numbers::Floats(list),
    };
    let object = |(index, list)| EmbeddingObject { object: "embedding", index, embedding: numbers(list) };
    let usage = Usage { prompt_tokens: pending.tokens, total_tokens: pending.tokens };
    let data = lists.into_iter().enumerate().map(object).collect();
    Ok(json(&EmbeddingsResponse { object: "list", data, model: &info.model_id, usage }))
}

#[derive(Debug, Serialize)]
struct Models<'a> {
    object: &'static str,
    data: [ModelObject<'a>; 1],
}

#[derive(Debug, Serialize)]
struct ModelObject<'a> {
    id: &'a str,
    object: &'static str,
    /// Not known.
    created: u64,
    owned_by: &'static str,
}

/// Answers `GET /v1/models`.
pub(in crate::serve) async fn models(State(server): State<Arc<Server>>) -> Response<Body> {
    let model = ModelObject { id: &server.options.model, object: "model", created: 0, owned_by: "prior-embed" };
    json(&Models { object: "list", data: [model] })
}
