//! openraft's network over lanes.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, type_config::alias::SnapshotOf};
use quorate_storage::raft_types::{NodeId, NodeInfo, TypeConfig, Vote};
use quorate_storage::state_machine::{SnapshotHandle, State};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::Code;
use crate::message::{Reply, Request, SnapshotChunk};
use crate::transport::frame::{ClusterId, Kind, Route};
use crate::transport::lane::{CallError, Lane, PendingReply};
use crate::transport::{self, Dial};

type Rpc = RPCError<TypeConfig>;

/// Append requests on their way to one peer.
const PIPELINE: usize = 64;
/// A peer that answers no append for so long is taken for gone. Longer than a slow disk's sync.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// News of a commit alone wait so long for entries that carry them along: under load that saves two messages for each
/// entry and peer. Backups apply, and answer reads, so much later at most.
const COMMIT_PAUSE: Duration = Duration::from_millis(1);
const SNAPSHOT_CHUNK: usize = 1 << 20;
/// For a piece of a snapshot; the last one is answered when all is installed.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Between attempts while a disk, here or there, has no room for a snapshot: each of them reads all rows.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// Where the members are. openraft keeps a link for as long as it leads, with the address of its beginning; a server
/// that moves announces itself, and links find it here when they dial anew.
#[derive(Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<HashMap<NodeId, String>>>);

impl Addresses {
    /// The newest word on where `id` is.
    pub(crate) fn note(&self, id: NodeId, peer: &str) {
        self.known().insert(id, peer.to_owned());
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NodeId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials one member where it is now.
struct DialMember {
    dial: Arc<dyn Dial>,
    addresses: Addresses,
    id: NodeId,
}

impl Dial for DialMember {
    fn dial<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, io::Result<Box<dyn transport::Stream>>> {
        let now = self.addresses.known().get(&self.id).cloned();
        Box::pin(async move { self.dial.dial(now.as_deref().unwrap_or(peer)).await })
    }
}

/// Makes lanes for openraft.
#[derive(Clone)]
pub(crate) struct PeerNetwork {
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) addresses: Addresses,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = Link;

    /// openraft asks for one each for replication, snapshots and votes.
    async fn new_client(&mut self, target: NodeId, info: &NodeInfo) -> Link {
        self.link(target, info, false)
    }

    /// And for heartbeats, which bulk never delays.
    async fn new_heartbeat_client(&mut self, target: NodeId, info: &NodeInfo) -> Link {
        self.link(target, info, true)
    }
}

impl PeerNetwork {
    /// Connections to one member. With `heartbeats` they carry nothing else.
    pub(crate) fn link(&self, target: NodeId, info: &NodeInfo, heartbeats: bool) -> Link {
        let route = Route { cluster: self.cluster, from: self.node, to: target };
        // The membership's word, which this is, is newer than what was announced before.
        self.addresses.note(target, &info.peer);
        let (dial, addresses) = (Arc::clone(&self.dial), self.addresses.clone());
        let lane = Lane::new(Arc::new(DialMember { dial, addresses, id: target }), info.peer.clone(), route);
        Link { lane: Arc::new(lane), node: self.node, target, heartbeats }
    }
}

/// A connection to one peer, as openraft sees it.
pub(crate) struct Link {
    lane: Arc<Lane>,
    node: NodeId,
    target: NodeId,
    /// It carries nothing but heartbeats.
    heartbeats: bool,
}

impl Link {
    async fn call(&self, request: Request, action: RPCTypes, limit: Duration) -> Result<Reply, Rpc> {
        self.lane.call(&request, limit).await.map_err(|e| self.error(action, e))
    }

    fn error(&self, action: RPCTypes, error: CallError) -> Rpc {
        match error {
            CallError::TimedOut { after, .. } => {
                Timeout { action, id: self.node, target: self.target, timeout: after }.into()
            }
            // A dead peer: openraft backs off. With a `NetworkError` it would try again at once.
            CallError::Unreachable { .. } | CallError::Peer(_) => Unreachable::from_string(error).into(),
            CallError::Lost { .. } => NetworkError::from_string(error).into(),
        }
    }

    fn unexpected(&self) -> Rpc {
        NetworkError::from_string(format!("{} answered another question", self.lane.peer())).into()
    }
}

type Appended = Result<StreamAppendResult<TypeConfig>, Rpc>;

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotHandle;

