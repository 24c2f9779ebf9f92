//! The built-in service "system": ticks, node ids, settings.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use crate::service::Refusal;
use crate::tables::{Table, Tables, View};

/// The namespace of the system's tables.
pub(super) const NAMESPACE: &str = crate::delta::SYSTEM_SERVICE;

const NODE_IDS: Table<(), u64> = Table::new("node_ids");
const SETTINGS: Table<String, String> = Table::new("settings");

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
}

/// The reply to a [`SystemCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemReply {
    /// Nothing to say.
    Done,
    /// The new node id.
    NodeId(u64),
}

/// `cluster init` takes this id for the first server without asking anybody.
pub const FIRST_NODE_ID: u64 = 1;

/// Applies a system command. `Tick` is the machine's business: here it does nothing.
pub(super) fn apply(tables: &mut Tables<'_>, command: SystemCommand) -> Result<SystemReply, Refusal> {
    match command {
        SystemCommand::Tick => Ok(SystemReply::Done),
        SystemCommand::AllocateNodeId { .. } => {
            let id = tables.get(&NODE_IDS, &()).unwrap_or(FIRST_NODE_ID) + 1;
            tables.put(&NODE_IDS, &(), &id);
            Ok(SystemReply::NodeId(id))
        }
        SystemCommand::Set { name, value } => {
            check_setting(&name, &value)?;
            tables.put(&SETTINGS, &name, &value);
            Ok(SystemReply::Done)
        }
    }
}

/// The settings that this build knows, with their defaults.
const KNOWN: [(&str, &str); 1] = [("mode", "active")];

fn check_setting(name: &str, value: &str) -> Result<(), Refusal> {
    match (name, value) {
        ("mode", "active") => Ok(()),
        ("mode", _) => Err(Refusal::new(
            "bad_setting",
            format!("mode {value:?} is not supported by this version: use active"),
        )),
        _ => {
            let known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            Err(Refusal::new(
                "bad_setting",
                format!("no setting is called {name:?}; there are: {}", known.join(", ")),
            ))
        }
    }
    .map_err(|refusal| refusal.with_status(400))
}

/// All settings, defaults included.
pub(super) fn settings(tables: &View<'_>) -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> =
        KNOWN.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    tables.range(&SETTINGS, (Bound::Unbounded, Bound::Unbounded), |name, value| {
        settings.insert(name, value);
        ControlFlow::Continue(())
    });
    settings
}
