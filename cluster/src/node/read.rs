//! Reads: which revision must have been applied here before a query may be answered.
//!
//! ReadIndex (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, §6.4): the primary notes its
//! commit index, makes sure by a round of heartbeats that it is still the primary, and the reader
//! waits until that index is applied. One round serves all reads that waited when it began.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use quorate_storage::raft_types::LogId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use super::{Inner, Node};
use crate::error::{Attempt, Code, NodeError};
use crate::message::{Reply, Request};

/// Reads that wait for a round.
const MAX_WAITING: usize = 16_384;
/// Rounds in flight: the second starts while the first is on its way.
const ROUNDS: usize = 2;
/// A round that takes longer has failed.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, NodeError>;

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLevel {
    /// As of some moment between request and answer.
    Linearizable,
    /// The same, if the servers' clocks run equally fast: the primary trusts its lease.
    Lease,
    /// Whatever this server has, if it is at most so old.
    Stale {
        /// The greatest age.
        max_age: Option<Duration>,
    },
}

/// Permission to read this server's state now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPoint {
    /// For a stale read: how old the answer may be. `None` in it: not known.
    pub age: Option<Duration>,
}

struct Waiting {
    lease: bool,
    reply: oneshot::Sender<Result<Option<LogId>>>,
}

/// The inbox of the rounds.
pub(super) struct ReadIndexer {
    waiting: mpsc::Sender<Waiting>,
    /// When the last round began whose index is applied here.
    confirmed: Mutex<Option<Instant>>,
}

/// The receiving end, opaque to others.
pub(super) struct Inbox(mpsc::Receiver<Waiting>);

impl ReadIndexer {
    pub(super) fn new() -> (Self, Inbox) {
        let (waiting, inbox) = mpsc::channel(MAX_WAITING);
        (Self { waiting, confirmed: Mutex::new(None) }, Inbox(inbox))
    }

    fn confirmed(&self) -> Option<Instant> {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, sent: Instant) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        *confirmed = (*confirmed).max(Some(sent));
    }
}

