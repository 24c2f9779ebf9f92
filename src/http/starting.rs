//! Before the node is there: a server that joins, or applies its log again, is alive, and not ready. Whoever watches it must
//! not take it for dead and kill it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Said;
use super::connections::accept;
use super::problem::Problem;

/// Connections at once, and how long each may take: one request on each, whose answer is always at hand.
const CONNECTIONS: usize = 64;
const LIMIT: Duration = Duration::from_secs(2);
const RETRY_MS: u64 = 500;

/// Answers on `listener` for a server that is still `doing` something; never returns.
pub(crate) async fn answer(listener: &TcpListener, doing: &'static str, said: &Said) -> Infallible {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await;
        let stream = accept(listener).await;
        // On its own: an answer that is under way when the node is there still comes.
        let said = said.clone();
        tokio::spawn(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(respond(request.uri(), doing, &said))
            });
            // The next request is to find the node, as soon as it is there.
            let serving = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(stream), service);
            // An error is the client's, here too.
            let _ = timeout(LIMIT, serving).await;
            drop(slot);
        });
    }
}

fn respond(uri: &Uri, doing: &str, said: &Said) -> Response {
    if uri.path() == "/healthz" {
        return said.alive(uri.query());
    }
    let text =
        format!("this server is starting: it {doing}. Ask another one, or wait; its log says how it goes");
    Problem::new(503, "not_ready", text).retry_after(RETRY_MS).into_response()
}
