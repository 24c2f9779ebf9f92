//! What travels between Quorate nodes: the Raft node, the peer transport, joining and membership.
//!
//! A [`node::Node`] is all that the crate above sees: start it, write to it, read from it, change
//! the membership of its cluster, stop it.

pub mod clock;
pub mod detect;
pub mod error;
pub mod message;
pub mod node;
pub mod policy;
pub mod transport;

mod raft_network;

/// The version of the peer protocol. A peer of another version is refused.
pub const PROTOCOL_VERSION: u8 = 4;
