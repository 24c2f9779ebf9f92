//! Sessions: the registration and the numbers that make a retry harmless.
//!
//! - Numbers go up by one and are never used twice; a command holds its number (a [`Ticket`]) until it has its reply
//!   or is given up.
//! - `acked` is the largest N such that nobody waits for a reply to any number up to N. So a number that was given
//!   up counts as well: it is never sent again, and the servers then refuse a straggler instead of applying it late.
//! - At most [`WINDOW`] numbers lie above `acked`, since the servers remember 1,024 replies.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::cluster::Whereabouts;
use super::error::{Error, History};
use super::hooks::Call;
use super::transport::{Repeat, Request, Transport};

/// How many numbers one session has in flight at most.
pub const WINDOW: usize = 1_000;
/// How long the look-up of the primary may hold up the first command of a session.
const DISCOVER_TIMEOUT: Duration = Duration::from_millis(300);
/// How soon after one look-up of the primary the next one may follow.
const DISCOVER_PAUSE: Duration = Duration::from_millis(500);

/// Which session a client's commands belong to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SessionMode {
    /// A session of its own, closed with the client: what nearly everybody wants.
    #[default]
    Anonymous,
    /// A session that a later client of the same name goes on with. Only one client may use it at a time.
    Named(String),
    /// No session. A command whose reply is lost has an unknown outcome and is not retried.
    Off,
}

