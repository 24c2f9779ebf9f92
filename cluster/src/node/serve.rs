//! What a node answers its peers.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult};
use quorate_storage::delta::{Command, DeltaResult, Outcome};
use quorate_storage::machine;
use quorate_storage::raft_types::{Entry, NodeId, Payload, TypeConfig};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Inner;
use crate::error::{Code, NodeError};
use crate::message::{JoinRequest, Reply, Request};
use crate::transport::lane::CallError;
use crate::transport::server::{Handler, Ordered};

/// Append requests of one connection that wait for the disk.
const PIPELINE: usize = 128;
/// A forwarded request has this long here.
const LIMIT: Duration = Duration::from_secs(10);
/// Passing a question on to the primary.
const PASS_ON: Duration = Duration::from_secs(4);

type Result<T> = std::result::Result<T, NodeError>;
type ReplyTo = oneshot::Sender<Result<Reply>>;

/// Answers peers.
pub(super) struct PeerHandler {
    inner: Arc<Inner>,
}

/// One connection's appends on their way into openraft, in order.
pub(super) struct AppendPipe {
    requests: mpsc::Sender<(AppendEntriesRequest<TypeConfig>, ReplyTo)>,
}

impl PeerHandler {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }
}

impl Handler for PeerHandler {
    type Pipe = AppendPipe;

    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'_, Result<Reply>> {
        Box::pin(self.inner.answer(from, request))
    }

    fn handle_ordered<'a>(
        &'a self,
        from: NodeId,
        request: Request,
        pipe: &'a mut Option<AppendPipe>,
    ) -> BoxFuture<'a, Ordered> {
        Box::pin(async move {
            let (reply, receiver) = oneshot::channel();
            match request {
                Request::StreamAppend(request) => match self.inner.refuse_entries(&request) {
                    Some(refusal) => drop(reply.send(Err(refusal))),
                    None => self.inner.enqueue_append(request, reply, pipe).await,
                },
                other => drop(reply.send(self.inner.answer(from, other).await)),
            }
            Ordered(receiver)
        })
    }
}

