//! The HTTP API, on `--listen` (the README lists it).
//!
//! Every wait has a limit and every queue a bound: connections, header and body times, body sizes,
//! watches; behind them the node bounds what waits for the proposer.

mod body;
mod cluster;
pub(crate) mod connections;
mod gateway;
mod metrics;
mod problem;
mod query;
mod sessions;
mod stalls;
pub(crate) mod starting;
pub(crate) mod view;
mod watch;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Uri};
use axum::response::{AppendHeaders, IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use quorate_cluster::node::Node;
use quorate_storage::identity::valid_name;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch as watch_channel};

use self::body::Bodies;
pub(crate) use self::connections::accept;
pub(crate) use self::gateway::MAX_SEQUENCE;
pub(crate) use self::problem::Problem;
use self::view::ViewSource;
use crate::detectors::{Beat, INCARNATION_HEADER, NAME_HEADER, PID_HEADER};
use crate::hooks::Hooked;
use crate::transcript::Transcript;

/// Watches at once.
const MAX_WATCHES: usize = 1024;
/// A request is answered within this time, whatever happens.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than a client waits for one attempt by default, more than an election takes.
const NO_PRIMARY_PATIENCE: Duration = Duration::from_millis(800);
/// A change of the membership may wait for a learner to catch up.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the process was told that the node need not know.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// The server's name.
    pub(crate) name: String,
    /// Which launch this is; 0 when no detector has launched it.
    pub(crate) incarnation: u64,
    /// What is printed for an operator to follow.
    pub(crate) transcript: Transcript,
    /// Where the view is had, if there is a global fault detector.
    pub(crate) view: Option<ViewSource>,
    /// Who is asked and told of commands.
    pub(crate) hooked: Hooked,
}

impl Said {
    /// The process is alive, and this is who it is. A detector says in `query` who asks: that is told in the transcript.
    fn alive(&self, query: Option<&str>) -> Response {
        if self.transcript.on
            && let Some(beat) = query.and_then(|query| serde_urlencoded::from_str::<Beat>(query).ok())
            && valid_name(&beat.from)
        {
            self.transcript.heartbeat_received(beat.number, &self.name, &beat.from);
        }
        let (pid, incarnation) = (std::process::id().to_string(), self.incarnation.to_string());
        let who = [(NAME_HEADER, self.name.clone()), (PID_HEADER, pid), (INCARNATION_HEADER, incarnation)];
        (AppendHeaders(who), "ok\n").into_response()
    }
}

/// What the handlers share.
struct App {
    node: Node,
    said: Said,
    bodies: Bodies,
    watches: Arc<Semaphore>,
    requests: AtomicU64,
    errors: AtomicU64,
    started: Instant,
}

type Shared = axum::extract::State<Arc<App>>;
type Answer = Result<Response, Problem>;

/// Serves `node` on `listener` until `stop` turns true and what is under way has ended.
///
/// # Errors
/// When the listener breaks.
pub(crate) async fn serve(
    listener: TcpListener,
    node: Node,
    said: Said,
    stop: watch_channel::Receiver<bool>,
) -> io::Result<()> {
    let app = Arc::new(App {
        node,
        said,
        bodies: Bodies::new(),
        watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        requests: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        started: Instant::now(),
    });
    connections::serve(listener, Arc::clone(&app), router(app), stop).await
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/sessions", post(sessions::open))
        .route("/v1/sessions/{id}/keepalive", post(sessions::keep_alive))
        .route("/v1/sessions/{id}", delete(sessions::close))
        .route("/v1/batch", post(gateway::batch))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/log", get(cluster::log))
        .route("/v1/status", get(cluster::status))
        .route("/v1/cluster", get(cluster::cluster))
        .route("/v1/cluster/members", post(cluster::members))
        .route("/v1/cluster/transfer", post(cluster::transfer))
        .route("/v1/cluster/settings", post(cluster::settings))
        .route("/v1/cluster/snapshot", post(cluster::snapshot))
        .route("/v1/{service}/{name}", post(gateway::command).get(query::get))
        .route("/healthz", get(cluster::healthz))
        .route("/readyz", get(cluster::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn not_found(uri: Uri) -> Problem {
    Problem::new(404, "not_found", format!("there is nothing at {}; the README lists the paths", uri.path()))
}

async fn wrong_method(request: Request<Body>) -> Problem {
    let text = format!(
        "{} does not work on {}: commands are POST, queries GET, and the README lists the other paths with their methods",
        request.method(),
        request.uri().path()
    );
    Problem::new(405, "bad_request", text)
}

/// An election is soon over: who waits longer without a primary is told so, before the client gives up.
async fn primary(app: &App) -> Result<(), Problem> {
    Ok(app.node.await_primary(NO_PRIMARY_PATIENCE).await?)
}

/// Whether clients are served here: not by a witness, nor by a backup in passive mode.
async fn serves(app: &App) -> Result<(), Problem> {
    Ok(app.node.check_serves(NO_PRIMARY_PATIENCE).await?)
}

fn deadline() -> Instant {
    Instant::now() + REQUEST_TIMEOUT
}

fn json(body: Vec<u8>) -> Response {
    json_with_status(200, body)
}

fn json_with_status(status: u16, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        axum::http::StatusCode::from_u16(status).unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let header = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, header);
    response
}

fn to_json(value: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|e| Problem::new(500, "failed", e.to_string()))?;
    Ok(json(body))
}
