//! The proposer: puts what waits into one log entry. While an entry is in flight the next one gathers, and goes out
//! when the one before is done, or when it is large.
//!
//! On a backup the same batching sends what waits to the primary, which batches again with its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, RaftError};
use quorate_storage::delta::{self, Command, MAX_DELTAS_PER_ENTRY, Outcome};
use quorate_storage::raft_types::{Deltas, NodeId, term_of};
use quorate_storage::state_machine::OVERLOADED_BYTES;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::queue::{LARGE, Queue, Waiting};
use super::{Inner, Node};
use crate::error::{Attempt, Code, NodeError};
use crate::message::{Reply, Request};

/// Entries, or messages to the primary, in flight.
const IN_FLIGHT: usize = 4;
/// A forwarded command may take this long in the primary's hands.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts while an election runs.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, NodeError>;

impl Node {
    /// Has one command applied, through whichever server is the primary.
    ///
    /// # Errors
    /// [`NodeError`]; `attempt` says whether the command may have been applied.
    pub async fn propose(&self, command: Command, deadline: Instant) -> Result<Outcome> {
        let mut outcomes = self.propose_all(vec![command], deadline).await?;
        outcomes.pop().ok_or_else(|| NodeError::unknown(Code::Failed, "the command has no outcome"))
    }

    /// Has `commands` (at most [`MAX_DELTAS_PER_ENTRY`]) applied in order, in one log entry; gives an
    /// outcome for each.
    ///
    /// # Errors
    /// As [`Self::propose`], for all of them.
    pub async fn propose_all(&self, commands: Vec<Command>, deadline: Instant) -> Result<Vec<Outcome>> {
        let inner = &self.inner;
        if commands.len() > MAX_DELTAS_PER_ENTRY {
            let text = format!("a batch has at most {MAX_DELTAS_PER_ENTRY} commands");
            return Err(NodeError::not_applied(Code::BadRequest, text));
        }
        if commands.is_empty() {
            // Bounds count commands: what has none would wait without any.
            return Ok(Vec::new());
        }
        let commands = Arc::new(commands);
        loop {
            if self.draining() {
                let error =
                    NodeError::not_applied(Code::ShuttingDown, "this server is stopping; ask another one");
                return Err(error.with_primary(inner.leader_url()).retry_after(50));
            }
            let result = inner.propose_once(Arc::clone(&commands), deadline, false).await;
            // Only what certainly did nothing is tried again here.
            let retry = matches!(&result, Err(e) if e.attempt == Attempt::NotApplied && match e.code {
                Code::NotPrimary | Code::NoPrimary => true,
                // The primary, just started, has not caught up; this server may be told to turn elsewhere.
                Code::NotReady => inner.readable().is_ok(),
                _ => false,
            });
            if !retry || Instant::now() + RETRY_PAUSE >= deadline {
                return result;
            }
            inner.leader_may_change(RETRY_PAUSE).await;
        }
    }
}

impl Inner {
    /// One attempt: hands the commands to the proposer and waits for their outcomes.
    pub(super) async fn propose_once(
        &self,
        commands: Arc<Vec<Command>>,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<Vec<Outcome>> {
        let receiver = self.batcher.submit(commands, forwarded)?;
        match timeout_at(deadline.into(), receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NodeError::unknown(Code::ShuttingDown, "this server stopped meanwhile")),
            Err(_) => Err(NodeError::unknown(
                Code::Timeout,
                "the time was up before a majority of the servers had the command on disk. Retry with the same \
                 session and sequence to learn what became of it",
            )),
        }
    }

    /// Waits until the leader changes, at most `limit`.
    pub(super) async fn leader_may_change(&self, limit: Duration) {
        let mut metrics = self.raft.server_metrics();
        let before = metrics.borrow_watched().clone();
        let changes = async {
            // A receiver of its own takes what was before it for a change.
            while *metrics.borrow_watched() == before {
                if metrics.changed().await.is_err() {
                    // The Raft core has ended: whoever waits here has a time limit.
                    return std::future::pending().await;
                }
            }
        };
        let _ = tokio::time::timeout(limit, changes).await;
    }

