//! The log of deltas, for people: what was done, when, by whom.

use std::sync::Arc;

use quorate_storage::codec;
use quorate_storage::delta::{Delta, EntryReader, Millis, SESSION_SERVICE, SYSTEM_SERVICE};
use quorate_storage::machine::{SessionCommand, SystemCommand};
use quorate_storage::raft_types::Payload;
use quorate_storage::state_machine::State;

use super::Node;
use crate::error::{Code, NodeError};

/// A page holds about this many bytes of commands: as JSON they take several times as much memory.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// One delta as it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedDelta {
    /// Its revision.
    pub revision: u64,
    /// The logged time, milliseconds since the Unix epoch.
    pub time: Millis,
    /// Its session; 0 for none.
    pub session: u64,
    /// Its sequence; 0 for none.
    pub sequence: u64,
    /// Whose command it is.
    pub service: String,
    /// The command, as JSON of the form `{"add":{…}}`.
    pub command: serde_json::Value,
}

/// A page of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogPage {
    /// The deltas, by revision.
    pub deltas: Vec<LoggedDelta>,
    /// The oldest revision that is still kept.
    pub oldest: u64,
    /// The revision to go on from.
    pub next: u64,
}

impl Node {
    /// The applied deltas from revision `from` on; from the oldest kept one if `from` is older. At most `limit`, and
    /// fewer when they are long: whoever wants more goes on from `next`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn log_page(&self, from: u64, limit: usize) -> Result<LogPage, NodeError> {
        if let Some(removed) = self.inner.removed_error() {
            return Err(removed);
        }
        // One page at a time, even when who asked has gone: each takes some MiB of memory and a thread.
        let turn = Arc::clone(&self.inner.log_pages).lock_owned().await;
        let state = self.inner.state.clone();
        // Not on the node's thread: it reads the disk, after a restart even all that the log keeps.
        let page = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            page(&state, from, limit)
        });
        let page = page.await.unwrap_or_else(|e| Err(e.to_string()));
        page.map_err(|e| NodeError::not_applied(Code::Failed, e))
    }
}

fn page(state: &State, from: u64, limit: usize) -> Result<LogPage, String> {
    let text = |e: std::io::Error| e.to_string();
    let place = state.place_of(from).map_err(text)?;
    let (mut index, mut revision, end, oldest) = (place.index, place.before, place.end, place.oldest);
    let from = from.max(oldest);
    let (mut deltas, mut bytes) = (Vec::new(), 0);
    'page: while index < end && deltas.len() < limit {
        let entries = state.log().read(index, end).map_err(text)?;
        if entries.first().is_none_or(|entry| entry.log_id.index != index) {
            // Purged meanwhile.
            break;
        }
        for entry in entries {
            index = entry.log_id.index + 1;
            let Payload::Normal(payload) = &entry.payload else {
                continue;
            };
            for delta in EntryReader::new(&payload.0).map_err(|e| e.to_string())? {
                let delta = delta.map_err(|e| e.to_string())?;
                revision += 1;
                if revision < from {
                    continue;
                }
                bytes += delta.body.len();
                if deltas.len() == limit || (bytes > MAX_PAGE_BYTES && !deltas.is_empty()) {
                    break 'page;
                }
                deltas.push(show(state, revision, &delta));
            }
        }
    }
    let next = deltas.last().map_or(from, |delta| delta.revision + 1);
    Ok(LogPage { deltas, oldest, next })
}

fn show(state: &State, revision: u64, delta: &Delta<'_>) -> LoggedDelta {
    let command = match delta.service {
        SESSION_SERVICE => codec::decode::<SessionCommand>(delta.body).ok().and_then(to_json),
        SYSTEM_SERVICE => codec::decode::<SystemCommand>(delta.body).ok().and_then(to_json),
        name => state.registry().get(name).and_then(|service| service.command_to_json(delta.body).ok()),
    };
    LoggedDelta {
        revision,
        time: delta.time,
        session: delta.session,
        sequence: delta.sequence,
        service: delta.service.to_owned(),
        command: command.unwrap_or(serde_json::Value::Null),
    }
}

fn to_json(command: impl serde::Serialize) -> Option<serde_json::Value> {
    serde_json::to_value(command).ok()
}