    /// A heartbeat; entries go through [`Self::stream_append`].
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Rpc> {
        let limit = option.hard_ttl();
        match self.call(Request::Heartbeat(request), RPCTypes::AppendEntries, limit).await? {
            Reply::Heartbeat(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let (sent, waiting) = mpsc::channel::<Result<PendingReply, CallError>>(PIPELINE);
            // Sends as openraft brings requests, while the replies of earlier ones are awaited below.
            let sender = tokio::spawn(send_all(input, Arc::clone(&self.lane), sent));
            let pipeline = Pipeline { waiting, _sender: AbortOnDrop(sender) };
            let link = &*self;
            let replies = futures_util::stream::unfold(Some(pipeline), move |pipeline| async move {
                let mut pipeline = pipeline?;
                let pending = pipeline.waiting.recv().await?;
                let reply = match pending {
                    Ok(pending) => pending.within(APPEND_TIMEOUT).await,
                    Err(e) => Err(e),
                };
                match reply {
                    Ok(Reply::StreamAppend(result)) => Some((Ok(result), Some(pipeline))),
                    Ok(_) => Some((Err(link.unexpected()), None)),
                    Err(e) => Some((Err(link.error(RPCTypes::AppendEntries, e)), None)),
                }
            });
            Ok(replies.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        match self.call(Request::Vote(request), RPCTypes::Vote, option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        match self.call(Request::PreVote(request), RPCTypes::Vote, option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let limit = option.hard_ttl();
        match self.call(Request::TransferLeader(request), RPCTypes::TransferLeader, limit).await? {
            Reply::TransferLeader(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut cancel = pin!(cancel);
        tokio::select! {
            closed = &mut cancel => Err(closed.into()),
            sent = async {
                match &snapshot.snapshot {
                    SnapshotHandle::Flush(state) => self.send_snapshot(vote, state, Request::Snapshot).await,
                    SnapshotHandle::Received(_) => {
                        Err(Unreachable::from_string("a received snapshot is not handed on").into())
                    }
                }
            } => sent,
        }
    }
}

struct Pipeline {
    waiting: mpsc::Receiver<Result<PendingReply, CallError>>,
    _sender: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn send_all<S>(input: S, lane: Arc<Lane>, sent: mpsc::Sender<Result<PendingReply, CallError>>)
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    // It is asked once more after its end.
    let mut input = input.fuse();
    let mut next = input.next().await;
    while let Some(request) = next.take() {
        let request = match request.entries.is_empty() {
            false => request,
            // What comes meanwhile carries at least this commit mark, and its reply covers this request's.
            true => match timeout(COMMIT_PAUSE, input.next()).await {
                Ok(Some(superseding)) => superseding,
                Ok(None) | Err(_) => request,
            },
        };
        let pending = lane.send(Kind::Ordered, &Request::StreamAppend(request));
        let failed = pending.is_err();
        if sent.send(pending).await.is_err() || failed {
            return;
        }
        next = input.next().await;
    }
}

impl Link {
    /// Asks whether the peer has room for a snapshot of so many bytes, before any of them is sent.
    async fn offer(&self, bytes: u64) -> Result<(), StreamingError<TypeConfig>> {
        let reply = self.lane.call(&Request::Offer(bytes), CHUNK_TIMEOUT).await;
        if let Err(CallError::Peer(e)) = &reply
            && e.code == Code::DiskFull
        {
            tracing::warn!(to = self.target, error = %e, "a snapshot is refused");
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
        match reply.map_err(|e| streaming(self.error(RPCTypes::InstallSnapshot, e)))? {
            Reply::Offer => Ok(()),
            _ => Err(streaming(self.unexpected())),
        }
    }

    /// Sends the file of the last flush, which may be newer than what openraft asked for: the
    /// receiver takes its position from the file.
    pub(crate) async fn send_snapshot(
        &self,
        vote: Vote,
        state: &State,
        piece: fn(SnapshotChunk) -> Request,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        static TRANSFERS: AtomicU64 = AtomicU64::new(1);
        let unreadable = |e: std::io::Error| Unreachable::from_string(format!("snapshot: {e}"));
        let written = state.snapshot_file().await;
        if let Err(e) = &written
            && e.kind() == io::ErrorKind::StorageFull
        {
            tracing::warn!(to = self.target, error = %e, "a snapshot is not sent");
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
        let (path, meta) = written.map_err(unreadable)?;
        let mut file = tokio::fs::File::open(&path).await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        self.offer(size).await?;
        tracing::info!(to = self.target, revision = meta.revision, bytes = size, "sending a snapshot");
        // The node id keeps transfers of different primaries apart.
        let transfer = self.node << 32 | TRANSFERS.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX);
        let mut offset = 0;
        loop {
            let mut bytes = Vec::with_capacity(SNAPSHOT_CHUNK);
            (&mut file).take(SNAPSHOT_CHUNK as u64).read_to_end(&mut bytes).await.map_err(unreadable)?;
            let next = offset + bytes.len() as u64;
            let last = next >= size;
            let chunk = SnapshotChunk { transfer, vote, offset, bytes: Bytes::from(bytes), last };
            let limit = if last { INSTALL_TIMEOUT } else { CHUNK_TIMEOUT };
            let reply = self.lane.call(&piece(chunk), limit).await;
            if last && matches!(&reply, Err(CallError::Peer(e)) if e.code != Code::DiskFull) {
                // The receiver checks the file: should ours be damaged, the next attempt writes a new one.
                let _ = tokio::fs::remove_file(&path).await;
            }
            match reply.map_err(|e| streaming(self.error(RPCTypes::InstallSnapshot, e)))? {
                Reply::Snapshot(Some(vote)) => return Ok(SnapshotResponse::new(vote)),
                Reply::Snapshot(None) if !last => offset = next,
                _ => return Err(streaming(self.unexpected())),
            }
        }
    }
}

fn streaming(error: Rpc) -> StreamingError<TypeConfig> {
    match error {
        RPCError::Timeout(e) => e.into(),
        RPCError::Unreachable(e) => e.into(),
        RPCError::Network(e) => e.into(),
        RPCError::RemoteError(e) => Unreachable::from_string(e).into(),
    }
}
