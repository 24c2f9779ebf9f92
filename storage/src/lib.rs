//! What is on a Quorate node's disk: the delta log, the tables with their flushes and snapshots,
//! the sessions, the identity; and the pure machine that applies deltas to the tables.
//!
//! Nothing in this crate opens a socket. The crates above it (`quorate-cluster`, `quorate`) bring
//! the network, the clock and the user.

pub mod codec;
pub mod delta;
pub mod identity;
pub mod log;
pub mod machine;
pub mod node_disk;
pub mod raft_types;
pub mod service;
pub mod snapshot;
pub mod span;
pub mod state_machine;
pub mod tables;

mod files;

/// The version of everything this crate writes to disk. A directory of another version is refused.
pub const FORMAT_VERSION: u32 = 5;
