//! A server for tests that does what a test tells it to, and remembers what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A request as the stub got it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) session: Option<u64>,
    pub(crate) sequence: Option<u64>,
    pub(crate) acked: Option<u64>,
    pub(crate) last_event_id: Option<String>,
    pub(crate) body: Value,
}

/// What the stub does with a request.
pub(crate) enum Act {
    Reply(u16, Value),
    /// Answers when the sender is dropped or used.
    Later(tokio::sync::oneshot::Receiver<()>, Value),
    /// Takes the request and breaks the connection off in the middle of the answer.
    Lose,
    /// Takes the request and never answers.
    Hang,
    /// Streams these events and then breaks off.
    Events(Vec<&'static str>),
}

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

struct Inner {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
}

pub(crate) struct Stub {
    address: SocketAddr,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Stub {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    /// The same, at an address that was in use before.
    pub(crate) async fn start_at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner { script: Box::new(script), seen: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, inner, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests whose path contains `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let seen = self.inner.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    /// As if nothing had been asked yet.
    pub(crate) fn forget(&self) {
        self.inner.seen.lock().unwrap().clear();
    }

    /// Waits until `count` requests to `part` have come.
    pub(crate) async fn wait_for(&self, part: &str, count: usize) -> Vec<Seen> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = self.seen(part);
            if seen.len() >= count {
                return seen;
            }
            assert!(Instant::now() < deadline, "only {} of {count} requests to {part} came", seen.len());
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The usual answers: sessions open with number 17, commands on counters succeed, nothing else is known.
pub(crate) fn usual(seen: &Seen) -> Act {
    match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", "/v1/sessions") => {
            Act::Reply(201, json!({"session": 17, "next_sequence": 1, "ttl_ms": seen.body["ttl_ms"]}))
        }
        (_, path) if path.starts_with("/v1/sessions/") => Act::Reply(200, json!({})),
        ("POST", path) if path.starts_with("/v1/counter/") => Act::Reply(200, counter_reply(5)),
        ("GET", "/v1/counter/get") => Act::Reply(200, json!({"value": 5, "revision": 40})),
        _ => problem(404, "not_found", "not_applied"),
    }
}

pub(crate) fn counter_reply(value: i64) -> Value {
    json!({"previous": 0, "value": value, "revision": 41})
}

pub(crate) fn problem(status: u16, code: &str, outcome: &str) -> Act {
    Act::Reply(status, json!({"code": code, "detail": format!("a test's {code}"), "outcome": outcome}))
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        session: number(&parts.headers, "quorate-session"),
        sequence: number(&parts.headers, "quorate-sequence"),
        acked: number(&parts.headers, "quorate-acked"),
        last_event_id: parts.headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned()),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    inner.seen.lock().unwrap().push(seen.clone());
    match (inner.script)(&seen) {
        Act::Reply(status, body) => json_response(status, &body),
        Act::Later(released, body) => {
            // A dropped sender releases as well.
            let _ = released.await;
            json_response(200, &body)
        }
        Act::Lose => Response::new(Body::from_stream(broken(vec!["{"]))),
        Act::Hang => std::future::pending().await,
        Act::Events(events) => {
            let mut response = Response::new(Body::from_stream(broken(events)));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
    }
}

/// Some chunks, and then the connection breaks.
fn broken(chunks: Vec<&'static str>) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    let chunks = stream::iter(chunks).map(|chunk| Ok::<_, Infallible>(Bytes::from_static(chunk.as_bytes())));
    chunks.map(|chunk| chunk.map_err(|never| match never {})).chain(stream::once(async {
        // What was sent before is to arrive first.
        sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("broken off by the test"))
    }))
}

fn json_response(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name).map(|value| value.to_str().unwrap().parse().unwrap())
}
