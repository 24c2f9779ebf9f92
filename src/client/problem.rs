//! Reading a server's answer: is it a reply, a final "no", or a reason to try again?

use std::time::Duration;

use serde_json::Value;

use super::watch::Position;

/// What a peer port answers who asks it in HTTP.
const PEER_PORT_CODE: &str = "peer_port";

/// The fields of `application/problem+json` that the client acts on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) detail: String,
    pub(crate) outcome: Option<String>,
    pub(crate) primary: Option<String>,
    pub(crate) retry_after_ms: Option<u64>,
    pub(crate) refusal: Option<String>,
    pub(crate) current: Option<Value>,
    pub(crate) oldest: Option<Position>,
    pub(crate) body: Value,
}

impl Problem {
    /// Reads a body; what is no problem document (another program's page, say) becomes one with the code
    /// `http_STATUS`.
    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        let mut problem = Self::from_json(serde_json::from_slice(body).unwrap_or_default());
        if problem.code.is_empty() {
            problem.code = format!("http_{status}");
        }
        if problem.detail.is_empty() {
            problem.detail =
                format!("HTTP status {status}, but not from a Quorate server: is the address right?");
            let text = String::from_utf8_lossy(body);
            let line: String = text.trim().lines().next().unwrap_or_default().chars().take(200).collect();
            // The first line of a page says nothing to a person.
            if !line.is_empty() && !line.starts_with('<') {
                problem.detail.push_str(&format!(" It says: {line}"));
            }
        }
        problem
    }

    pub(crate) fn is_foreign(&self) -> bool {
        is_foreign(&self.code)
    }

    /// Takes what is there. A field of an unexpected type is as good as absent, so that it cannot hide the others.
    pub(crate) fn from_json(body: Value) -> Self {
        let text = |name| body.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            code: text("code").unwrap_or_default(),
            detail: text("detail").unwrap_or_default(),
            outcome: text("outcome"),
            primary: text("primary"),
            retry_after_ms: body.get("retry_after_ms").and_then(Value::as_u64),
            refusal: text("refusal"),
            current: body.get("current").cloned(),
            oldest: body.get("oldest").and_then(|oldest| match oldest {
                Value::String(text) => text.parse().ok(),
                other => other.as_u64().map(Position::after),
            }),
            body,
        }
    }

    /// Does it say that the session cannot vouch for the request?
    pub(crate) fn is_of_session(&self) -> bool {
        self.refusal.is_none()
            && matches!(self.code.as_str(), "sequence_acked" | "sequence_reused" | "session_expired")
    }

    /// Is it a service's own refusal, which is logged and remembered like a reply?
    pub(crate) fn is_by_service(&self) -> bool {
        self.refusal.is_some()
    }

    /// May this attempt have been applied? What a server does not say is taken to be unknown, except that a
    /// status below 500 comes from a server that looked at the request and turned it away.
    fn maybe_applied(&self, status: u16) -> bool {
        match self.outcome.as_deref() {
            Some("not_applied") => false,
            Some(_) => true,
            None => status >= 500 || status == 408,
        }
    }
}

/// Whether a problem's code comes from no server's HTTP address: from another program, or from a peer port.
pub(crate) fn is_foreign(code: &str) -> bool {
    code.starts_with("http_") || code == PEER_PORT_CODE
}

/// What an answer with a status other than 2xx means for the request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Asking again is no use.
    Final(Box<Problem>),
    /// The session cannot vouch for this request any more: its outcome is unknown and the session is finished.
    SessionLost(Box<Problem>),
    /// Another attempt, here or elsewhere, may succeed.
    Retry { problem: Box<Problem>, maybe_applied: bool, wait: Option<Duration> },
}

/// Sorts an answer that is not a reply.
pub(crate) fn judge(status: u16, body: &[u8]) -> Verdict {
    let problem = Box::new(Problem::read(status, body));
    if problem.is_of_session() {
        return Verdict::SessionLost(problem);
    }
    if problem.is_by_service() {
        return Verdict::Final(problem);
    }
    // 421: this server does not serve. 429, 507: not now, not here. 408 and 5xx: something broke on the way.
    if matches!(status, 408 | 421 | 429) || status >= 500 {
        let maybe_applied = problem.maybe_applied(status);
        let wait = problem.retry_after_ms.map(Duration::from_millis);
        return Verdict::Retry { problem, maybe_applied, wait };
    }
    Verdict::Final(problem)
}
