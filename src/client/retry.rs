//! What happens between the attempts of one request: where the next one goes, when, and whether there is one.

use std::time::Duration;

use reqwest::Url;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::error::{AttemptEnd, Error, History, Refused};
use super::problem::Problem;
use super::servers::{self, Route};
use super::transport::{Repeat, Request, Transport};

/// The pause before the first retry on a server that was tried already; it doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(15);
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// What cannot be sent again is not begun with little time left, which would only make its outcome unknown.
fn last_start(request: &Request<'_>, deadline: Instant, attempt_timeout: Duration) -> Instant {
    let now = Instant::now();
    let last = match request.repeat {
        Repeat::Harmful => deadline - attempt_timeout.min(deadline.saturating_duration_since(now) / 2),
        Repeat::Read | Repeat::Harmless => deadline,
    };
    request.patience.map_or(last, |patience| last.min(now + patience))
}

/// The state of one request between its attempts.
pub(super) struct Retries<'a> {
    transport: &'a Transport,
    repeat: Repeat,
    pub(super) route: Route,
    pub(super) history: History,
    deadline: Instant,
    /// No attempt begins later.
    last_start: Instant,
    attempt_timeout: Duration,
    maybe_applied: bool,
    backoff: Duration,
}

impl<'a> Retries<'a> {
    pub(super) fn new(
        transport: &'a Transport,
        request: &Request<'_>,
        deadline: Instant,
        route: Route,
    ) -> Self {
        Self {
            transport,
            repeat: request.repeat,
            route,
            history: History::default(),
            deadline,
            last_start: last_start(request, deadline, transport.attempt_timeout),
            attempt_timeout: transport.attempt_timeout,
            maybe_applied: false,
            backoff: BACKOFF_FIRST,
        }
    }

    /// A final "no" of something that is no server's HTTP address.
    pub(super) async fn stranger(
        &mut self,
        server: &Url,
        status: u16,
        problem: Box<Problem>,
    ) -> Result<(), Error> {
        if !self.history.others_left(self.route.len()) {
            return Err(self.refused(server, status, problem));
        }
        self.history.add_stranger(&servers::name(server), problem.detail);
        self.go_on(server).await
    }

    /// Something answered that does not speak HTTP.
    pub(super) async fn not_http(&mut self, server: &Url, cause: String) -> Result<(), Error> {
        let others_left = self.history.others_left(self.route.len());
        self.history.add_not_http(&servers::name(server), &cause);
        self.may_be_applied()?;
        if !others_left {
            return Err(self.give_up("no server was found".to_owned()));
        }
        self.go_on(server).await
    }

    pub(super) fn attempt_deadline(&self) -> Instant {
        // What cannot be sent again gains nothing from being given up early.
        if self.repeat == Repeat::Harmful {
            return self.deadline;
        }
        self.deadline.min(Instant::now() + self.attempt_timeout)
    }

    pub(super) fn refused(&mut self, server: &Url, status: u16, problem: Box<Problem>) -> Error {
        let refused = Refused::by(&servers::name(server), status, *problem);
        // A service's refusal is the remembered reply. Another "no" speaks of its own attempt alone.
        if !self.maybe_applied || refused.is_by_service() {
            return Error::Refused(Box::new(refused));
        }
        let cause = format!("an earlier attempt may have been applied, a later one was answered: {refused}");
        self.history.add(&servers::name(server), refused.detail, Some(refused.code));
        self.give_up(cause)
    }

    pub(super) fn session_lost(&mut self, server: &Url, problem: Box<Problem>) -> Error {
        let cause =
            format!("the session cannot vouch for this request ({}): {}", problem.code, problem.detail);
        self.history.add(&servers::name(server), problem.detail, Some(problem.code));
        self.maybe_applied = true;
        self.give_up(cause)
    }

    pub(super) async fn problem(
        &mut self,
        server: &Url,
        problem: Box<Problem>,
        maybe_applied: bool,
        wait: Option<Duration>,
    ) -> Result<(), Error> {
        let cause = format!("{}: {}", problem.code, problem.detail);
        let overloaded = problem.code == "overloaded";
        let name = servers::name(server);
        debug!(server = %name, %cause, maybe_applied, "attempt failed");
        self.history.add(&name, cause, Some(problem.code));
        if maybe_applied {
            self.may_be_applied()?;
        }
        let at_once = match &problem.primary {
            Some(primary) => self.route.follow(primary),
            None if overloaded => false,
            None => {
                self.route.next();
                false
            }
        };
        if at_once { Ok(()) } else { self.pause(wait.unwrap_or_default()).await }
    }

    pub(super) async fn broken(
        &mut self,
        server: &Url,
        cause: String,
        sent: bool,
        how: AttemptEnd,
    ) -> Result<(), Error> {
        let name = servers::name(server);
        debug!(server = %name, %cause, sent, "attempt failed");
        self.history.add_broken(&name, cause, how, sent);
        if sent {
            self.may_be_applied()?;
        }
        if how == AttemptEnd::NetworkTimeout && sent {
            // A slow cluster is not helped by more of the same: wait longer for the next one.
            self.attempt_timeout *= 2;
        }
        self.go_on(server).await
    }

    /// On to the next server, after one that brought no answer of any use.
    async fn go_on(&mut self, server: &Url) -> Result<(), Error> {
        self.transport.servers.avoid(server);
        self.route.next();
        // Until every server was asked once, going on at once costs nobody anything.
        if self.history.attempts() < self.route.len() as u32 {
            return self.check_deadline();
        }
        self.pause(Duration::ZERO).await
    }

    /// The attempt may have been carried out. An error when a second one could be a second application.
    fn may_be_applied(&mut self) -> Result<(), Error> {
        self.maybe_applied |= self.repeat != Repeat::Read;
        if self.repeat == Repeat::Harmful {
            let cause = "the request has no session, so a lost reply cannot be asked for again".to_owned();
            return Err(self.give_up(cause));
        }
        Ok(())
    }

    async fn pause(&mut self, at_least: Duration) -> Result<(), Error> {
        let jitter = rand::random_range(0.5..1.0);
        let wait = self.backoff.mul_f64(jitter).max(at_least.mul_f64(0.75 + jitter / 2.0));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        if Instant::now() + wait < self.last_start {
            sleep(wait).await;
        } else {
            // The last word is said at the deadline, not before it: the caller asked to wait that long.
            sleep_until(self.last_start).await;
        }
        self.check_deadline()
    }

    fn check_deadline(&mut self) -> Result<(), Error> {
        if Instant::now() < self.last_start {
            return Ok(());
        }
        self.history.time_is_up();
        if self.last_start < self.deadline {
            return Err(self.give_up("no server takes the request".to_owned()));
        }
        Err(self.give_up("no reply before the deadline".to_owned()))
    }

    pub(super) fn give_up(&mut self, cause: String) -> Error {
        let history = std::mem::take(&mut self.history);
        match self.repeat {
            Repeat::Read => history.fail_question(cause),
            Repeat::Harmless | Repeat::Harmful => history.fail(self.maybe_applied, cause),
        }
    }
}
