//! The messages between nodes. Append variants only: bincode numbers them by position.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorate_storage::delta::{Command, Millis, Outcome};
use quorate_storage::machine::Checkpoint;
use quorate_storage::raft_types::{LogId, NodeId, NodeInfo, TypeConfig, Vote};
use serde::{Deserialize, Serialize};

/// What one node asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Raft: an append without entries, which its receiver may answer before its disk has what came before.
    Heartbeat(AppendEntriesRequest<TypeConfig>),
    /// Raft: entries, pipelined; answered in order.
    StreamAppend(AppendEntriesRequest<TypeConfig>),
    /// Raft: a vote.
    Vote(VoteRequest<TypeConfig>),
    /// Raft: would you vote for me?
    PreVote(VoteRequest<TypeConfig>),
    /// Raft: take over.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// A piece of a snapshot file.
    Snapshot(SnapshotChunk),
    /// Clients' commands for the primary.
    Propose(Vec<Command>),
    /// Which log id must a linearizable read have seen? For the primary.
    ReadIndex {
        /// Trust the primary's lease instead of asking the voters.
        lease: bool,
    },
    /// How are you?
    Status,
    /// A change of the membership, for the primary.
    Members(MembersRequest),
    /// A server with an empty disk wants a node id. For the primary.
    Join(JoinRequest),
    /// A server says where it is; a new one is added as a learner. For the primary.
    Announce {
        /// Its node id.
        node_id: NodeId,
        /// Its name and addresses.
        info: NodeInfo,
    },
    /// A server that knows a membership, but hears of no primary or has moved: is it a member? For the primary.
    StillMember {
        /// Its node id.
        node_id: NodeId,
        /// Its name and addresses now.
        info: NodeInfo,
        /// The log id of the last membership that it knows.
        membership: Option<LogId>,
    },
    /// What does your wall clock show?
    Clock,
    /// This node was removed from the membership: it is to ask. An older build takes this for malformed, and asks when it
    /// misses the primary.
    Removed,
    /// Is there room for a snapshot of so many bytes? An older build takes this for malformed, and gets no snapshot before
    /// it is upgraded.
    Offer(u64),
    /// The sender's state differs: it wants the whole state, as `State`, at a later entry than this index. For the primary.
    SendState {
        /// What the sender has applied.
        above: u64,
    },
    /// A piece of a snapshot file for who asked for the state, and not for Raft. Answered as `Snapshot`.
    State(SnapshotChunk),
}

/// The answer to a [`Request`] of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To `Heartbeat`.
    Heartbeat(AppendEntriesResponse<TypeConfig>),
    /// To `StreamAppend`.
    StreamAppend(StreamAppendResult<TypeConfig>),
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<TypeConfig>),
    /// To `TransferLeader`.
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    /// To `Snapshot` and `State`: the receiver's vote once the last piece is installed.
    Snapshot(Option<Vote>),
    /// To `Propose`: one per command, in order.
    Propose(Vec<Outcome>),
    /// To `ReadIndex`.
    ReadIndex(Option<LogId>),
    /// To `Status`.
    Status(Box<NodeStatus>),
    /// To `Members`.
    Members(MembersReply),
    /// To `Join`.
    Join(JoinReply),
    /// To `Announce`.
    Announced,
    /// To `StillMember`; `None`: it is.
    StillMember(Option<Removal>),
    /// To `Clock`: milliseconds since the Unix epoch.
    Clock(Millis),
    /// To `Removed`.
    Removed,
    /// To `Offer`: there is.
    Offer,
    /// To `SendState`: it was sent.
    StateSent,
}

/// A piece of a snapshot file; pieces of one transfer come in order over one lane.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Which transfer, so that two do not mix.
    pub transfer: u64,
    /// The primary's vote.
    pub vote: Vote,
    /// Where the piece belongs, in bytes.
    pub offset: u64,
    /// The piece.
    pub bytes: Bytes,
    /// Nothing follows: install it.
    pub last: bool,
}

/// A server with an empty disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Its name and addresses.
    pub info: NodeInfo,
    /// The services of its build.
    pub services: Vec<String>,
}

/// Who the server is from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinReply {
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The new node id.
    pub node_id: NodeId,
    /// The peers' addresses.
    pub peers: Vec<String>,
}

/// A server was removed from the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The log id of a committed membership without it (`term-index`).
    pub membership: String,
    /// Where the members' clients connect, the primary first.
    pub urls: Vec<String>,
}

/// An operation on the membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberOp {
    /// A learner becomes a voter; it replaces a voter of the same name in the same change.
    Promote,
    /// A voter becomes a learner.
    Demote,
    /// A server leaves the membership.
    Remove,
    /// Leadership moves.
    Transfer,
    /// A learner votes in the place of a voter, which goes; a witness stays as a learner.
    Replace,
    /// The change that a primary left half done is finished.
    Finish,
    /// A removed server that still runs becomes a learner again.
    TakeBack,
}

/// A membership operation with its compare-and-set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MembersRequest {
    /// What to do.
    pub op: MemberOp,
    /// With which server; for a transfer, empty means the best one.
    pub name: String,
    /// Only if the membership is still the one of this log id (`term-index`).
    pub if_membership: Option<String>,
    /// Which of the servers of that name: a wiped one is another node than it was.
    pub node: Option<NodeId>,
    /// For a replacement, the learner.
    pub by: Option<NodeId>,
    /// Only if the settings are still those of this revision.
    pub if_settings: Option<u64>,
}

impl MembersRequest {
    /// Without conditions, on whoever is called `name`.
    pub fn new(op: MemberOp, name: impl Into<String>) -> Self {
        Self { op, name: name.into(), if_membership: None, node: None, by: None, if_settings: None }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersReply {
    /// The membership's log id now (`term-index`).
    pub membership: String,
    /// The voters' names.
    pub voters: Vec<String>,
    /// The learners' names.
    pub learners: Vec<String>,
    /// The primary's name, if known.
    pub primary: Option<String>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its node id.
    pub node_id: NodeId,
    /// Its name and addresses.
    pub info: NodeInfo,
    /// Its term.
    pub term: u64,
    /// Whom it takes for the primary.
    pub leader: Option<NodeId>,
    /// Caught up, and with a primary.
    pub ready: bool,
    /// The last index in its log.
    pub last_log: u64,
    /// The last index that it knows to be committed.
    pub committed: u64,
    /// The last index that it has applied.
    pub applied: u64,
    /// Its revision; with `state_hash` one atomic pair.
    pub revision: u64,
    /// The hash of its state at `revision`.
    pub state_hash: u128,
    /// The logged time at `revision`, milliseconds since the Unix epoch.
    pub time: Millis,
    /// The revision of its last flush.
    pub flushed: u64,
    /// Bytes of rows that are not flushed yet.
    pub dirty_bytes: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Free bytes on its disk.
    pub disk_free: u64,
    /// Below the reserve: as primary it takes no writes.
    pub disk_low: bool,
    /// Its wall clock is not believed: how far ahead it is, in milliseconds.
    pub clock_ahead_ms: Option<u64>,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Of a primary: for how long it has not heard of each member, in milliseconds; none if it never has.
    pub silent_ms: BTreeMap<NodeId, Option<u64>>,
    /// Of a primary: the members that it hears of, itself included.
    pub heard: BTreeSet<NodeId>,
    /// Of a primary: servers that were removed, still run, and ask it what has become of them.
    pub strays: Vec<String>,
    /// The last checkpoints with this replica's hashes, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The checkpoint at which its state was found to differ from the majority's.
    pub differs_at: Option<u64>,
}
