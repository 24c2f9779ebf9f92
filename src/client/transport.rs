//! One request, from its first attempt to its reply or its error.
//!
//! Invariant: a request that may have been applied is sent again only when that is harmless, that is with the same
//! session and sequence, or when it changes nothing. Everything else ends in "outcome unknown" at once.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{AttemptEnd, Error};
use super::hooks::{Call, Hooks};
use super::problem::{Verdict, judge};
use super::retry::Retries;
use super::servers::{self, Route, Servers};
use super::session::Ticket;

/// How many connections a client has in use at the same time; what is more waits its turn.
const CONNECTIONS_MAX: usize = 256;
/// How long an idle connection is kept: shorter than the servers do, so that no request meets a closing one.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The largest reply that is read; the largest the servers send is far below it.
const BODY_MAX: usize = 64 << 20;

/// What a second sending of the same request can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Nothing is changed by it, however often it is sent.
    Read,
    /// It can be sent again: its session and sequence, or its nature, make a repetition harmless.
    Harmless,
    /// A second sending may be a second application.
    Harmful,
}

/// A request, independent of the server that will get it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(&'a str, String)>,
    pub(crate) body: Option<Bytes>,
    pub(crate) ticket: Option<&'a Ticket>,
    pub(crate) repeat: Repeat,
    /// How long to look for a server that takes it. None: until the deadline, as long as for the answer.
    pub(crate) patience: Option<Duration>,
}

impl<'a> Request<'a> {
    /// A request that changes nothing.
    pub(crate) fn get(path: Vec<&'a str>, query: Vec<(&'a str, String)>) -> Self {
        Self {
            method: Method::GET,
            path,
            query,
            body: None,
            ticket: None,
            repeat: Repeat::Read,
            patience: None,
        }
    }

    /// A request with a body that is sent again only where that is harmless.
    pub(crate) fn post(path: Vec<&'a str>, body: Bytes, repeat: Repeat) -> Self {
        let method = Method::POST;
        Self { method, path, query: Vec::new(), body: Some(body), ticket: None, repeat, patience: None }
    }

    /// A request without a body that can be sent any number of times.
    pub(crate) fn bare(method: Method, path: Vec<&'a str>) -> Self {
        let repeat = Repeat::Harmless;
        Self { method, path, query: Vec::new(), body: None, ticket: None, repeat, patience: None }
    }

    fn url(&self, server: &Url) -> Url {
        let mut url = server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(&self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    pub(crate) server: String,
    pub(crate) attempts: u32,
}

/// The connections to all servers, shared by everything that a client does.
#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    pub(crate) servers: Servers,
    connections: Semaphore,
    pub(super) attempt_timeout: Duration,
    /// Told when a request had to leave its first server, so that the primary is looked up again.
    pub(crate) moved: Notify,
    hooks: Option<Arc<dyn Hooks>>,
}

/// What became of one attempt.
pub(super) enum Attempt {
    Reply(Bytes),
    Verdict(u16, Verdict),
    /// An answer, but in no HTTP.
    NotHttp(String),
    /// No answer, or none that could be read.
    Broken {
        cause: String,
        sent: bool,
        how: AttemptEnd,
    },
}

impl Attempt {
    fn broken(error: &reqwest::Error) -> Self {
        if causes(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(hyper::Error::is_parse)
        {
            return Self::NotHttp(describe(error));
        }
        // Only a connection that was never made is certain not to have carried the request.
        Self::Broken { cause: describe(error), sent: !error.is_connect(), how: how_ended(error) }
    }

    fn timed_out() -> Self {
        Self::Broken { cause: "no answer in time".to_owned(), sent: true, how: AttemptEnd::NetworkTimeout }
    }
}

impl Transport {
    pub(crate) fn new(
        urls: Vec<Url>,
        attempt_timeout: Duration,
        hooks: Option<Arc<dyn Hooks>>,
    ) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            // Where to connect is said by flags, `QUORATE_*` and the file alone.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            // Shorter than an attempt: what could not even be sent was not applied, and nothing else says so.
            .connect_timeout(attempt_timeout.mul_f64(0.8))
            .pool_max_idle_per_host(CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .build()?;
        Ok(Self {
            http,
            servers: Servers::new(urls),
            connections: Semaphore::new(CONNECTIONS_MAX),
            attempt_timeout,
            moved: Notify::new(),
            hooks,
        })
    }

    /// Sends a request until it is answered, refused, or its deadline has passed.
    pub(crate) async fn call(&self, request: &Request<'_>, deadline: Instant) -> Result<Answer, Error> {
        let result = self.call_on(request, deadline, self.servers.route()).await;
        if let Some(ticket) = request.ticket {
            self.tell_of_reply(ticket, &result);
        }
        result
    }

    /// Tells the hooks of a reply, if it is one: a service's refusal is.
    pub(crate) fn tell_of_reply(&self, ticket: &Ticket, result: &Result<Answer, Error>) {
        let server = match result {
            Ok(answer) => &answer.server,
            Err(Error::Refused(refused)) if refused.is_by_service() => &refused.server,
            Err(_) => return,
        };
        self.tell_of(ticket, server, |hooks, call| hooks.after_reply(call));
    }

