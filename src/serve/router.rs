//! Which handler answers which route, and what happens to every request: its id, the key, the log, the counters.

use super::failure::{Failure, Kind, Style};
use super::log::Answered;
use super::routes::{draw, embed, openai, openapi, page, prior, status};
use super::server::{Note, Server};
use crate::text::shorten;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

/// A request's id, of the client or of our own.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client.
const MAX_ID: usize = 128;

/// Characters of a path that messages and the log show.
const MAX_PATH: usize = 200;

/// The status that the log and the counters have for a client that left before it was answered.
const CLIENT_LEFT: u16 = 499;

/// A route, and whether it needs no key.
type Route = (&'static str, bool);

/// The routes, for labels; others are one.
pub(super) const ROUTES: [Route; 10] = [
    ("/v1/embeddings", false),
    ("/v1/models", false),
    ("/embed", false),
    ("/prior", false),
    ("/draw", false),
    ("/info", false),
    ("/health", true),
    ("/metrics", true),
    ("/openapi.json", true),
    ("/", true),
];

/// The routes and their handlers.
pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/embed", post(embed::embed))
        .route("/prior", post(prior::prior))
        .route("/draw", post(draw::draw))
        .route("/health", get(status::health))
        .route("/info", get(status::info))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/", get(page::page))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&server), handle))
        .with_state(server)
}

async fn no_route(request: Request<Body>) -> Response<Body> {
    let message = format!("there is no {}; /openapi.json lists the routes", shorten(request.uri().path(), MAX_PATH));
    Failure::new(Kind::NoRoute, message).response(Style::OpenAi)
}

async fn wrong_method(request: Request<Body>) -> Response<Body> {
    let (method, path) = (request.method(), request.uri().path());
    let other = if *method == Method::GET || *method == Method::HEAD { "POST" } else { "GET" };
    let message = format!("{path} does not take {method}; use {other}");
    Failure::new(Kind::Method, message).response(style_of(path))
}

/// The conventions of a route's errors.
fn style_of(path: &str) -> Style {
    if path == "/embed" { Style::Tei } else { Style::OpenAi }
}

/// Answers a request.
async fn handle(State(server): State<Arc<Server>>, mut request: Request<Body>, next: Next) -> Response<Body> {
    let path = request.uri().path();
    let style = style_of(path);
    let (route, is_public) = ROUTES.into_iter().find(|(route, _)| *route == path).unwrap_or(("other", false));
    let mut answer = Answer {
        id: id_of(request.headers()).unwrap_or_else(|| server.new_id()),
        method: request.method().clone(),
        path: shorten(path, MAX_PATH),
        route,
        start: Instant::now(),
        status: CLIENT_LEFT,
        error: None,
        is_logged: !is_public,
        note: Note::default(),
        server: Arc::clone(&server),
    };
    request.extensions_mut().insert(Note::clone(&answer.note));
    let checked = if is_public { Ok(()) } else { server.auth.check(request.headers()) };
    let mut response = match checked {
        Ok(()) => run(next, request).await.unwrap_or_else(|failure| failure.response(style)),
        Err(failure) => failure.response(style),
    };
    answer.status = response.status().as_u16();
    answer.error = response.extensions().get::<Failure>().and_then(|failure| failure.logged.clone());
    if let Ok(id) = HeaderValue::from_str(&answer.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    // So that a client which keeps its connection goes elsewhere; and what is left of a refused body is not read.
    let kind = response.extensions().get::<Failure>().map(|failure| failure.kind);
    if server.is_draining() || matches!(kind, Some(Kind::BodyTooLarge | Kind::Timeout)) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Runs the handler; a panic fails the request alone.
async fn run(next: Next, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let mut handler = pin!(next.run(request));
    let answer = poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)));
        match polled {
            Ok(poll) => poll.map(Ok),
            Err(_) => std::task::Poll::Ready(Err(())),
        }
    });
    let panicked = "internal error: a handler panicked";
    answer.await.map_err(|()| Failure { logged: Some(panicked.into()), ..Failure::new(Kind::Engine, panicked) })
}

/// The client's id for a request, if it has a sensible one.
fn id_of(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    (1..=MAX_ID).contains(&id.len()).then(|| id.to_string())
}

/// A request that is being answered. Counted and logged when it is dropped, whether it was answered or not.
struct Answer {
    id: String,
    method: Method,
    path: String,
    route: &'static str,
    start: Instant,
    status: u16,
    error: Option<String>,
    /// Those of health checks and scrapers are not.
    is_logged: bool,
    note: Note,
    server: Arc<Server>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.server.metrics.request(self.route, self.status, time);
        if !self.is_logged {
            return;
        }
        let mut line = Answered::new(&self.id, self.method.as_str(), &self.path, self.status, time);
        line.error = self.error.as_deref();
        if let Some(noted) = self.note.get() {
            (line.rows, line.prompts) = (noted.rows, noted.prompts.as_deref());
        }
        self.server.log.answered(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::options::{Defaults, Limits, LogFormat, LogOptions, Options, Seeds};
    use crate::serve::routes::openapi::OPENAPI;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;
    use std::time::Duration;

    fn server() -> Arc<Server> {
        let limits = Limits {
            body_bytes: 1000,
            rows: 10,
            steps: 10,
            prompt_bytes: 100,
            connections: 1,
            timeout: Duration::from_secs(1),
        };
        let defaults = Defaults {
            negative_prompt: None,
            steps: None,
            guidance_scale: None,
            temperature: None,
            seeds: Seeds::From(0),
            truncate: false,
        };
        let options = Options {
            model: "test".into(),
            api_key: None,
            batch_size: None,
            batch_tokens: 100,
            wait: Duration::ZERO,
            queue: 10,
            cache_bytes: 0,
            threads: None,
            grace: Duration::ZERO,
            limits,
            defaults,
            log: LogOptions { format: LogFormat::Text, requests: false, prompts: false },
        };
        Arc::new(Server::new(options, false))
    }

    #[test]
    fn a_handler_that_panics_fails_its_request_alone() {
        let server = server();
        let panics = async || -> Response<Body> { panic!("in a handler") };
        let later = async || -> Response<Body> {
            tokio::task::yield_now().await;
            panic!("later")
        };
        let router = Router::new().route("/embed", get(panics)).route("/prior", get(later)).route("/info", get("fine"));
        let router = router.layer(from_fn_with_state(Arc::clone(&server), handle));
        let service = TowerToHyperService::new(router);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let status = |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            runtime.block_on(service.call(request)).unwrap().status().as_u16()
        };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let found = ["/embed", "/prior", "/info", "/nothing"].map(status);
        std::panic::set_hook(hook);
        assert_eq!(found, [424, 500, 200, 404]);
        let text = server.metrics_text();
        assert!(text.contains("requests_total{route=\"/prior\",status=\"500\"} 1"), "{text}");
    }
    #[test]
    fn the_description_has_every_route() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let needs_key =
            |methods: &Value| methods.as_object().unwrap().values().any(|method| method["security"].is_array());
        let mut found: Vec<(&str, bool)> =
            paths.iter().map(|(path, methods)| (path.as_str(), !needs_key(methods))).collect();
        let mut expected = ROUTES.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
