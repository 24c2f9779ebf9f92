//! What a local detector shows, and the words that it takes.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use quorate_cluster::detect::supervisor::Restart;
use quorate_cluster::detect::view::Report;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::detectors::Beat;
use crate::transcript::Transcript;

/// What `GET /v1/lfd` shows.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) gfd: String,
    pub(super) restart: Restart,
    pub(super) pid: Option<u32>,
    pub(super) heartbeats: u64,
    /// Since the global detector was last heard, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gfd_silent_ms: Option<u64>,
    pub(super) server: Report,
}

/// What somebody wants, and where the answer goes.
pub(super) struct Word(pub(super) Wish, pub(super) oneshot::Sender<Result<&'static str, String>>);

pub(super) enum Wish {
    Launch(Option<u64>),
    Stop,
    Hold,
}

/// What the handlers share with the loop.
pub(super) struct Shared {
    pub(super) words: mpsc::Sender<Word>,
    pub(super) shown: watch::Receiver<Shown>,
    pub(super) gfd_heard: watch::Sender<Option<Instant>>,
    pub(super) transcript: Transcript,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/lfd", get(show))
        .route("/v1/heartbeat", get(heartbeat))
        .route("/v1/launch", post(launch))
        .route("/v1/stop", post(stop))
        .route("/v1/hold", post(hold))
        .route("/healthz", get(async || "ok\n"))
        .with_state(shared)
}

/// `GET /v1/lfd`
async fn show(State(shared): State<Arc<Shared>>) -> Json<Shown> {
    let mut shown = shared.shown.borrow().clone();
    shown.gfd_silent_ms = shared.gfd_heard.borrow().map(|heard| heard.elapsed().as_millis() as u64);
    Json(shown)
}

/// `GET /v1/heartbeat`, from the global detector: the answer is the report.
async fn heartbeat(State(shared): State<Arc<Shared>>, Query(from): Query<Beat>) -> Json<Report> {
    shared.gfd_heard.send_replace(Some(Instant::now()));
    let report = shared.shown.borrow().server.clone();
    shared.transcript.heartbeat_received(from.number, &report.lfd, &from.from);
    Json(report)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchFields {
    /// The incarnation that the launch is to follow; none releases what is held.
    after: Option<u64>,
}

/// `POST /v1/launch {"after"?}`
async fn launch(State(shared): State<Arc<Shared>>, fields: Option<Json<LaunchFields>>) -> Response {
    shared.say(Wish::Launch(fields.unwrap_or_default().after)).await
}

/// `POST /v1/stop`: SIGTERM, and it stays down.
async fn stop(State(shared): State<Arc<Shared>>) -> Response {
    shared.say(Wish::Stop).await
}

/// `POST /v1/hold`: it stays down once it is.
async fn hold(State(shared): State<Arc<Shared>>) -> Response {
    shared.say(Wish::Hold).await
}

impl Shared {
    async fn say(&self, wish: Wish) -> Response {
        let (reply, answer) = oneshot::channel();
        if self.words.try_send(Word(wish, reply)).is_err() {
            return (StatusCode::TOO_MANY_REQUESTS, "this detector has too much to do\n").into_response();
        }
        match answer.await {
            Ok(Ok(text)) => Json(serde_json::json!({ "done": text })).into_response(),
            Ok(Err(text)) => (StatusCode::CONFLICT, format!("{text}\n")).into_response(),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "this detector is ending\n").into_response(),
        }
    }
}
