//! HTTP as the detectors and the manager serve it: few clients, small requests, with bounds on their number, on heads and on the
//! sizes of bodies. Not on the time that a body takes: their clients are the detectors' own kind.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::http::connections::accept;

const CONNECTIONS: usize = 256;
/// From one request to the next, head included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 64 << 10;

/// Serves `router` until it is dropped.
///
/// # Errors
/// When the listener breaks.
pub(crate) async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let router = router.layer(DefaultBodyLimit::max(MAX_BODY));
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
