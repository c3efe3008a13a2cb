//! `GET /openapi.json`.

use crate::serve::answer::response;
use axum::body::Body;
use axum::http::Response;

/// The description of all routes, in OpenAPI 3.1.
pub(in crate::serve) const OPENAPI: &str = include_str!("../openapi.json");

/// Answers `GET /openapi.json`.
pub(in crate::serve) async fn openapi() -> Response<Body> {
    response("application/json", OPENAPI)
}
