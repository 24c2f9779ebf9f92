//! Connections: how many there are, and which ones go: those of clients that do not say anything for too long, or do not
//! take what is sent to them, and, when there are too many, the one that has waited longest for its client's next request.
//! So clients that open connections and say nothing, or half of something, or watch and read nothing, keep nobody out.
//!
//! All of that is done from outside, by whoever accepts: a connection itself looks at no clock and waits for nothing but
//! its client, because what it does it does for each request.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Method, Request};
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quorate_storage::node_disk::max_connections;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::stalls::{Noted, Stall};
use super::{App, gateway, problem, query};

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections at once, if the system allows so many open files; a third of what it allows is for peers.
const MAX_CONNECTIONS: usize = 4096;
/// With so many connections on the node's own thread, others go elsewhere.
const MANY: usize = 80;
/// Idle connections are looked at so often.
const TICK: Duration = Duration::from_secs(1);
/// From a connection's opening, or the last reply, to the end of the next request's header.
const HEADER_TICKS: u64 = 60;
/// A client that takes no byte of an answer for so long is gone, as far as one can tell.
const STALL_TICKS: u64 = 20;
/// At the end, requests that are under way have this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// A tick, at the end: so long may the last bytes of an answer be on their way to a client that reads slowly.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` turns true and what is under way has ended.
pub(super) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let most = MAX_CONNECTIONS.min((max_connections() / 3 * 2).max(1));
    let slots = Arc::new(Semaphore::new(most));
    let threads = Threads::start()?;
    let lines = Arc::new(Lines::default());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        let stream = tokio::select! {
            () = stopped(&mut stop) => break,
            _ = ticks.tick() => {
                lines.end_silent();
                continue;
            }
            stream = accept(&listener) => stream,
        };
        let slot = tokio::select! {
            () = stopped(&mut stop) => break,
            slot = lines.room(&slots) => slot?,
        };
        let (app, router) = (Arc::clone(&app), router.clone());
        lines.open(|line| {
            threads.spawn(stream, async move |stream| {
                connection(stream, app, router, line).await;
                drop(slot);
            })
        });
    }
    drop(listener);
    let draining = async {
        loop {
            lines.end_idle();
            tokio::time::sleep(DRAIN_TICK).await;
        }
    };
    tokio::select! {
        // All slots come back when the last connection has ended.
        _ = timeout(DRAIN_TIMEOUT, slots.acquire_many(most as u32)) => {}
        () = draining => {}
    }
    lines.end_all();
    threads.edge.shutdown_background();
    Ok(())
}

/// The next connection.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(e) => {
                // Out of file descriptors, usually: connections that end free some.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Where connections run: the node's own thread, and one beside it when they are many. HTTP costs a primary more than
/// all else; but few clients are not made to wait for a second thread to wake up.
struct Threads {
    edge: Runtime,
    /// Connections here, and on the edge.
    live: [Arc<AtomicUsize>; 2],
}

impl Threads {
    fn start() -> io::Result<Self> {
        // Not a current-thread runtime: that one is woken by a system call for each reply.
        let edge = Builder::new_multi_thread().worker_threads(1).thread_name("http").enable_all().build()?;
        Ok(Self { edge, live: Default::default() })
    }

    fn spawn<F>(&self, stream: TcpStream, serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let [here, edge] = &self.live;
        let here_now = here.load(Ordering::Relaxed);
        let away = here_now >= MANY && edge.load(Ordering::Relaxed) < here_now;
        let counted = Counted::one_more(if away { edge } else { here });
        if !away {
            let task = tokio::spawn(async move {
                serve(stream).await;
                drop(counted);
            });
            return task.abort_handle();
        }
        let task = self.edge.spawn(async move {
            // A stream belongs to the runtime that it was made in.
            match stream.into_std().and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(e) => tracing::warn!(error = %e, "cannot hand a connection over"),
            }
            drop(counted);
        });
        task.abort_handle()
    }
}

