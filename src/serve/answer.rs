//! Embeddings as the body of a response.

use super::failure::{Failure, FailureBody, Kind, Style};
use super::row::{Embedding, Row};
use super::server::Pending;
use crate::output::{ArrayName, Arrays, Batch, OutputFormat, OutputRow, numbers, to_bytes};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use ndarray::Array2;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// All rows of a request.
#[derive(Debug)]
pub(super) struct Embedded {
    rows: Vec<OutputRow>,
    /// `(rows, dim)`.
    image: Array2<f32>,
    /// The shape of a row that is no vector.
    row_shape: Option<[usize; 2]>,
    normalize: bool,
}

impl Embedded {
    /// # Errors
    /// [`Kind::Engine`] if they differ in length.
    pub(super) fn new(
        rows: &[Row],
        first: usize,
        embeddings: &[Embedding],
        row_shape: Option<[usize; 2]>,
        normalize: bool,
    ) -> Result<Self, Failure> {
        let dim = embeddings.first().map_or(0, |embedding| embedding.len());
        let mut values = Vec::with_capacity(embeddings.len() * dim);
        embeddings.iter().for_each(|embedding| values.extend_from_slice(embedding));
        let image = Array2::from_shape_vec((embeddings.len(), dim), values).map_err(internal)?;
        let row = |(row, place): (&Row, usize)| OutputRow {
            row: place as u64,
            id: None,
            prompt: row.prompt.clone(),
            seed: row.seed,
        };
        Ok(Self { rows: rows.iter().zip(first..).map(row).collect(), image, row_shape, normalize })
    }

    fn batch(&self) -> Batch<'_> {
        Batch { rows: &self.rows, image: Some(self.image.view()), negative: None, text: None, scores: None }
    }

    /// The numbers of each row.
    ///
    /// # Errors
    /// [`Kind::Engine`].
    pub(super) fn lists(&self) -> Result<Vec<Vec<f32>>, Failure> {
        let numbers = numbers(&self.batch(), ArrayName::Image, self.normalize).map_err(internal)?;
        Ok(numbers.chunks(self.image.ncols().max(1)).map(<[f32]>::to_vec).collect())
    }

    /// The file that the command line would write.
    ///
    /// # Errors
    /// [`Kind::Engine`].
    pub(super) fn file(&self, format: OutputFormat) -> Result<Vec<u8>, Failure> {
        to_bytes(format, &self.batch(), Arrays::IMAGE, self.row_shape, self.normalize).map_err(internal)
    }
}

fn internal(error: impl ToString) -> Failure {
    let message = format!("internal error: {}", error.to_string());
    Failure { logged: Some(message.clone()), ..Failure::new(Kind::Engine, message) }
}

/// A response of status 200.
pub(super) fn response(media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A response with JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => response("application/json", bytes),
        Err(error) => internal(error).response(Style::OpenAi),
    }
}

/// JSON lines, each as soon as its row is computed. A row that fails has a line with an error; those after it go on.
pub(super) struct Lines {
    pub(super) pending: Pending,
    pub(super) normalize: bool,
}

#[derive(Serialize)]
struct FailedLine<'a> {
    row: usize,
    prompt: &'a str,
    seed: u64,
    #[serde(flatten)]
    error: FailureBody<'a>,
}

impl Lines {
    /// The body.
    pub(super) fn into_body(self) -> Body {
        Body::new(self.map_err(|never| match never {}))
    }

    fn line(&self, place: usize, result: Result<Embedding, Failure>) -> Vec<u8> {
        let row = &self.pending.rows[place];
        let line = |embedding: Embedding| {
            Embedded::new(std::slice::from_ref(row), place, &[embedding], None, self.normalize)?
                .file(OutputFormat::JsonLines)
        };
        result.and_then(line).unwrap_or_else(|failure| {
            let error = failure.body(Style::OpenAi);
            let line = FailedLine { row: place, prompt: &row.prompt, seed: row.seed, error };
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            text
        })
    }
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pending.poll_next(context).map(|next| {
            let (place, result) = next?;
            Some(Ok(Frame::data(self.line(place, result).into())))
        })
    }
}
