//! `POST /draw`: pictures of the built-in model's embeddings, for the page.

use crate::serve::answer::json;
use crate::serve::body;
use crate::serve::failure::{Failure, Kind, Style};
use crate::serve::server::Server;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrawRequest {
    /// One list a row.
    image_embeds: Vec<Vec<f32>>,
}

#[derive(Debug, Serialize)]
struct DrawResponse {
    pictures: Vec<Picture>,
}

#[derive(Debug, Serialize)]
struct Picture {
    /// In base64.
    png: String,
    nearest: Nearest,
}

/// The emoji whose pictures are nearest to the embedding.
#[derive(Debug, Serialize)]
struct Nearest {
    emoji: String,
    name: String,
    cosine: f64,
}

/// Answers `POST /draw`.
pub(in crate::serve) async fn draw(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    answer(&server, request).await.unwrap_or_else(|failure| failure.response(Style::OpenAi))
}

async fn answer(server: &Arc<Server>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let asked: DrawRequest = body::read(&parts.headers, body, &server.options.limits).await?;
    let info = &server.model()?.info;
    if !info.has_decoder {
        return Err(Failure::new(Kind::Invalid, "there is no decoder here: only the built-in model has one"));
    }
    let embeds = rows(asked.image_embeds, info.embedding_dim, server.options.limits.rows)?;
    let server = Arc::clone(server);
    let drawing = tokio::task::spawn_blocking(move || server.artist().and_then(|artist| artist.draw(&embeds)));
    let drawn = drawing.await.map_err(Failure::internal)?;
    let drawn = drawn.map_err(|error| match error.downcast_ref::<crate::Error>() {
        Some(error @ crate::Error::Option { .. }) => Failure::from(error).about("image_embeds"),
        _ => Failure::internal(format!("{error:#}")),
    })?;
    let pictures = drawn.into_iter().map(|drawn| Picture {
        png: STANDARD.encode(drawn.png),
        nearest: Nearest { emoji: drawn.emoji, name: drawn.name, cosine: drawn.cosine },
    });
    Ok(json(&DrawResponse { pictures: pictures.collect() }))
}

/// Lists as an array.
///
/// # Errors
/// [`Kind::Invalid`] if one is no embedding of the model, [`Kind::TooMany`] if there are too many.
fn rows(lists: Vec<Vec<f32>>, dim: usize, max: usize) -> Result<Array2<f32>, Failure> {
    let count = lists.len();
    if count > max {
        return Err(
            Failure::new(Kind::TooMany, format!("{count} rows, and at most {max} are taken")).about("image_embeds")
        );
    }
    for (place, list) in lists.iter().enumerate() {
        let reason = match list.iter().all(|value| value.is_finite()) {
            true if list.len() == dim => continue,
            true => format!("has {} numbers, and the model's embeddings have {dim}", list.len()),
            false => "has numbers that are not finite".into(),
        };
        return Err(Failure::of("image_embeds", format!("image_embeds[{place}] {reason}")));
    }
    Array2::from_shape_vec((count, dim), lists.concat()).map_err(Failure::internal)
}
