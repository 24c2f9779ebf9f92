//! `GET /metrics`, Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::{Answer, MAX_WATCHES, Shared};

/// `GET /metrics`
pub(super) async fn metrics(State(app): Shared) -> Answer {
    let status = app.node.status()?;
    let mut text = String::with_capacity(4096);
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP quorate_{name} {help}\n# TYPE quorate_{name} {kind}\nquorate_{name} {value}\n"
        );
    };
    let watches = MAX_WATCHES - app.watches.available_permits();
    metric("ready", "gauge", "1 when caught up and with a primary", status.ready.into());
    metric("primary", "gauge", "1 on the primary", app.node.is_primary().into());
    metric("term", "counter", "Raft term", status.term);
    metric("revision", "counter", "Deltas applied", status.revision);
    metric("log_last_index", "counter", "Last index in the delta log", status.last_log);
    metric("log_committed_index", "counter", "Last index known to be committed", status.committed);
    metric("log_applied_index", "counter", "Last index applied", status.applied);
    metric("log_bytes", "gauge", "Bytes of the delta log on disk", status.log_bytes);
    metric("flushed_revision", "counter", "Revision of the last flush", status.flushed);
    let checkpoint = status.checkpoints.last();
    metric(
        "checkpoint",
        "counter",
        "Number of the last checkpoint",
        checkpoint.map_or(0, |last| last.number),
    );
    metric(
        "state_differs",
        "gauge",
        "1 while the state differs from the majority's at a checkpoint, until it is replaced",
        status.differs_at.is_some().into(),
    );
    metric("dirty_bytes", "gauge", "Bytes of rows that are not flushed yet", status.dirty_bytes);
    metric("disk_free_bytes", "gauge", "Free bytes on the disk", status.disk_free);
    metric("disk_low", "gauge", "1 when the disk is below its reserve", status.disk_low.into());
    metric(
        "clock_ahead_ms",
        "gauge",
        "How far the wall clock was ahead when not believed",
        status.clock_ahead_ms.unwrap_or(0),
    );
    metric("http_requests_total", "counter", "HTTP requests", app.requests.load(Ordering::Relaxed));
    metric(
        "http_errors_total",
        "counter",
        "HTTP responses of 500 and above",
        app.errors.load(Ordering::Relaxed),
    );
    metric("watches", "gauge", "Open watches", watches as u64);
    metric("uptime_seconds", "gauge", "Seconds since the start", app.started.elapsed().as_secs());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