    /// Why this node, as primary, takes no writes now.
    fn refuse_writes(&self) -> Option<NodeError> {
        // Replies come from the state, which is to be the cluster's.
        if let Err(not_ready) = self.readable() {
            return Some(not_ready);
        }
        if self.disk.is_low() {
            return Some(self.disk.error());
        }
        if self.quorum_age().is_some_and(|age| age >= self.recent()) {
            return Some(self.no_primary());
        }
        match self.state.dirty_bytes() {
            Ok(dirty) if dirty < OVERLOADED_BYTES => None,
            Ok(_) => {
                let text = "the disk does not keep up with the writes; come back later";
                Some(NodeError::not_applied(Code::Overloaded, text).retry_after(200))
            }
            Err(e) => Some(NodeError::not_applied(Code::Failed, e.to_string())),
        }
    }
}

/// The proposer's loop.
pub(super) async fn run(inner: Arc<Inner>, mut inbox: mpsc::Receiver<Waiting>) {
    let mut stop = inner.stop.subscribe();
    let mut in_flight: FuturesUnordered<BoxFuture<'static, usize>> = FuturesUnordered::new();
    let mut queue = Queue::default();
    loop {
        // The primary's own proposer gathers again what a backup sends on.
        let hurry = queue.commands >= LARGE || !inner.is_leader();
        let room = in_flight.is_empty() || hurry && in_flight.len() < IN_FLIGHT;
        if room && !queue.waiting.is_empty() {
            queue.gather(&mut inbox, inner.is_leader()).await;
            let batch = queue.take_batch();
            let requests = batch.len();
            in_flight.push(dispatch(Arc::clone(&inner), batch).map(move |()| requests).boxed());
            // It begins now, before anything else is waited for.
            if let Some(Some(requests)) = in_flight.next().now_or_never() {
                queue.done(requests);
            }
            continue;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(requests) = in_flight.next(), if !in_flight.is_empty() => queue.done(requests),
            waiting = inbox.recv(), if queue.has_room() => match waiting {
                Some(waiting) => queue.push(waiting),
                None => return,
            },
        }
    }
}

/// Sends a batch on its way: into the log here, or to the primary.
async fn dispatch(inner: Arc<Inner>, batch: Vec<Waiting>) {
    let forwarded = batch.first().is_some_and(|waiting| waiting.forwarded);
    // Before it is asked who leads: who waited here for a transfer to end finds the new primary.
    let writing = inner.writing.read().await;
    let outcomes = match inner.leader() {
        Some(id) if id == inner.id => {
            inner.write(batch.iter().flat_map(|waiting| waiting.commands.iter())).await
        }
        Some(id) if !forwarded && inner.working_leader() == Some(id) => {
            drop(writing);
            inner.forward(id, &batch).await
        }
        Some(_) if !forwarded => Err(inner.no_primary()),
        Some(_) => Err(inner.not_primary()),
        None => Err(inner.no_primary()),
    };
    let expected: usize = batch.iter().map(|waiting| waiting.commands.len()).sum();
    let outcomes = outcomes.and_then(|outcomes| match outcomes.len() == expected {
        true => Ok(outcomes),
        false => {
            Err(NodeError::unknown(Code::Failed, "the commands and their outcomes do not match in number"))
        }
    });
    match outcomes {
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for waiting in batch {
                let own = outcomes.by_ref().take(waiting.commands.len()).collect();
                let _ = waiting.reply.send(Ok(own));
            }
        }
        Err(e) => {
            for waiting in batch {
                let _ = waiting.reply.send(Err(e.clone()));
            }
        }
    }
}

