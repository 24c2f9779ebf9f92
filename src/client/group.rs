//! Requests to a group: sent to every server at once, with one session and sequence, so applied once. The client goes on
//! when as many have replied as it wants; the replies that come after that are duplicates, counted and thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::Inner;
use super::error::{Error, History};
use super::servers::Route;
use super::session::Ticket;
use super::transport::{Answer, Repeat, Request};

/// For so long duplicates are awaited.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// How many of the servers must have replied before the client goes on. In passive mode the primary alone replies.
///
/// When too few reply in time, the outcome is unknown, also if it is known to one of them: "as many as were wanted have it" is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Any one of them.
    First,
    /// More than half of them.
    Majority,
    /// All of them.
    All,
}

impl Group {
    fn wanted(self, servers: usize) -> usize {
        match self {
            Self::First => 1,
            Self::Majority => servers / 2 + 1,
            Self::All => servers,
        }
    }
}

/// What became of replies that nobody waited for.
#[derive(Debug, Default)]
pub(crate) struct Duplicates {
    count: AtomicU64,
    /// Requests some of whose replies are still awaited.
    under_way: watch::Sender<usize>,
}

impl Duplicates {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until no reply is awaited any more.
    pub(crate) async fn settle(&self) {
        let mut under_way = self.under_way.subscribe();
        let _ = timeout(STRAGGLERS, under_way.wait_for(|requests| *requests == 0)).await;
    }
}

/// Sends one command to all servers; gives the first reply when `group` is satisfied.
pub(super) async fn call(
    inner: &Arc<Inner>,
    group: Group,
    path: Vec<&str>,
    body: Bytes,
    ticket: &Arc<Ticket>,
    deadline: Instant,
) -> Result<Answer, Error> {
    let servers = inner.transport.servers.all();
    let (wanted, count) = (group.wanted(servers.len()), servers.len());
    let (results, mut inbox) = mpsc::channel(servers.len());
    let mut attempts = JoinSet::new();
    for server in servers {
        let (inner, ticket, results, body) =
            (Arc::clone(inner), Arc::clone(ticket), results.clone(), body.clone());
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        attempts.spawn(async move {
            let path = path.iter().map(String::as_str).collect();
            let request = Request { ticket: Some(&ticket), ..Request::post(path, body, Repeat::Harmless) };
            let result = inner.transport.call_on(&request, deadline, Route::only(server)).await;
            let _ = results.send(result).await;
        });
    }
    drop(results);
    let mut replies = Vec::with_capacity(wanted);
    let mut failure = None;
    while replies.len() < wanted {
        match inbox.recv().await {
            Some(Ok(answer)) => replies.push(Ok(answer)),
            // A service's refusal is a reply like any other.
            Some(Err(Error::Refused(refused))) if refused.is_by_service() => {
                replies.push(Err(Error::Refused(refused)));
            }
            Some(Err(error)) => failure = Some(worse(failure, error)),
            None => return Err(too_few(replies, failure, (wanted, count))),
        }
    }
    // Nobody waits for it any more, so what comes after it may say that it is there.
    ticket.settle();
    inner.transport.tell_of_reply(ticket, &replies[0]);
    count_the_rest(inner, attempts, inbox, Arc::clone(ticket));
    replies.swap_remove(0)
}

/// Not as many have replied as were wanted. What one has replied is so all the same: a command that was carried out is not called
/// anything less, and what a service has refused it has not done.
fn too_few(
    replies: Vec<Result<Answer, Error>>,
    failure: Option<Error>,
    (wanted, servers): (usize, usize),
) -> Error {
    let count = replies.len();
    let cause = match replies.into_iter().next() {
        Some(Err(refusal)) => return refusal,
        Some(Ok(_)) => format!(
            "it was carried out, but only {count} of {servers} servers have replied in time, and {wanted} were wanted"
        ),
        None => match failure {
            Some(failure) => return failure,
            None => "no server replied".to_owned(),
        },
    };
    History::default().fail(true, cause)
}

fn count_the_rest(
    inner: &Arc<Inner>,
    attempts: JoinSet<()>,
    mut inbox: mpsc::Receiver<Result<Answer, Error>>,
    ticket: Arc<Ticket>,
) {
    let inner = Arc::clone(inner);
    inner.duplicates.under_way.send_modify(|requests| *requests += 1);
    tokio::spawn(async move {
        // What has not come by its end is given up with it.
        let _attempts = attempts;
        let end = Instant::now() + STRAGGLERS;
        while let Ok(Some(result)) = timeout_at(end, inbox.recv()).await {
            let from = match result {
                Ok(Answer { server, .. }) => server,
                // It has carried the command out, and knows that the reply is there already.
                Err(Error::Unknown(failure)) if failure.code.as_deref() == Some("sequence_acked") => {
                    failure.tried.last().map_or_else(String::new, |tried| tried.server.clone())
                }
                Err(_) => continue,
            };
            inner.duplicates.count.fetch_add(1, Ordering::Relaxed);
            inner.transport.tell_of(&ticket, &from, |hooks, call| hooks.duplicate(call));
        }
        inner.duplicates.under_way.send_modify(|requests| *requests -= 1);
    });
}

/// Which of two failures is to be told: what may have been applied is not to be called certain.
fn worse(before: Option<Error>, now: Error) -> Error {
    let rank = |error: &Error| match error {
        Error::Unknown(_) => 2,
        Error::Refused(_) => 1,
        Error::NotApplied(_) => 0,
    };
    match before {
        Some(before) if rank(&before) >= rank(&now) => before,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_wants_one_a_majority_or_all() {
        assert_eq!([Group::First, Group::Majority, Group::All].map(|group| group.wanted(3)), [1, 2, 3]);
        assert_eq!(Group::Majority.wanted(4), 3);
        assert_eq!(Group::Majority.wanted(1), 1);
    }
}