impl Inner {
    async fn answer(&self, from: NodeId, request: Request) -> Result<Reply> {
        match request {
            Request::Heartbeat(request) => {
                let reply = self.heartbeat(request).await?;
                if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
                    self.heard.send_replace(Some(Instant::now()));
                }
                Ok(Reply::Heartbeat(reply))
            }
            Request::StreamAppend(_) => {
                Err(NodeError::not_applied(Code::BadRequest, "entries come in order, on a lane of their own"))
            }
            Request::Vote(request) => {
                // The primary itself wants a transfer: no lease stands against it.
                if !request.leadership_transfer {
                    self.check_may_vote()?;
                }
                self.raft.vote(request).await.map(Reply::Vote).map_err(|e| self.fatal(e))
            }
            Request::PreVote(request) => {
                self.check_may_vote()?;
                self.raft.pre_vote(request).await.map(Reply::Vote).map_err(|e| self.fatal(e))
            }
            Request::TransferLeader(request) => {
                let reply = self.raft.handle_transfer_leader(request).await;
                reply.map(Reply::TransferLeader).map_err(|e| self.fatal(e))
            }
            Request::Offer(bytes) => self.offered(bytes).map(|()| Reply::Offer),
            Request::Snapshot(chunk) => self.take_chunk(chunk).await.map(Reply::Snapshot),
            Request::Propose(commands) => {
                if !self.is_leader() {
                    return Err(self.not_primary());
                }
                self.propose_known(commands).await.map(Reply::Propose)
            }
            Request::ReadIndex { lease } => {
                if !self.is_leader() {
                    return Err(self.not_primary());
                }
                self.read_index(lease, Instant::now() + LIMIT).await.map(Reply::ReadIndex)
            }
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
            Request::Removed => {
                // Not believed, only looked into: without a primary that is heard, this server asks whether it is a member.
                self.heard.send_replace(None);
                Ok(Reply::Removed)
            }
            Request::State(chunk) => self.take_state(chunk).await.map(Reply::Snapshot),
            Request::SendState { above } => self.send_state(from, above).await.map(|()| Reply::StateSent),
            Request::Clock => Ok(Reply::Clock(self.clock.wall())),
            Request::Members(request) => {
                if !self.is_leader() {
                    return Err(self.not_primary());
                }
                self.change(&request).await.map(Reply::Members)
            }
            Request::Join(request) => self.answer_join(request).await,
            Request::Announce { node_id, info } => match self.is_leader() {
                true => self.announced(node_id, info).await.map(|()| Reply::Announced),
                false => self.pass_on(Request::Announce { node_id, info }).await,
            },
            Request::StillMember { node_id, info, membership } => match self.is_leader() {
                true => self.still_member(node_id, info, membership).await.map(Reply::StillMember),
                false => self.pass_on(Request::StillMember { node_id, info, membership }).await,
            },
        }
    }

    /// Answers a heartbeat once the Raft core has heard it. openraft's own answer waits until all entries before it are on
    /// disk, and disks do hang for a second: then no backup would answer, the primary would take its majority for lost and
    /// fall silent (`quorum_loss_probe_interval`), and the others would elect one whose disk hangs as well.
    async fn heartbeat(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>> {
        if !request.entries.is_empty() {
            return Err(NodeError::not_applied(Code::BadRequest, "a heartbeat has no entries"));
        }
        let vote = request.vote;
        let mut answer = pin!(async { self.raft.append_entries(request).await.map_err(|e| self.fatal(e)) });
        if let Ok(answer) = timeout(self.timing.heartbeat / 5, &mut answer).await {
            return answer;
        }
        // The core takes this question after the heartbeat. If that was refused, its answer is there by then.
        let follows = self.raft.with_raft_state(move |state| *state.vote_ref() == vote);
        let follows = tokio::select! {
            biased;
            answer = &mut answer => return answer,
            follows = follows => follows.map_err(|e| self.fatal(e))?,
        };
        match follows {
            true => answer.as_mut().now_or_never().unwrap_or(Ok(AppendEntriesResponse::Success)),
            false => answer.await,
        }
    }

    /// Proposes what this build can apply. In a rolling upgrade others may know more than the primary; who came along
    /// with that must not suffer.
    async fn propose_known(&self, commands: Vec<Command>) -> Result<Vec<Outcome>> {
        let registry = self.state.registry();
        let unknown: BTreeMap<usize, String> = (commands.iter().enumerate())
            .filter(|(_, command)| !machine::supports(registry, &command.service, &command.body))
            .map(|(place, command)| (place, self.unsupported(&command.service)))
            .collect();
        let deadline = Instant::now() + LIMIT;
        if unknown.is_empty() {
            return self.propose_once(Arc::new(commands), deadline, true).await;
        }
        let known = commands.into_iter().enumerate().filter(|(place, _)| !unknown.contains_key(place));
        let known: Vec<Command> = known.map(|(_, command)| command).collect();
        let mut outcomes = match known.is_empty() {
            true => Vec::new(),
            false => self.propose_once(Arc::new(known), deadline, true).await?,
        };
        for (place, detail) in unknown {
            let result = DeltaResult::Unsupported(detail);
            // Short of outcomes, the caller finds that their number is wrong.
            outcomes.insert(place.min(outcomes.len()), Outcome { revision: 0, result });
        }
        Ok(outcomes)
    }

    fn unsupported(&self, service: &str) -> String {
        format!(
            "the primary, {}, does not know this command of service {service:?}: it runs an older build. Upgrade all \
             servers first",
            self.info.name
        )
    }

    async fn answer_join(&self, request: JoinRequest) -> Result<Reply> {
        match self.is_leader() {
            true => self.admit(request).await.map(Reply::Join),
            false => self.pass_on(Request::Join(request)).await,
        }
    }

    /// Any server may be asked: it asks the primary.
    async fn pass_on(&self, request: Request) -> Result<Reply> {
        let leader = self.leader().filter(|id| *id != self.id);
        let Some((id, info)) = leader.and_then(|id| Some((id, self.member(id)?))) else {
            return Err(self.no_primary());
        };
        match self.lanes.to(id, &info).call(&request, PASS_ON).await {
            Ok(reply) => Ok(reply),
            // Somebody else is at the primary's address: that is not to be told of this server's.
            Err(CallError::Peer(e)) if e.code != Code::Misdirected => Err(e),
            Err(e) => Err(NodeError::unknown(Code::NoPrimary, e.to_string())),
        }
    }

    pub(super) fn fatal(&self, error: impl std::fmt::Display) -> NodeError {
        self.fail(&error);
        NodeError::unknown(Code::Failed, error.to_string())
    }

    /// A lease that this node granted before a restart is forgotten, so it waits one out.
    fn check_may_vote(&self) -> Result<()> {
        if self.started.elapsed() >= self.timing.election.1 {
            return Ok(());
        }
        Err(NodeError::not_applied(Code::NotReady, "this server has just started; it votes a moment later"))
    }

    /// A backup that runs out of disk refuses commands long before it must stop. Heartbeats go on, and so do the few
    /// bytes of an election (reads need a primary); a new primary also sends again what is here already.
    fn refuse_entries(&self, request: &AppendEntriesRequest<TypeConfig>) -> Option<NodeError> {
        if !self.disk.is_nearly_full() {
            return None;
        }
        let last = self.raft.metrics().borrow_watched().last_log_index;
        let adds =
            |entry: &Entry| matches!(entry.payload, Payload::Normal(_)) && Some(entry.log_id.index) > last;
        request.entries.iter().any(adds).then(|| self.disk.error())
    }

    async fn enqueue_append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        reply: ReplyTo,
        pipe: &mut Option<AppendPipe>,
    ) {
        // A pipe ends with the first conflict or higher vote; what comes after starts a new one.
        if pipe.as_ref().is_none_or(|pipe| pipe.requests.is_closed()) {
            *pipe = Some(self.append_pipe());
        }
        if let Some(pipe) = pipe {
            // If it ends meanwhile, the reply's sender is dropped, and the peer is told so.
            let _ = pipe.requests.send((request, reply)).await;
        }
    }

    fn append_pipe(&self) -> AppendPipe {
        let (requests, mut inbox) = mpsc::channel::<(AppendEntriesRequest<TypeConfig>, ReplyTo)>(PIPELINE);
        let (feed, fed) = mpsc::channel(1);
        let (waiting, mut replies) = mpsc::channel::<ReplyTo>(PIPELINE);
        let results = self.raft.stream_append(receiver_stream(fed));
        let (failed, heard) = (self.failed.clone(), self.heard.clone());
        tokio::spawn(async move {
            // Polled after its end, openraft's stream panics.
            let mut results = Box::pin(results.fuse());
            let feeding = async {
                while let Some((request, reply)) = inbox.recv().await {
                    if waiting.send(reply).await.is_err() || feed.send(request).await.is_err() {
                        break;
                    }
                }
                drop(feed);
                std::future::pending::<()>().await;
            };
            let answering = async {
                while let Some(result) = results.next().await {
                    let Some(reply) = replies.recv().await else { break };
                    let result: Result<StreamAppendResult<TypeConfig>> = result.map_err(|e| {
                        failed.send_if_modified(|failed| failed.replace(e.to_string()).is_none());
                        NodeError::unknown(Code::Failed, e.to_string())
                    });
                    if !matches!(result, Ok(Err(StreamAppendError::HigherVote(_))) | Err(_)) {
                        heard.send_replace(Some(Instant::now()));
                    }
                    let _ = reply.send(result.map(Reply::StreamAppend));
                }
            };
            tokio::select! {
                () = feeding => {}
                () = answering => {}
            }
        });
        AppendPipe { requests }
    }
}

fn receiver_stream<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}