impl Inner {
    /// Writes one log entry and waits until it is applied here.
    async fn write<'a, I>(&self, commands: I) -> Result<Vec<Outcome>>
    where
        I: IntoIterator<Item = &'a Command, IntoIter: Clone>,
    {
        if let Some(refusal) = self.refuse_writes() {
            return Err(refusal);
        }
        let term = self.metrics.borrow_watched().current_term;
        self.caught_up_with(term).await?;
        let last = self.state.read(|machine| machine.time()).map_err(|e| self.broken(&e))?;
        let time = self.logged_clock.now(&*self.clock, term, last);
        let entry = delta::encode_entry(time, commands);
        match self.raft.client_write(Deltas(entry)).await {
            Ok(written) => Ok(written.data.0),
            Err(RaftError::Fatal(e)) => {
                self.fail(&e);
                Err(NodeError::unknown(Code::Failed, format!("this server failed meanwhile: {e}")))
            }
            // openraft looks at these before it appends: who is away for a moment answers nothing.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader {
                reason: ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer,
                ..
            }))) => Err(self.no_primary()),
            // "Forward to the leader" alone does not prove that the entry was not appended before.
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
            )) => {
                let text = "this server stopped being the primary meanwhile. Retry with the same session and \
                            sequence to learn what became of the command";
                let error = NodeError::unknown(Code::NoPrimary, text).with_primary(self.leader_url());
                Err(error.retry_after(50))
            }
            Err(e) => Err(NodeError::unknown(Code::Failed, e.to_string())),
        }
    }

    /// Logs one command in an entry of its own. On the primary.
    pub(super) async fn log_alone(&self, command: Command) -> Result<()> {
        let _writing = self.writing.read().await;
        if !self.is_leader() {
            return Err(self.not_primary());
        }
        self.write([&command]).await.map(drop)
    }

    /// A new primary first applies what its predecessors logged: their time is in there.
    pub(super) async fn caught_up_with(&self, term: u64) -> Result<()> {
        let mut applied = self.state.applied();
        let reached =
            applied.wait_for(|applied| applied.log_id.as_ref().is_some_and(|id| term_of(id) >= term));
        match timeout_at((Instant::now() + self.recent()).into(), reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.no_primary()),
        }
    }

    pub(super) fn broken(&self, error: &std::io::Error) -> NodeError {
        self.fail(error);
        NodeError::not_applied(Code::Failed, error.to_string())
    }

    pub(super) fn not_primary(&self) -> NodeError {
        let text = "this server is not the primary any more";
        NodeError::not_applied(Code::NotPrimary, text).with_primary(self.leader_url()).retry_after(20)
    }

    /// Returns when another node than `id` is known to be the primary.
    pub(super) async fn succeeded(&self, id: NodeId) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leader = metrics.borrow_watched().current_leader;
            if leader.is_some_and(|leader| leader != id) {
                return;
            }
            if metrics.changed().await.is_err() {
                // The Raft core has ended: whoever waits here has a time limit.
                return std::future::pending().await;
            }
        }
    }

    /// Sends the commands to the primary, node `id`.
    async fn forward(&self, id: NodeId, batch: &[Waiting]) -> Result<Vec<Outcome>> {
        let Some(info) = self.member(id) else {
            return Err(self.no_primary());
        };
        let commands = batch.iter().flat_map(|waiting| waiting.commands.iter().cloned()).collect();
        let (lane, request) = (self.lanes.to(id, &info), Request::Propose(commands));
        let answer = tokio::select! {
            biased;
            answer = lane.call(&request, FORWARD_TIMEOUT) => answer,
            // A primary that hangs answers nothing. To wait for it would keep the proposer's few places, also from
            // what its successor, maybe this server, is to have.
            () = self.succeeded(id) => {
                let text = format!("the primary {} was replaced before it answered. Retry with the same session and \
                                    sequence to learn what became of the command", info.name);
                let error = NodeError::unknown(Code::NoPrimary, text).with_primary(self.leader_url());
                return Err(error.retry_after(20));
            }
        };
        match answer {
            Ok(Reply::Propose(outcomes)) => Ok(outcomes),
            Ok(_) => Err(NodeError::unknown(Code::Failed, "the primary answered another question")),
            Err(e) if e.not_sent() => {
                let text = format!("the primary {} is away: {e}", info.name);
                Err(NodeError::not_applied(Code::NoPrimary, text).retry_after(100))
            }
            Err(crate::transport::lane::CallError::Peer(e)) => Err(e),
            Err(e) => {
                let text = format!(
                    "the primary {} did not answer: {e}. Retry with the same session and sequence",
                    info.name
                );
                Err(NodeError::unknown(Code::Timeout, text))
            }
        }
    }
}
