//! `POST /embed`, as Hugging Face's text-embeddings-inference has it.
//!
//! Source: text-embeddings-inference `router/src/http/types.rs` and `server.rs`.

use crate::serve::answer::{Embedded, Form, json};
use crate::serve::ask::Ask;
use crate::serve::body::{self, Texts};
use crate::serve::failure::{Failure, Style};
use crate::serve::server::Server;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use serde::Deserialize;
use std::sync::Arc;

/// The body of a request. Fields that are not known are ignored, as in the original.
#[derive(Debug, Deserialize)]
struct EmbedRequest {
    inputs: Texts,
    truncate: Option<bool>,
    normalize: Option<bool>,
}

/// Answers `POST /embed`.
pub(in crate::serve) async fn embed(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    answer(&server, request).await.unwrap_or_else(|failure| failure.response(Style::Tei))
}

async fn answer(server: &Arc<Server>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let asked: EmbedRequest = body::read(&parts.headers, body, &server.options.limits).await?;
    let truncate = asked.truncate.unwrap_or(server.options.defaults.truncate);
    let ask = Ask::new(asked.inputs.into_vec(), "inputs", truncate);
    let mut pending = server.embed(&ask, &parts)?;
    let embeddings = pending.all().await?;
    let form = Form { normalize: asked.normalize.unwrap_or(true), ..Form::default() };
    let embedded = Embedded::new(&pending.rows, &embeddings, form)?;
    Ok(json(&embedded.lists()?))
}
