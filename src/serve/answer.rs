//! Embeddings as the body of a response.

use super::failure::{Failure, FailureBody, Style};
use super::row::{Embedding, Row};
use super::server::Pending;
use crate::output::{ArrayName, Arrays, Batch, OutputFormat, OutputRow, numbers, to_bytes};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use ndarray::{Array2, ArrayView1};
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The negative embeddings of rows.
#[derive(Debug, Clone, Default)]
pub(super) enum NegativeEmbeds {
    /// None are shown.
    #[default]
    None,
    /// The embedding of each row is followed by its own.
    Own,
    /// One for all rows.
    Shared(Embedding),
}

/// How rows are shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Form {
    /// The number of the first.
    pub(super) first: usize,
    pub(super) negatives: NegativeEmbeds,
    /// The shape of a row that is no vector.
    pub(super) row_shape: Option<[usize; 2]>,
    /// Whether embeddings are scaled to length 1.
    pub(super) normalize: bool,
}

impl Form {
    /// Computed embeddings of a row.
    fn each(&self) -> usize {
        if matches!(self.negatives, NegativeEmbeds::Own) { 2 } else { 1 }
    }
}

/// Rows with their embeddings.
#[derive(Debug)]
pub(super) struct Embedded {
    rows: Vec<OutputRow>,
    /// `(rows, dim)`.
    image: Array2<f32>,
    /// `(rows, dim)`.
    negative: Option<Array2<f32>>,
    form: Form,
}

impl Embedded {
    /// # Errors
    /// [`Failure::internal`] if they differ in length.
    pub(super) fn new(rows: &[Row], embeddings: &[Embedding], form: Form) -> Result<Self, Failure> {
        let each = form.each();
        let array = |skipped: usize| {
            let embeddings = embeddings.iter().skip(skipped).step_by(each);
            let shape = (embeddings.len(), embeddings.clone().next().map_or(0, |embedding| embedding.len()));
            let values: Vec<f32> = embeddings.flat_map(|embedding| embedding.iter().copied()).collect();
            Array2::from_shape_vec(shape, values).map_err(Failure::internal)
        };
        let row = |(row, place): (&Row, usize)| OutputRow {
            row: place as u64,
            id: None,
            prompt: row.prompt.clone(),
            seed: row.seed,
        };
        let rows = rows.iter().step_by(each).zip(form.first..).map(row).collect();
        let image = array(0)?;
        let negative = match &form.negatives {
            NegativeEmbeds::None => None,
            NegativeEmbeds::Own => Some(array(1)?),
            NegativeEmbeds::Shared(embedding) => {
                let negative = ArrayView1::from(&**embedding);
                Some(negative.broadcast(image.raw_dim()).ok_or_else(|| Failure::internal("lengths differ"))?.to_owned())
            }
        };
        Ok(Self { rows, image, negative, form })
    }

    fn batch(&self) -> Batch<'_> {
        let negative = self.negative.as_ref().map(|negative| negative.view());
        Batch { rows: &self.rows, image: Some(self.image.view()), negative, text: None, scores: None }
    }

    /// The numbers of each row.
    ///
    /// # Errors
    /// [`Failure::internal`].
    pub(super) fn lists(&self) -> Result<Vec<Vec<f32>>, Failure> {
        self.lists_of(ArrayName::Image)
    }

    /// Those of the negative embeddings, if there are any.
    ///
    /// # Errors
    /// [`Failure::internal`].
    pub(super) fn negative_lists(&self) -> Result<Option<Vec<Vec<f32>>>, Failure> {
        self.negative.as_ref().map(|_| self.lists_of(ArrayName::Negative)).transpose()
    }

    fn lists_of(&self, array: ArrayName) -> Result<Vec<Vec<f32>>, Failure> {
        let numbers = numbers(&self.batch(), array, self.form.normalize).map_err(Failure::internal)?;
        Ok(numbers.chunks(self.image.ncols().max(1)).map(<[f32]>::to_vec).collect())
    }

    /// The seed of each row.
    pub(super) fn seeds(&self) -> Vec<u64> {
        self.rows.iter().map(|row| row.seed).collect()
    }

    /// The file that the command line would write.
    ///
    /// # Errors
    /// [`Failure::internal`].
    pub(super) fn file(&self, format: OutputFormat) -> Result<Vec<u8>, Failure> {
        let arrays = if self.negative.is_some() { Arrays::IMAGE.union(Arrays::NEGATIVE) } else { Arrays::IMAGE };
        to_bytes(format, &self.batch(), arrays, self.form.row_shape, self.form.normalize).map_err(Failure::internal)
    }
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
        Err(error) => Failure::internal(error).response(Style::OpenAi),
    }
}

/// JSON lines, each as soon as its row is computed. A row that fails has a line with an error; those after it go on.
pub(super) struct Lines {
    pending: Pending,
    form: Form,
    /// What there is of the next line: its negative embedding is still to come.
    begun: Vec<Result<Embedding, Failure>>,
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
    pub(super) fn body(pending: Pending, form: Form) -> Body {
        Body::new(Self { pending, form, begun: Vec::new() }.map_err(|never| match never {}))
    }

    /// The line of the row whose embeddings end at a place.
    fn line(&mut self, end: usize) -> Vec<u8> {
        let each = self.form.each();
        let rows = &self.pending.rows[end + 1 - each..=end];
        let first = end / each;
        let embeddings: Result<Vec<Embedding>, Failure> = self.begun.drain(..).collect();
        let line = |embeddings: Vec<Embedding>| {
            Embedded::new(rows, &embeddings, Form { first, ..self.form.clone() })?.file(OutputFormat::JsonLines)
        };
        embeddings.and_then(line).unwrap_or_else(|failure| {
            let error = failure.body(Style::OpenAi);
            let line = FailedLine { row: first, prompt: &rows[0].prompt, seed: rows[0].seed, error };
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
        loop {
            match self.pending.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some((place, result))) => {
                    self.begun.push(result);
                    if self.begun.len() == self.form.each() {
                        return Poll::Ready(Some(Ok(Frame::data(self.line(place).into()))));
                    }
                }
            }
        }
    }
}
