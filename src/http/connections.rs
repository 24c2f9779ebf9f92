//! Connections: how many there are, and which one goes when there are too many.
//!
//! When no slot is free, the connection that has waited longest for its client's next request is ended. So clients
//! that open connections and say nothing, or half of something, keep nobody out.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, Request};
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_storage::node_disk::max_connections;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::{App, gateway, problem};

/// Connections at once, if the system allows so many open files; a third of what it allows is for peers.
const MAX_CONNECTIONS: usize = 4096;
/// With so many connections on the node's own thread, others go elsewhere.
const MANY: usize = 80;
/// From a connection's opening, or the last reply, to the end of the next request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// At the end, requests that are under way have this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves `router` on `listener` until `stop` turns true and what is under way has ended.
pub(super) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let most = MAX_CONNECTIONS.min((max_connections() / 3 * 2).max(1));
    let slots = Arc::new(Semaphore::new(most));
    let threads = Threads::start()?;
    let crowd = Arc::new(Notify::new());
    let mut stopping = stop.clone();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, usually: connections that end free some.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if slots.available_permits() == 0 {
            crowd.notify_one();
        }
        let slot = tokio::select! {
            () = stopped(&mut stopping) => break,
            slot = Arc::clone(&slots).acquire_owned() => slot.map_err(io::Error::other)?,
        };
        let (app, router, crowd) = (Arc::clone(&app), router.clone(), Arc::clone(&crowd));
        let stop = stop.clone();
        threads.spawn(stream, async move |stream| {
            connection(stream, app, router, crowd, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    // All slots come back when the last connection has ended.
    let _ = timeout(DRAIN_TIMEOUT, slots.acquire_many(most as u32)).await;
    threads.edge.shutdown_background();
    Ok(())
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

    fn spawn<F>(&self, stream: TcpStream, serve: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let [here, edge] = &self.live;
        let here_now = here.load(Ordering::Relaxed);
        let away = here_now >= MANY && edge.load(Ordering::Relaxed) < here_now;
        let live = Arc::clone(if away { edge } else { here });
        live.fetch_add(1, Ordering::Relaxed);
        if !away {
            tokio::spawn(async move {
                serve(stream).await;
                live.fetch_sub(1, Ordering::Relaxed);
            });
            return;
        }
        self.edge.spawn(async move {
            // A stream belongs to the runtime that it was made in.
            match stream.into_std().and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(e) => tracing::warn!(error = %e, "cannot hand a connection over"),
            }
            live.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn connection(
    stream: TcpStream,
    app: Arc<App>,
    router: Router,
    crowd: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let work = Arc::new(Work::default());
    let counted = Arc::clone(&work);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let under_way = UnderWay::begin(&counted);
        // Here and not in a layer, which would box every request's future once more.
        app.requests.fetch_add(1, Ordering::Relaxed);
        let (app, router) = (Arc::clone(&app), router.clone());
        async move {
            let response = answer(&app, router, request.map(Body::new)).await;
            if response.status().is_server_error() {
                app.errors.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(response.map(|body| Answering { body, _under_way: under_way }))
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // Answers are small: one copy costs less than a vectored write.
        .writev(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        // An error here is the client's: it went away, or sent what is not HTTP and was told so.
        _ = serving.as_mut() => {}
        () = work.idle_in(&crowd) => {}
        () = stopped(&mut stop) => {
            if work.under_way() {
                serving.as_mut().graceful_shutdown();
                let _ = timeout(DRAIN_TIMEOUT, serving).await;
            }
        }
    }
}

/// Commands and queries go straight to the gateway, all else through the router.
async fn answer(app: &App, router: Router, request: Request<Body>) -> Response {
    let uri = request.uri().clone();
    let answered = match (request.method(), gateway::named(app, &uri)) {
        (&Method::POST, Some((service, name))) => gateway::run(app, service, name, request).await,
        (&Method::GET, Some((service, name))) => gateway::ask(app, service.name(), name, uri.query()).await,
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

/// What a connection carries.
#[derive(Default)]
struct Work {
    requests: AtomicUsize,
    done: Notify,
}

impl Work {
    fn under_way(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Returns when the server is crowded, and it is this connection that goes.
    async fn idle_in(&self, crowd: &Notify) {
        loop {
            // Those that wait are woken in the order in which they came.
            crowd.notified().await;
            if !self.under_way() {
                return;
            }
            crowd.notify_one();
            let done = self.done.notified();
            if self.under_way() {
                done.await;
            }
        }
    }
}

/// A request, until the last byte of its answer is handed over.
struct UnderWay(Arc<Work>);

impl UnderWay {
    fn begin(work: &Arc<Work>) -> Self {
        work.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(work))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.done.notify_waiters();
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
