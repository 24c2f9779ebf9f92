//! openraft's types as Quorate uses them. They stay inside `storage` and `cluster`.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use serde::{Deserialize, Serialize};

use crate::delta::Outcome;

/// A Raft node id. A server that lost its disk comes back under a new one; ids are never reused.
pub type NodeId = u64;

/// What the membership says of a node besides its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The server's stable name, `S1`.
    pub name: String,
    /// Where clients reach it: `http://host:port`.
    pub url: String,
    /// Where peers reach it: `host:port`.
    pub peer: String,
    /// True for a witness: it replicates everything and serves no clients.
    pub witness: bool,
}

impl fmt::Display for NodeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.peer)
    }
}

/// One log entry's deltas, encoded: to openraft, opaque bytes. See [`crate::delta::encode_entry`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deltas(pub Bytes);

impl fmt::Debug for Deltas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deltas({} bytes)", self.0.len())
    }
}

impl fmt::Display for Deltas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying one log entry gave: an outcome per delta, in order; empty for blank and membership entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes(pub Vec<Outcome>);

openraft::declare_raft_types!(
    /// Standard Raft leader ids: at most one leader per term (invariant 4), unlike openraft's default.
    pub TypeConfig:
        D = Deltas,
        R = Outcomes,
        NodeId = NodeId,
        Node = NodeInfo,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
);

/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A log entry's payload.
pub type Payload = openraft::EntryPayload<Deltas, NodeId, NodeInfo>;
/// Term and index of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// The membership with the log id that set it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// The log id of `term` and `index`.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::type_config::alias::CommittedLeaderIdOf::<TypeConfig>::new(term), index)
}

/// The term of a log id.
pub fn term_of(log_id: &LogId) -> u64 {
    **log_id.committed_leader_id()
}
