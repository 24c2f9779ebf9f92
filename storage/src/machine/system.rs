//! The built-in service "system": ticks, node ids, settings, checkpoints.

use serde::{Deserialize, Serialize};

use super::{checkpoints, settings};
use crate::delta::Millis;
use crate::service::Refusal;
use crate::tables::{Table, Tables};

/// The namespace of the system's tables.
pub(super) const NAMESPACE: &str = crate::delta::SYSTEM_SERVICE;

const NODE_IDS: Table<(), u64> = Table::new("node_ids");

/// A command to the built-in service "system". Append variants only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemCommand {
    /// Time passes: sessions expire, services do what is due.
    Tick,
    /// Gives out a node id that was never used, for a server that joins with an empty disk.
    AllocateNodeId {
        /// The server's name, for whoever reads the log.
        name: String,
    },
    /// Sets a setting of the cluster.
    Set {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Sets a checkpoint.
    Checkpoint,
}

/// The reply to a [`SystemCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemReply {
    /// Nothing to say.
    Done,
    /// The new node id.
    NodeId(u64),
    /// The checkpoint's number.
    Checkpoint(u64),
}

/// `cluster init` takes this id for the first server without asking anybody.
pub const FIRST_NODE_ID: u64 = 1;

/// Where a system command is applied.
pub(super) struct At {
    pub(super) revision: u64,
    pub(super) time: Millis,
    /// The hash of all rows before it.
    pub(super) hash: u128,
}

/// Applies a system command. `Tick` is the machine's business: here it does nothing.
pub(super) fn apply(tables: &mut Tables<'_>, command: SystemCommand, at: At) -> Result<SystemReply, Refusal> {
    match command {
        SystemCommand::Tick => Ok(SystemReply::Done),
        SystemCommand::AllocateNodeId { .. } => {
            let id = tables.get(&NODE_IDS, &()).unwrap_or(FIRST_NODE_ID) + 1;
            tables.put(&NODE_IDS, &(), &id);
            Ok(SystemReply::NodeId(id))
        }
        SystemCommand::Set { name, value } => {
            settings::set(tables, name, value, at.revision)?;
            Ok(SystemReply::Done)
        }
        SystemCommand::Checkpoint => {
            let number = checkpoints::set(tables, at.revision, at.time, at.hash);
            Ok(SystemReply::Checkpoint(number))
        }
    }
}
