//! Plain HTTP requests to one server: what a client library would hide.

use std::time::Duration;

use serde_json::{Value, json};

/// Longer than a server takes for its worst answer.
const TIMEOUT: Duration = Duration::from_secs(7);

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
}

/// A reply as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{self:?} is not JSON: {e}"))
    }

    /// The `code` of a problem, or nothing.
    pub(crate) fn code(&self) -> String {
        serde_json::from_str::<Value>(&self.body)
            .ok()
            .and_then(|body| body["code"].as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// May a later attempt bring another answer?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.status, 421 | 429 | 503 | 504)
    }
}

/// Why there is no reply.
#[derive(Debug, Clone)]
pub(crate) struct NoReply {
    /// May the request have reached the server?
    pub(crate) sent: bool,
    cause: String,
}

impl From<NoReply> for String {
    fn from(error: NoReply) -> Self {
        error.cause
    }
}

impl From<reqwest::Error> for NoReply {
    fn from(error: reqwest::Error) -> Self {
        Self { sent: !error.is_connect(), cause: format!("{error:?}") }
    }
}

/// One request of a session.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    pub(crate) acked: u64,
    /// Such as `counter/add`.
    pub(crate) command: &'static str,
    pub(crate) body: Value,
}

impl Numbered {
    pub(crate) fn add(session: u64, sequence: u64, name: &str, amount: i64) -> Self {
        let body = json!({"name": name, "amount": amount});
        Self { session, sequence, acked: 0, command: "counter/add", body }
    }
}

impl Http {
    pub(crate) fn new() -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).tcp_nodelay(true).build();
        Self { client: client.expect("an HTTP client") }
    }

    /// The body of a reply that must be a success.
    pub(crate) async fn ok(&self, url: &str) -> Result<String, String> {
        let reply = self.get(url).await?;
        match reply.status {
            200..300 => Ok(reply.body),
            status => Err(format!("{url}: {status} {}", reply.body)),
        }
    }

    pub(crate) async fn json(&self, url: &str) -> Result<Value, String> {
        serde_json::from_str(&self.ok(url).await?).map_err(|e| format!("{url}: {e}"))
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Reply, NoReply> {
        Self::send(self.client.get(url)).await
    }

    pub(crate) async fn post(&self, url: &str, body: &Value) -> Result<Reply, NoReply> {
        Self::send(self.client.post(url).json(body)).await
    }

    /// Opens a session on the server at `url`.
    pub(crate) async fn session(&self, url: &str, ttl_ms: u64) -> u64 {
        let reply = self.post(&format!("{url}/v1/sessions"), &json!({"ttl_ms": ttl_ms})).await;
        let reply = reply.expect("a session");
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["session"].as_u64().expect("a session's number")
    }

    /// Sends a request of a session once, to the server at `url`.
    pub(crate) async fn numbered(&self, url: &str, request: &Numbered) -> Result<Reply, NoReply> {
        let builder = self.client.post(format!("{url}/v1/{}", request.command)).json(&request.body);
        let builder = builder
            .header("quorate-session", request.session)
            .header("quorate-sequence", request.sequence)
            .header("quorate-acked", request.acked);
        Self::send(builder).await
    }

    /// A stream of server-sent events.
    pub(crate) async fn stream(
        &self,
        url: &str,
        last_event_id: Option<&str>,
    ) -> Result<reqwest::Response, String> {
        let mut builder = self.client.get(url).timeout(Duration::from_secs(600));
        if let Some(id) = last_event_id {
            builder = builder.header("last-event-id", id);
        }
        let response = builder.send().await.map_err(|e| format!("{e:?}"))?;
        match response.status().as_u16() {
            200 => Ok(response),
            status => Err(format!("{url}: {status}")),
        }
    }

    async fn send(builder: reqwest::RequestBuilder) -> Result<Reply, NoReply> {
        let response = builder.send().await?;
        let status = response.status().as_u16();
        let body = response.text().await?;
        Ok(Reply { status, body })
    }
}