impl Node {
    /// Waits until this server may answer a query at `level`.
    ///
    /// # Errors
    /// [`NodeError`]; a read never applies anything.
    pub async fn read_point(&self, level: ReadLevel, deadline: Instant) -> Result<ReadPoint> {
        let inner = &self.inner;
        inner.readable()?;
        let lease = match level {
            ReadLevel::Linearizable => false,
            ReadLevel::Lease => true,
            ReadLevel::Stale { max_age } => {
                let age = inner.reads.confirmed().map(|at| at.elapsed());
                if let Some(age) = age
                    && max_age.is_none_or(|max| age <= max)
                {
                    return Ok(ReadPoint { age: Some(age) });
                }
                if max_age.is_none() {
                    return Ok(ReadPoint { age: None });
                }
                false
            }
        };
        let sent = Instant::now();
        loop {
            match inner.confirmed_read(lease, deadline).await {
                Ok(()) => {
                    let stale = matches!(level, ReadLevel::Stale { .. });
                    return Ok(ReadPoint { age: stale.then(|| sent.elapsed()) });
                }
                Err(e) if Instant::now() + RETRY_PAUSE >= deadline => return Err(e),
                Err(e) if matches!(e.code, Code::NoPrimary | Code::NotPrimary) => {
                    inner.leader_may_change(RETRY_PAUSE).await;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Inner {
    /// Until recovery has caught up, no read is answered: it could show a state older than one shown before.
    pub(super) fn readable(&self) -> Result<()> {
        if let Some(cause) = &*self.failed.borrow() {
            return Err(NodeError::not_applied(Code::Failed, cause.clone()));
        }
        if let Some(removed) = self.removed_error() {
            return Err(removed);
        }
        self.check_agrees()?;
        if self.recovered.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(());
        }
        let text = match self.working_leader() {
            Some(_) => "this server has not caught up with the cluster yet; ask another one",
            None => {
                "this server has started and has heard of no primary to catch up with yet; ask another one"
            }
        };
        Err(NodeError::not_applied(Code::NotReady, text).with_primary(self.leader_url()).retry_after(100))
    }

    /// One confirmed round, and its index applied here.
    pub(super) async fn confirmed_read(&self, lease: bool, deadline: Instant) -> Result<()> {
        let sent = Instant::now();
        let index = self.read_index(lease, deadline).await?;
        let mut applied = self.state.applied();
        let reached = applied.wait_for(|applied| applied.log_id >= index);
        match timeout_at(deadline.into(), reached).await {
            Ok(Ok(_)) => {
                // A lease is trusted, not confirmed: should it be wrong, the state is older than this round.
                if !lease {
                    self.reads.confirm(sent);
                }
                Ok(())
            }
            Ok(Err(_)) => Err(NodeError::not_applied(Code::ShuttingDown, "this server is stopping")),
            Err(_) => {
                let text = "this server did not catch up with the primary in time; ask another one";
                Err(NodeError::not_applied(Code::Timeout, text).with_primary(self.leader_url()))
            }
        }
    }

    /// The log id that a read must have seen.
    pub(super) async fn read_index(&self, lease: bool, deadline: Instant) -> Result<Option<LogId>> {
        let (reply, receiver) = oneshot::channel();
        if self.reads.waiting.try_send(Waiting { lease, reply }).is_err() {
            let text = "too many reads are waiting on this server; come back later";
            return Err(NodeError::not_applied(Code::Overloaded, text).retry_after(50));
        }
        match timeout_at(deadline.into(), receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NodeError::not_applied(Code::ShuttingDown, "this server is stopping")),
            Err(_) => {
                let text = "the primary did not confirm in time that it still is the primary";
                Err(NodeError::not_applied(Code::Timeout, text))
            }
        }
    }

    async fn round(&self, lease: bool) -> Result<Option<LogId>> {
        match self.working_leader() {
            None => Err(self.no_primary()),
            Some(id) if id == self.id => self.local_round(lease).await,
            Some(id) => {
                let Some(info) = self.member(id) else {
                    return Err(self.no_primary());
                };
                let (lane, request) = (self.lanes.to(id, &info), Request::ReadIndex { lease });
                let answer = tokio::select! {
                    biased;
                    answer = lane.call(&request, ROUND_TIMEOUT) => answer,
                    // A primary that hangs would keep the few rounds from its successor.
                    () = self.succeeded(id) => {
                        let text = "the primary was replaced before it confirmed the read";
                        return Err(NodeError::not_applied(Code::NoPrimary, text).retry_after(20));
                    }
                };
                match answer {
                    Ok(Reply::ReadIndex(index)) => Ok(index),
                    Ok(_) => {
                        Err(NodeError::not_applied(Code::Failed, "the primary answered another question"))
                    }
                    Err(crate::transport::lane::CallError::Peer(e)) => Err(e),
                    Err(e) => {
                        let text = format!("the primary {} is away: {e}", info.name);
                        Err(NodeError::not_applied(Code::NoPrimary, text).retry_after(100))
                    }
                }
            }
        }
    }

    /// A round as the primary.
    pub(super) async fn local_round(&self, lease: bool) -> Result<Option<LogId>> {
        let policy = if lease { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        match self.raft.get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(Some(*linearizer.read_log_id().log_id())),
            Err(RaftError::Fatal(e)) => {
                self.fail(&e);
                Err(NodeError::not_applied(Code::Failed, e.to_string()))
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(self.not_primary()),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(e))) => {
                Err(NodeError { detail: format!("{e}"), attempt: Attempt::NotApplied, ..self.no_primary() })
            }
        }
    }
}

/// The loop of rounds.
pub(super) async fn run(inner: Arc<Inner>, Inbox(mut inbox): Inbox) {
    let mut stop = inner.stop.subscribe();
    let mut rounds: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let room = rounds.len() < ROUNDS;
        let first = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(()) = rounds.next(), if !rounds.is_empty() => continue,
            waiting = inbox.recv(), if room => match waiting {
                Some(waiting) => waiting,
                None => return,
            },
        };
        let mut waiting = vec![first];
        while let Ok(next) = inbox.try_recv() {
            waiting.push(next);
        }
        let (leases, confirmed): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| waiting.lease);
        for (lease, waiting) in [(true, leases), (false, confirmed)] {
            if waiting.is_empty() {
                continue;
            }
            let inner = Arc::clone(&inner);
            rounds.push(Box::pin(async move {
                let result = inner.round(lease).await;
                for waiting in waiting {
                    let _ = waiting.reply.send(result.clone());
                }
            }));
        }
    }
}
