//! How a client is set up.

use std::sync::Arc;
use std::time::Duration;

use super::group::Duplicates;
use super::hooks::Hooks;
use super::session::{SessionMode, Sessions};
use super::transport::Transport;
use super::{Client, Inner, servers};

/// The servers that are asked when none are named: those of `scripts/cluster.sh up`.
pub const DEFAULT_SERVERS: [&str; 3] =
    ["http://127.0.0.1:8001", "http://127.0.0.1:8002", "http://127.0.0.1:8003"];
/// How long a request, with all its retries, may take when nothing else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a session outlives its client's last sign of life when nothing else is said.
pub const DEFAULT_SESSION_TTL: Duration = Duration::from_secs(60);
/// How long the first attempt of a request waits before another server is asked.
const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No server was named.
    #[error("no server is named; give at least one, for example {}", DEFAULT_SERVERS[0])]
    NoServers,
    /// An address cannot be used.
    #[error("{0}")]
    Address(String),
    /// The HTTP library could not start.
    #[error("the HTTP client could not be set up: {0}")]
    Http(#[from] reqwest::Error),
}

/// Sets up a [`Client`]. Everything has a default.
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    servers: Vec<String>,
    timeout: Duration,
    attempt_timeout: Duration,
    session: SessionMode,
    session_ttl: Duration,
    hooks: Option<Arc<dyn Hooks>>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: DEFAULT_SERVERS.iter().map(ToString::to_string).collect(),
            timeout: DEFAULT_TIMEOUT,
            attempt_timeout: DEFAULT_ATTEMPT_TIMEOUT,
            session: SessionMode::default(),
            session_ttl: DEFAULT_SESSION_TTL,
            hooks: None,
        }
    }
}

impl ClientBuilder {
    /// The servers to ask, as `http://HOST:PORT` or `HOST:PORT`. One that answers is enough to begin with.
    pub fn servers<I>(mut self, servers: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.servers = servers.into_iter().map(Into::into).collect();
        self
    }

    /// How long one request may take, all its retries included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the first attempt waits for an answer before another server is asked (1 s; it doubles with each
    /// attempt that timed out). A smaller value finds its way round a hanging server sooner.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Which session the commands belong to (an anonymous one of this client's own).
    pub fn session(mut self, mode: SessionMode) -> Self {
        self.session = mode;
        self
    }

    /// How long the session outlives the client's last sign of life (60 s).
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = ttl.max(Duration::from_millis(1));
        self
    }

    /// Whom to tell of commands that go out and replies that come (nobody).
    pub fn hooks(mut self, hooks: impl Hooks + 'static) -> Self {
        self.hooks = Some(Arc::new(hooks));
        self
    }

    /// Builds the client. Nothing is connected before the first request.
    pub fn build(self) -> Result<Client, BuildError> {
        let mut urls = Vec::with_capacity(self.servers.len());
        for text in &self.servers {
            let url = servers::parse(text).map_err(BuildError::Address)?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return Err(BuildError::NoServers);
        }
        Ok(Client {
            inner: Arc::new(Inner {
                transport: Arc::new(Transport::new(urls, self.attempt_timeout, self.hooks)?),
                sessions: Sessions::new(self.session, self.session_ttl),
                duplicates: Duplicates::default(),
            }),
            timeout: self.timeout,
            group: None,
        })
    }
}
