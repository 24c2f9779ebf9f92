//! Errors as `application/problem+json`: the cause, what to do, and what may have happened.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use quorate_cluster::error::{Attempt, Code, NodeError};
use quorate_storage::delta::DeltaResult;
use quorate_storage::service::Refusal;
use serde::Serialize;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Of a text that became a problem.
const MAX_TEXT: usize = 4096;

/// What axum itself refuses, such as a path that is not UTF-8, is text: it becomes a problem like all others.
pub(super) async fn unify(response: Response) -> Response {
    let status = response.status();
    let fails = status.is_client_error() || status.is_server_error();
    if !fails || response.headers().get(header::CONTENT_TYPE) == Some(&CONTENT_TYPE) {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), MAX_TEXT).await.unwrap_or_default();
    let code = if status.is_client_error() { "bad_request" } else { "failed" };
    Problem::new(status.as_u16(), code, String::from_utf8_lossy(&text)).into_response()
}

/// An error response. Boxed: it is rare, and every handler's result would be as large.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Parts>);

#[derive(Debug, Clone, Serialize)]
struct Parts {
    #[serde(skip)]
    status: u16,
    code: &'static str,
    detail: String,
    outcome: Attempt,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The word of a server's hook for its refusal. Unlike a service's it is not remembered: it speaks of this attempt alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<String>,
    /// The service's own word for a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// What is there instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<serde_json::Value>,
    /// Where a watch can be resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
}

impl Problem {
    pub(super) fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            status,
            code,
            detail: detail.into(),
            outcome: Attempt::NotApplied,
            primary: None,
            retry_after_ms: None,
            hook: None,
            refusal: None,
            current: None,
            oldest: None,
        }))
    }

    /// After the fact: the command was applied, or may have been.
    pub(super) fn unknown(mut self) -> Self {
        self.0.outcome = Attempt::Unknown;
        self
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(400, "bad_request", detail)
    }

    pub(super) fn unknown_service(name: &str, known: impl Iterator<Item = &'static str>) -> Self {
        let known: Vec<&str> = known.collect();
        let text = format!("no service is called {name:?}; there are: {}", known.join(", "));
        Self::new(404, "unknown_service", text)
    }

    /// Says which item of a batch it is about.
    pub(super) fn in_item(mut self, n: usize) -> Self {
        self.0.detail = format!("item {n}: {}", self.0.detail);
        self
    }

    pub(super) fn retry_after(mut self, ms: u64) -> Self {
        self.0.retry_after_ms = Some(ms);
        self
    }

    pub(super) fn with_oldest(mut self, oldest: String) -> Self {
        self.0.oldest = Some(oldest);
        self
    }

    /// What a delta's result says to the client that sent it; `None` for a reply.
    pub(crate) fn of_result(result: &DeltaResult) -> Option<Self> {
        let unknown = |status, code, detail: &str| Some(Self::new(status, code, detail).unknown());
        match result {
            DeltaResult::Reply(_) => None,
            DeltaResult::Refused(refusal) => Some(Refusal::clone(refusal).into()),
            DeltaResult::SessionExpired => unknown(
                410,
                "session_expired",
                "the session is unknown or has expired, so it cannot be told whether this command was applied under it \
                 earlier. Open a new session; look at the state before you repeat the command",
            ),
            DeltaResult::SequenceReused => unknown(
                409,
                "sequence_reused",
                "this sequence was used before, with another command. Give each command a new sequence, and a retry \
                 the very same body",
            ),
            DeltaResult::SequenceAcked => unknown(
                409,
                "sequence_acked",
                "this client said earlier that it has the reply to this sequence (Quorate-Acked), so the reply was \
                 forgotten",
            ),
            DeltaResult::SessionFull => {
                let text = "the session holds as many unacknowledged replies as it may: acknowledge some (Quorate-Acked)";
                let mut problem = Self::new(429, "overloaded", text);
                problem.0.retry_after_ms = Some(50);
                Some(problem)
            }
            DeltaResult::Unsupported(detail) => Some(Self::new(404, "unknown_service", detail.clone())),
        }
    }

    /// The cause, and what to do.
    pub(crate) fn detail(&self) -> String {
        self.0.detail.clone()
    }

    /// The JSON object alone, for a batch.
    pub(super) fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(&self.0).unwrap_or_default()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.status {
            400 => "bad_request",
            404 => "not_found",
            410 if refusal.code == "session_expired" => "session_expired",
            413 => "too_large",
            429 => "overloaded",
            _ => "refused",
        };
        let mut problem = Self::new(refusal.status, code, refusal.detail);
        if code == "session_expired" {
            // As for a command: what the session was used for before cannot be told.
            problem.0.outcome = Attempt::Unknown;
        }
        problem.0.refusal = Some(refusal.code);
        problem.0.current = refusal.current.and_then(|current| serde_json::from_str(&current).ok());
        problem
    }
}

impl Problem {
    /// What a hook has refused.
    pub(crate) fn of_hook(refusal: Refusal) -> Self {
        let mut problem = Self::from(refusal);
        problem.0.hook = problem.0.refusal.take();
        problem.0.outcome = Attempt::NotApplied;
        problem
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let (status, code) = match error.code {
            Code::Overloaded => (429, "overloaded"),
            // In active mode any server accepts: that there is none to forward to is what counts.
            Code::NoPrimary | Code::NotPrimary | Code::Misdirected => (503, "no_primary"),
            Code::NotServing => (421, "not_primary"),
            Code::NotReady => (503, "not_ready"),
            Code::ShuttingDown | Code::Failed => (503, "shutting_down"),
            Code::Timeout => (504, "timeout"),
            Code::DiskFull => (507, "disk_full"),
            Code::Changed => (412, "changed"),
            Code::BadRequest => (400, "bad_request"),
            Code::NotFound => (404, "not_found"),
            Code::Refused => (409, "refused"),
        };
        let mut problem = Self::new(status, code, error.detail);
        problem.0.outcome = error.attempt;
        problem.0.primary = error.primary;
        problem.0.retry_after_ms = error.retry_after_ms;
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if let Some(ms) = self.0.retry_after_ms
            && let Ok(value) = HeaderValue::from_str(&ms.div_ceil(1000).to_string())
        {
            headers.insert(header::RETRY_AFTER, value);
        }
        response
    }
}