/// One in a count, whatever its end.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(stream: TcpStream, app: Arc<App>, router: Router, line: OpenLine) {
    let _ = stream.set_nodelay(true);
    let stream = Noted { stream, stall: Arc::clone(&line.line.stall) };
    let line = Arc::new(line);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let under_way = UnderWay::begin(&line);
        let (app, router) = (Arc::clone(&app), router.clone());
        async move {
            let under_way = under_way.ok_or(Ended)?;
            // Here and not in a layer, which would box every request's future once more.
            app.requests.fetch_add(1, Ordering::Relaxed);
            let mut response = answer(&app, router, request.map(Body::new)).await;
            if response.status().is_server_error() {
                app.errors.fetch_add(1, Ordering::Relaxed);
            }
            if app.node.draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Ended>(response.map(|body| Answering { body, _under_way: under_way }))
        }
    });
    // An error here is the client's: it went away, or sent what is not HTTP and was told so.
    let _ = hyper::server::conn::http1::Builder::new()
        // `Lines` sees to that: a timer would be set for each request.
        .header_read_timeout(None)
        // Answers are small: one copy costs less than a vectored write.
        .writev(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The connection was ended before this request came.
#[derive(Debug, thiserror::Error)]
#[error("the connection was ended")]
struct Ended;

/// Commands and queries go straight to the gateway, all else through the router.
async fn answer(app: &App, router: Router, request: Request<Body>) -> Response {
    let uri = request.uri().clone();
    let answered = match (request.method(), gateway::named(app, &uri)) {
        (&Method::POST, Some((service, name))) => gateway::run(app, service, name, request).await,
        (&Method::GET, Some((service, name))) => query::ask(app, service.name(), name, uri.query()).await,
        _ => {
            let Ok(response) = router.oneshot(request).await;
            return problem::unify(response).await;
        }
    };
    answered.into_response()
}

/// Returns when the server is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: then it is to stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// All open connections.
#[derive(Default)]
struct Lines {
    /// In the order in which they were opened.
    open: Mutex<BTreeMap<u64, (Arc<Line>, AbortHandle)>>,
    opened: AtomicU64,
    ticks: AtomicU64,
    /// Whether somebody waits for `changed`.
    watched: AtomicBool,
    /// A request has ended.
    changed: Notify,
}

/// One connection, as others see it.
#[derive(Default)]
struct Line {
    /// Requests under way, of which an end of the connection makes [`ENDED`].
    requests: AtomicUsize,
    /// The tick of its opening, or of the last answer.
    idle_since: AtomicU64,
    stall: Arc<Stall>,
}

const ENDED: usize = 1 << 32;

impl Line {
    /// Ends the connection unless a request is under way.
    fn end_idle(&self, task: &AbortHandle) -> bool {
        let idle = self.requests.compare_exchange(0, ENDED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if idle {
            task.abort();
        }
        idle
    }
}

impl Lines {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, (Arc<Line>, AbortHandle)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>, spawn: impl FnOnce(OpenLine) -> AbortHandle) {
        let line = Arc::new(Line::default());
        line.idle_since.store(self.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        // Its end waits until it is in the list.
        let mut all = self.all();
        let task = spawn(OpenLine { number, line: Arc::clone(&line), lines: Arc::clone(self) });
        all.insert(number, (line, task));
    }

    /// A slot for one more connection; the one that has been idle longest makes room.
    async fn room(&self, slots: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            return Ok(slot);
        }
        self.watched.store(true, Ordering::SeqCst);
        let slot = Arc::clone(slots).acquire_owned();
        let mut slot = std::pin::pin!(slot);
        loop {
            let changed = self.changed.notified();
            let one = self.end_idlest();
            tokio::select! {
                slot = &mut slot => {
                    self.watched.store(false, Ordering::SeqCst);
                    return slot.map_err(io::Error::other);
                }
                () = changed, if !one => {}
            }
        }
    }

    fn end_idlest(&self) -> bool {
        let all = self.all();
        let mut by_age: Vec<_> =
            all.values().map(|open| (open.0.idle_since.load(Ordering::Relaxed), open)).collect();
        // Stable: of equals the one that was opened first.
        by_age.sort_by_key(|(since, _)| *since);
        by_age.iter().any(|(_, (line, task))| line.end_idle(task))
    }

    /// A tick has passed at the end: those end that were idle before it.
    fn end_idle(&self) {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed);
        for (line, task) in self.all().values() {
            if line.idle_since.load(Ordering::Relaxed) < now {
                line.end_idle(task);
            }
        }
    }

    /// A tick has passed: those end whose client has not said anything, or has taken nothing, for too long.
    fn end_silent(&self) {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        for (line, task) in self.all().values() {
            if line.stall.tick(STALL_TICKS) {
                task.abort();
            } else if line.idle_since.load(Ordering::Relaxed) + HEADER_TICKS < now {
                line.end_idle(task);
            }
        }
    }

    fn end_all(&self) {
        for (_, task) in self.all().values() {
            task.abort();
        }
    }
}

/// In the list of all, until the connection's end.
struct OpenLine {
    number: u64,
    line: Arc<Line>,
    lines: Arc<Lines>,
}

impl Drop for OpenLine {
    fn drop(&mut self) {
        self.lines.all().remove(&self.number);
    }
}

/// A request, until the last byte of its answer is handed over.
struct UnderWay(Arc<OpenLine>);

impl UnderWay {
    /// `None` when the connection has been ended.
    fn begin(open: &Arc<OpenLine>) -> Option<Self> {
        let before = open.line.requests.fetch_add(1, Ordering::SeqCst);
        (before < ENDED).then(|| Self(Arc::clone(open)))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let OpenLine { line, lines, .. } = &*self.0;
        line.idle_since.store(lines.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
        line.requests.fetch_sub(1, Ordering::SeqCst);
        if lines.watched.load(Ordering::SeqCst) {
            lines.changed.notify_one();
        }
    }
}

/// An answer's body.
struct Answering {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
