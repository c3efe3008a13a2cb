//! What can go wrong with a request, and how each interface says so. Only this file decides on status codes.

use crate::Error;
use crate::text::{printable, without_middle};
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The body is not JSON.
    Syntax,
    /// A field is missing, unknown or has a wrong value.
    Invalid,
    /// A prompt has more tokens than the model takes.
    PromptTooLong,
    /// More rows, or longer prompts, than the server's limits allow.
    TooMany,
    /// The body is larger than the server's limit.
    BodyTooLarge,
    /// The body did not come in time.
    Timeout,
    /// No key, or a wrong one.
    Unauthorized,
    /// Another model than the one that is served.
    UnknownModel,
    /// There is no such route.
    NoRoute,
    /// The route has other methods.
    Method,
    /// The body is not said to be JSON.
    MediaType,
    /// None of the formats that the client accepts.
    NotAcceptable,
    /// The queue is full.
    Overloaded,
    /// The model is not loaded yet, or the server is about to end.
    Unavailable,
    /// The model failed.
    Engine,
}

/// The conventions of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// OpenAI's, which the routes of our own have too.
    OpenAi,
    /// Those of text-embeddings-inference.
    Tei,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// What is wrong, where, and what to do. It may quote the prompt.
    pub(super) message: String,
    /// The field that it is about.
    pub(super) param: Option<String>,
    /// The message without a prompt in it, for the log.
    pub(super) logged: Option<String>,
}

/// How long a client that is refused for now should wait, in seconds.
const RETRY_AFTER: &str = "1";

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, logged: None }
    }

    /// One about a field.
    pub(super) fn of(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::Invalid, message) }
    }

    /// One of the server itself.
    pub(super) fn internal(error: impl ToString) -> Self {
        let message = format!("internal error: {}", error.to_string());
        Self { logged: Some(message.clone()), ..Self::new(Kind::Engine, message) }
    }

    /// The same about a field.
    pub(super) fn about(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The status code, and what OpenAI and text-embeddings-inference call it.
    fn names(&self, style: Style) -> (u16, &'static str, Option<&'static str>) {
        const REQUEST: &str = "invalid_request_error";
        match style {
            Style::OpenAi => match self.kind {
                Kind::Syntax | Kind::Invalid | Kind::TooMany => (400, REQUEST, None),
                Kind::PromptTooLong => (400, REQUEST, Some("context_length_exceeded")),
                Kind::BodyTooLarge => (413, REQUEST, Some("body_too_large")),
                Kind::Timeout => (408, REQUEST, Some("request_timeout")),
                Kind::Unauthorized => (401, REQUEST, Some("invalid_api_key")),
                Kind::UnknownModel => (404, REQUEST, Some("model_not_found")),
                Kind::NoRoute => (404, REQUEST, Some("unknown_url")),
                Kind::Method => (405, REQUEST, Some("method_not_supported")),
                Kind::MediaType => (415, REQUEST, Some("unsupported_media_type")),
                Kind::NotAcceptable => (406, REQUEST, Some("not_acceptable")),
                Kind::Overloaded => (429, "rate_limit_error", Some("rate_limit_exceeded")),
                Kind::Unavailable => (503, "server_error", Some("service_unavailable")),
                Kind::Engine => (500, "server_error", None),
            },
            Style::Tei => match self.kind {
                Kind::Syntax => (400, "Validation", None),
                Kind::Invalid => (422, "Validation", None),
                Kind::PromptTooLong | Kind::TooMany | Kind::BodyTooLarge => (413, "Validation", None),
                Kind::Timeout => (408, "Validation", None),
                Kind::Unauthorized => (401, "Unauthorized", None),
                Kind::UnknownModel | Kind::NoRoute => (404, "Validation", None),
                Kind::Method => (405, "Validation", None),
                Kind::MediaType => (415, "Validation", None),
                Kind::NotAcceptable => (406, "Validation", None),
                Kind::Overloaded => (429, "Overloaded", None),
                Kind::Unavailable => (503, "Unhealthy", None),
                Kind::Engine => (424, "Backend", None),
            },
        }
    }

    /// The body that says so.
    pub(super) fn body(&self, style: Style) -> FailureBody<'_> {
        let (_, error_type, code) = self.names(style);
        match style {
            Style::OpenAi => FailureBody::OpenAi {
                error: OpenAiError { message: &self.message, error_type, param: self.param.as_deref(), code },
            },
            Style::Tei => FailureBody::Tei { error: &self.message, error_type },
        }
    }

    /// The response that says so.
    pub(super) fn response(&self, style: Style) -> Response<Body> {
        let (status, ..) = self.names(style);
        let text = serde_json::to_string(&self.body(style)).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.kind {
            Kind::Overloaded | Kind::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            Kind::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self.clone());
        response
    }
}

/// The body of a response that tells of a failure.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum FailureBody<'a> {
    OpenAi { error: OpenAiError<'a> },
    Tei { error: &'a str, error_type: &'static str },
}

/// OpenAI's error object.
#[derive(Debug, Serialize)]
pub(super) struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    error_type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl From<&Error> for Failure {
    /// An error of the model.
    fn from(error: &Error) -> Self {
        let message = printable(&without_middle(&error.to_string().replace('\n', "; "), 1500, 300));
        match error {
            Error::Option { option, .. } => Self::of(*option, message),
            Error::Prompt { .. } => Self::new(Kind::Invalid, message),
            Error::NotFinite { .. } => {
                Self { logged: Some("an embedding is not finite".into()), ..Self::new(Kind::Engine, message) }
            }
            _ => Self { logged: Some(message.clone()), ..Self::new(Kind::Engine, message) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(failure: &Failure, style: Style) -> (u16, String) {
        let status = failure.response(style).status().as_u16();
        (status, serde_json::to_string(&failure.body(style)).unwrap())
    }

    #[test]
    fn each_interface_has_its_own_words() {
        let failure = Failure::from(&Error::Option { option: "steps", reason: "2000 are too many".into() });
        let openai = r#"{"error":{"message":"steps: 2000 are too many","type":"invalid_request_error","param":"steps","code":null}}"#;
        assert_eq!(shown(&failure, Style::OpenAi), (400, openai.into()));
        assert_eq!(
            shown(&failure, Style::Tei),
            (422, r#"{"error":"steps: 2000 are too many","error_type":"Validation"}"#.into())
        );
        let full = Failure::new(Kind::Overloaded, "busy");
        assert_eq!(shown(&full, Style::Tei), (429, r#"{"error":"busy","error_type":"Overloaded"}"#.into()));
        assert_eq!(full.response(Style::OpenAi).headers()[header::RETRY_AFTER], RETRY_AFTER);
    }

    #[test]
    fn the_log_gets_no_prompt() {
        let not_finite = Error::NotFinite { reason: "the embedding of \"secret\" is not finite".into(), hint: None };
        let failure = Failure::from(&not_finite);
        assert_eq!((failure.kind, failure.message.contains("secret")), (Kind::Engine, true));
        assert_eq!(failure.logged.as_deref(), Some("an embedding is not finite"));
    }
}
