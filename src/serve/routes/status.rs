//! `GET /health`, `/info` and `/metrics`.

use crate::serve::answer::{json, response};
use crate::serve::failure::Style;
use crate::serve::server::Server;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// Answers `GET /health`: 200 while the server takes requests.
pub(in crate::serve) async fn health(State(server): State<Arc<Server>>) -> Response<Body> {
    match server.model() {
        Ok(_) => json(&Health { status: "ok" }),
        Err(failure) => failure.response(Style::Tei),
    }
}

/// Answers `GET /info`.
pub(in crate::serve) async fn info(State(server): State<Arc<Server>>) -> Response<Body> {
    match server.model() {
        Ok(model) => json(&model.info),
        Err(failure) => failure.response(Style::Tei),
    }
}

/// Answers `GET /metrics`.
pub(in crate::serve) async fn metrics(State(server): State<Arc<Server>>) -> Response<Body> {
    response("text/plain; version=0.0.4; charset=utf-8", server.metrics_text())
}