    /// The same, to the servers of a route.
    pub(crate) async fn call_on(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        route: Route,
    ) -> Result<Answer, Error> {
        let mut retries = Retries::new(self, request, deadline, route);
        let Ok(Ok(_connection)) = timeout_at(deadline, self.connections.acquire()).await else {
            return Err(retries.give_up("no connection was free before the deadline".to_owned()));
        };
        loop {
            if retries.history.attempts() > 0 && request.ticket.is_some_and(Ticket::is_settled) {
                return Err(retries.give_up("another server has replied".to_owned()));
            }
            let server = retries.route.current().clone();
            if let Some(ticket) = request.ticket {
                self.tell_of(ticket, &servers::name(&server), |hooks, call| hooks.before_call(call));
            }
            match self.attempt(request, &server, retries.attempt_deadline()).await {
                Attempt::Reply(body) => {
                    if retries.history.attempts() > 0 {
                        self.moved.notify_one();
                    }
                    if !retries.route.is_pinned() {
                        self.servers.prefer(&server);
                    }
                    let attempts = retries.history.attempts() + 1;
                    return Ok(Answer { body, server: servers::name(&server), attempts });
                }
                Attempt::Verdict(status, Verdict::Final(problem)) if problem.is_foreign() => {
                    retries.stranger(&server, status, problem).await?;
                }
                Attempt::Verdict(status, Verdict::Final(problem)) => {
                    return Err(retries.refused(&server, status, problem));
                }
                Attempt::Verdict(_, Verdict::SessionLost(problem)) => {
                    // A server that says so of a command whose reply is there already is right.
                    if let Some(ticket) = request.ticket.filter(|ticket| !ticket.is_settled()) {
                        ticket.session_lost();
                    }
                    return Err(retries.session_lost(&server, problem));
                }
                Attempt::Verdict(_, Verdict::Retry { problem, maybe_applied, wait }) => {
                    retries.problem(&server, problem, maybe_applied, wait).await?;
                }
                Attempt::NotHttp(cause) => retries.not_http(&server, cause).await?,
                Attempt::Broken { cause, sent, how } => {
                    retries.broken(&server, cause, sent, how).await?;
                }
            }
        }
    }

    /// Tells the hooks, if there are any, of a command on its way to or from a server.
    pub(crate) fn tell_of(&self, ticket: &Ticket, server: &str, tell: impl FnOnce(&dyn Hooks, &Call)) {
        if let Some(hooks) = &self.hooks {
            tell(&**hooks, &ticket.call_to(self.servers.name_of(server)));
        }
    }

    async fn attempt(&self, request: &Request<'_>, server: &Url, until: Instant) -> Attempt {
        match timeout_at(until, self.exchange(request, server)).await {
            Ok(attempt) => attempt,
            Err(_) => Attempt::timed_out(),
        }
    }

    async fn exchange(&self, request: &Request<'_>, server: &Url) -> Attempt {
        let mut builder = self.http.request(request.method.clone(), request.url(server));
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        if let Some(ticket) = request.ticket {
            builder = builder
                .header("quorate-session", ticket.session())
                .header("quorate-sequence", ticket.sequence())
                .header("quorate-acked", ticket.acked());
        }
        match builder.send().await {
            Ok(response) => read_answer(response).await,
            Err(error) => Attempt::broken(&error),
        }
    }

    /// Opens a stream of server-sent events on one server. A reply that is no stream is an error too.
    pub(crate) async fn open_stream(
        &self,
        request: &Request<'_>,
        server: &Url,
        last_event_id: Option<String>,
    ) -> Result<reqwest::Response, Attempt> {
        let mut builder = self.http.get(request.url(server)).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            builder = builder.header("last-event-id", id);
        }
        let until = Instant::now() + self.attempt_timeout;
        let response = match timeout_at(until, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Attempt::broken(&error)),
            Err(_) => return Err(Attempt::timed_out()),
        };
        let is_stream = |value: &HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
        if !response.status().is_success() {
            return Err(timeout_at(until, read_answer(response))
                .await
                .unwrap_or_else(|_| Attempt::timed_out()));
        }
        if !response.headers().get(CONTENT_TYPE).is_some_and(is_stream) {
            return Err(Attempt::Reply(Bytes::new()));
        }
        Ok(response)
    }
}

async fn read_answer(mut response: reqwest::Response) -> Attempt {
    let status = response.status();
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= BODY_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                let cause = format!("the answer is larger than {BODY_MAX} bytes");
                return Attempt::Broken { cause, sent: true, how: AttemptEnd::Answered };
            }
            Ok(None) => break,
            Err(error) => {
                return Attempt::Broken { cause: describe(&error), sent: true, how: how_ended(&error) };
            }
        }
    }
    if status.is_success() {
        return Attempt::Reply(body.freeze());
    }
    Attempt::Verdict(status.as_u16(), judge(status.as_u16(), &body))
}

/// An error and what is below it.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source())
}

fn how_ended(error: &reqwest::Error) -> AttemptEnd {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    match error.is_timeout() {
        true => AttemptEnd::NetworkTimeout,
        false if causes(error).any(refused) => AttemptEnd::ConnectionRefused,
        false => AttemptEnd::Broken,
    }
}

/// The innermost cause says what happened; the layers above it only repeat the address.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() && error.is_connect() {
        return "no connection in time".to_owned();
    }
    let Some(cause) = causes(error).last() else { return error.to_string() };
    match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        // Without the system's number for it.
        Some(kind @ ErrorKind::ConnectionRefused) => kind.to_string(),
        _ => cause.to_string(),
    }
}
