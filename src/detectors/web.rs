//! HTTP as the detectors, the manager and the exchange's front end serve it: few clients, small requests, with bounds on their
//! number, on the times that heads and bodies take, and on the sizes of bodies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::http::connections::accept;

const CONNECTIONS: usize = 256;
/// From one request to the next, head included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 64 << 10;
/// From the head's end to the body's.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `router` until it is dropped.
///
/// # Errors
/// When the listener breaks.
pub(crate) async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let router = router.layer(DefaultBodyLimit::max(MAX_BODY)).layer(from_fn(whole));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let stream = accept(&listener).await;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            // What fails here is the client's.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(slot);
        });
    }
}

/// Has the whole body before anything is done with it.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(_)) => {
            let text = format!("the body cannot be read, or has more than {MAX_BODY} bytes\n");
            (StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
        }
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response(),
    }
}