/// The client's session, opened when it is first needed and replaced when it is lost.
#[derive(Debug)]
pub(crate) struct Sessions {
    mode: SessionMode,
    ttl: Duration,
    current: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl Sessions {
    pub(crate) fn new(mode: SessionMode, ttl: Duration) -> Self {
        Self { mode, ttl, current: tokio::sync::Mutex::new(None) }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        match &self.mode {
            SessionMode::Named(name) => Some(name),
            SessionMode::Anonymous | SessionMode::Off => None,
        }
    }

    /// The next `count` numbers, or none when the client works without a session. An error here comes before the
    /// command was sent, so it never leaves the outcome open.
    pub(crate) async fn ticket(
        &self,
        transport: &Arc<Transport>,
        count: u32,
        deadline: Instant,
    ) -> Result<Option<Ticket>, Error> {
        if self.mode == SessionMode::Off {
            return Ok(None);
        }
        loop {
            let session = self.session(transport, deadline).await?;
            let Ok(Ok(permits)) = timeout_at(deadline, session.window.acquire_many(count)).await else {
                let cause = format!("{WINDOW} requests of this session are still waiting for their replies");
                return Err(History::default().fail(false, cause));
            };
            // It may have been lost while this request waited for its turn.
            if session.is_lost() {
                continue;
            }
            permits.forget();
            let first = session.take(count);
            return Ok(Some(Ticket { session, first, count, settled: AtomicBool::new(false) }));
        }
    }

    async fn session(&self, transport: &Arc<Transport>, deadline: Instant) -> Result<Arc<Session>, Error> {
        let Ok(mut current) = timeout_at(deadline, self.current.lock()).await else {
            let cause = "no session could be opened before the deadline".to_owned();
            return Err(History::default().fail(false, cause));
        };
        if let Some(session) = current.as_ref().filter(|session| !session.is_lost()) {
            return Ok(Arc::clone(session));
        }
        let session =
            self.open(transport, current.as_deref(), deadline).await.map_err(Error::before_sending)?;
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    async fn open(
        &self,
        transport: &Arc<Transport>,
        before: Option<&Session>,
        deadline: Instant,
    ) -> Result<Arc<Session>, Error> {
        let ttl_ms = self.ttl.as_millis() as u64;
        let body = match &self.mode {
            SessionMode::Named(name) => json!({"name": name, "ttl_ms": ttl_ms}),
            _ => json!({"ttl_ms": ttl_ms}),
        };
        // A second opening of a named session finds the first; of an anonymous one it leaves an unused session
        // behind, which expires by itself.
        let body = Bytes::from(body.to_string());
        let answer =
            transport.call(&Request::post(vec!["v1", "sessions"], body, Repeat::Harmless), deadline).await?;
        let opened: Opened = serde_json::from_slice(&answer.body).map_err(|error| {
            let cause = format!("{} opened a session in words not understood: {error}", answer.server);
            History::default().fail(false, cause)
        })?;
        debug!(session = opened.session, server = %answer.server, "session opened");
        discover(transport, deadline.min(Instant::now() + DISCOVER_TIMEOUT)).await;

        // A named session comes back with its numbers: those that this client used meanwhile stay used.
        let used =
            before.filter(|before| before.id == opened.session).map_or(1, |before| before.numbers().next);
        let (stop, stopped) = oneshot::channel();
        let session = Arc::new(Session {
            id: opened.session,
            window: Semaphore::new(WINDOW),
            numbers: Mutex::new(Numbers::starting_at(opened.next_sequence.max(used))),
            lost: AtomicBool::new(false),
            _stop: stop,
        });
        let ttl = opened.ttl_ms.map_or(self.ttl, Duration::from_millis);
        tokio::spawn(keep_alive(Arc::downgrade(&session), Arc::clone(transport), ttl, stopped));
        Ok(session)
    }

    /// Ends the session, if there is one, and tells the cluster.
    pub(crate) async fn close(&self, transport: &Transport, deadline: Instant) -> Result<(), Error> {
        let Some(session) = self.current.lock().await.take() else {
            return Ok(());
        };
        if session.lost.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let id = session.id.to_string();
        match transport.call(&Request::bare(Method::DELETE, vec!["v1", "sessions", &id]), deadline).await {
            Ok(_) => Ok(()),
            // Gone already: by an earlier attempt of ours, or by its expiry.
            Err(error) if matches!(error.code(), Some("session_expired" | "not_found")) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Opened {
    session: u64,
    next_sequence: u64,
    ttl_ms: Option<u64>,
}

/// One session as this client uses it.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    window: Semaphore,
    numbers: Mutex<Numbers>,
    lost: AtomicBool,
    /// Dropped with the session, which ends its keep-alive.
    _stop: oneshot::Sender<()>,
}

impl Session {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn take(&self, count: u32) -> u64 {
        let mut numbers = self.numbers();
        let first = numbers.next;
        numbers.next += u64::from(count);
        first
    }

    fn settle(&self, first: u64, count: u32) {
        let freed = self.numbers().settle(first, count);
        self.window.add_permits(freed as usize);
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Nothing in here panics half-way, so a poisoned lock still guards good numbers.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which numbers are used up and which are still waited for.
#[derive(Debug)]
struct Numbers {
    next: u64,
    acked: u64,
    /// Settled numbers above `acked`, at most [`WINDOW`].
    settled: BTreeSet<u64>,
}

impl Numbers {
    fn starting_at(next: u64) -> Self {
        let next = next.max(1);
        Self { next, acked: next - 1, settled: BTreeSet::new() }
    }

    /// Nobody waits for these any more. Returns how far `acked` moved.
    fn settle(&mut self, first: u64, count: u32) -> u64 {
        self.settled.extend(first..first + u64::from(count));
        let before = self.acked;
        while self.settled.remove(&(self.acked + 1)) {
            self.acked += 1;
        }
        debug_assert!(self.acked < self.next && self.settled.len() <= WINDOW);
        self.acked - before
    }
}

/// The number, or the run of numbers, of one request. Settled when dropped, that is when nobody waits any more.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    first: u64,
    count: u32,
    settled: AtomicBool,
}

impl Ticket {
    pub(crate) fn session(&self) -> u64 {
        self.session.id
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.first
    }

    pub(crate) fn acked(&self) -> u64 {
        self.session.numbers().acked
    }

    /// This command on its way to a server.
    pub(crate) fn call_to(&self, server: String) -> Call {
        Call { session: self.session.id, sequence: self.first, server }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Nobody waits for its reply any more.
    pub(crate) fn settle(&self) {
        if !self.settled.swap(true, Ordering::AcqRel) {
            self.session.settle(self.first, self.count);
        }
    }

    /// The cluster does not know this session any more: the next request opens another.
    pub(crate) fn session_lost(&self) {
        self.session.lost.store(true, Ordering::Release);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Keeps a session alive while its client lives, and finds the primary again after the client had to move.
async fn keep_alive(
    session: Weak<Session>,
    transport: Arc<Transport>,
    ttl: Duration,
    mut stopped: oneshot::Receiver<()>,
) {
    let interval = (ttl / 3).max(Duration::from_millis(10));
    let mut due = Instant::now() + interval;
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            () = tokio::time::sleep_until(due) => {}
            () = transport.moved.notified() => {
                discover(&transport, Instant::now() + DISCOVER_TIMEOUT).await;
                sleep(DISCOVER_PAUSE).await;
                continue;
            }
        }
        let Some(id) = session.upgrade().filter(|session| !session.is_lost()).map(|session| session.id)
        else {
            return;
        };
        let id = id.to_string();
        let request = Request::bare(Method::POST, vec!["v1", "sessions", &id, "keepalive"]);
        due = Instant::now() + interval;
        match transport.call(&request, due).await {
            Ok(_) => discover(&transport, Instant::now() + DISCOVER_TIMEOUT).await,
            Err(error) if matches!(error.code(), Some("session_expired" | "not_found")) => {
                warn!(session = %id, "the session has expired; the next command opens another");
                if let Some(session) = session.upgrade() {
                    session.lost.store(true, Ordering::Release);
                }
                return;
            }
            // It was tried all the interval long; two more intervals are left before the session expires.
            Err(error) => debug!(session = %id, %error, "no keep-alive this time"),
        }
    }
}

/// Asks the primary first from now on, if it can be found out: one hop less for each command. Best effort.
async fn discover(transport: &Transport, deadline: Instant) {
    let request = Request::get(vec!["v1", "cluster"], Vec::new());
    let Ok(answer) = transport.call(&request, deadline).await else {
        return;
    };
    let Whereabouts { primary, names } = Whereabouts::read(&answer.body);
    transport.servers.note_names(names);
    if let Some(primary) = primary {
        transport.servers.prefer(&primary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_moves_only_over_settled_numbers() {
        let mut numbers = Numbers::starting_at(1);
        numbers.next = 6;
        assert_eq!(numbers.settle(2, 1), 0);
        assert_eq!(numbers.settle(3, 2), 0);
        assert_eq!(numbers.acked, 0);
        assert_eq!(numbers.settle(1, 1), 4);
        assert_eq!(numbers.acked, 4);
        assert_eq!(numbers.settle(5, 1), 1);
        assert!(numbers.settled.is_empty());
    }

    #[test]
    fn a_named_session_goes_on_where_it_was() {
        let numbers = Numbers::starting_at(18);
        assert_eq!((numbers.next, numbers.acked), (18, 17));
    }
}
