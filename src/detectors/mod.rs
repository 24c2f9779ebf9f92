//! The detectors as processes: their HTTP, their timers, and the server that a local one launches. What they think is
//! `quorate_cluster::detect`.

pub mod gfd;
pub mod lfd;
pub(crate) mod web;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Looks at a peer's silence in the time of one heartbeat: so much of it a death may be noticed late.
const LOOKS: u32 = 5;
/// Idle connections are kept longer than any heartbeat takes to come.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What a server says of its process when it answers a heartbeat: by that a new detector adopts it.
pub(crate) const NAME_HEADER: &str = "quorate-name";
pub(crate) const PID_HEADER: &str = "quorate-pid";
pub(crate) const INCARNATION_HEADER: &str = "quorate-incarnation";

/// Why a detector ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}. Is another process running there? `ss -ltnp` shows which")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The system refused something.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Runs a detector: one thread is plenty.
///
/// # Errors
/// [`DetectorError`].
pub fn run(detector: impl Future<Output = Result<(), DetectorError>>) -> Result<(), DetectorError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| DetectorError::System { what: "cannot start the runtime", error })?
        .block_on(detector)
}

/// A heartbeat, as it stands in the request's URL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Beat {
    pub(crate) from: String,
    pub(crate) number: u64,
}

type BeatError = Box<dyn std::error::Error + Send + Sync>;

/// Sends a heartbeat and gives what was answered.
async fn beat(
    client: &reqwest::Client,
    url: &Url,
    path: &str,
    beat: &Beat,
    limit: Duration,
) -> Result<Bytes, BeatError> {
    let mut url = url.join(path)?;
    url.set_query(Some(&serde_urlencoded::to_string(beat)?));
    let answer = client.get(url).timeout(limit).send().await?.error_for_status()?;
    Ok(answer.bytes().await?)
}

pub(crate) fn client() -> Result<reqwest::Client, DetectorError> {
    reqwest::Client::builder().no_proxy().pool_idle_timeout(IDLE_MAX).tcp_nodelay(true).build().map_err(
        |error| DetectorError::System { what: "cannot make an HTTP client", error: io::Error::other(error) },
    )
}

/// An error with its causes: reqwest's own text is but its first line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), DetectorError> {
    let failed = |error| DetectorError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Returns at SIGTERM or SIGINT.
pub(crate) fn terminated() -> Result<impl Future<Output = ()>, DetectorError> {
    let failed = |error| DetectorError::System { what: "cannot listen for signals", error };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
