//! The log of deltas, for people: what was done, when, by whom.

use quorate_storage::codec;
use quorate_storage::delta::{self, Millis, SESSION_SERVICE, SYSTEM_SERVICE};
use quorate_storage::machine::{SessionCommand, SystemCommand};
use quorate_storage::raft_types::Payload;

use super::{Inner, Node};
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
    pub fn log_page(&self, from: u64, limit: usize) -> Result<LogPage, NodeError> {
        self.inner.log_page(from, limit).map_err(|e| NodeError::not_applied(Code::Failed, e))
    }
}

impl Inner {
    fn log_page(&self, from: u64, limit: usize) -> Result<LogPage, String> {
        let text = |e: std::io::Error| e.to_string();
        let log = self.state.log();
        let end = self.state.applied().borrow().log_id.as_ref().map_or(0, |id| id.index + 1);
        let Some((first, _)) = log.range().filter(|(first, _)| *first < end) else {
            let next = self.state.applied().borrow().revision + 1;
            return Ok(LogPage { deltas: Vec::new(), oldest: next, next });
        };
        // `None` while entries that were applied before the start are being replayed.
        let oldest = self.state.revision_before(first).map_err(text)?.unwrap_or(0) + 1;
        let from = from.max(oldest);
        let mut index = self.entry_before(from, first, end).map_err(text)?;
        let mut revision = self.state.revision_before(index).map_err(text)?.unwrap_or(0);
        let (mut deltas, mut bytes) = (Vec::new(), 0);
        'page: while index < end && deltas.len() < limit {
            let entries = log.read(index, end).map_err(text)?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                index = entry.log_id.index + 1;
                let Payload::Normal(payload) = &entry.payload else {
                    continue;
                };
                for delta in delta::deltas(&payload.0).map_err(|e| e.to_string())?.1 {
                    let delta = delta.map_err(|e| e.to_string())?;
                    revision += 1;
                    if revision < from {
                        continue;
                    }
                    bytes += delta.body.len();
                    if deltas.len() == limit || (bytes > MAX_PAGE_BYTES && !deltas.is_empty()) {
                        break 'page;
                    }
                    deltas.push(self.show(revision, &delta));
                }
            }
        }
        let next = deltas.last().map_or(from, |delta| delta.revision + 1);
        Ok(LogPage { deltas, oldest, next })
    }

    /// The last entry at or before which revision `from` begins, by bisection.
    fn entry_before(&self, from: u64, first: u64, end: u64) -> std::io::Result<u64> {
        let (mut low, mut high) = (first, end);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.state.revision_before(middle)? {
                Some(revision) if revision < from => low = middle,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn show(&self, revision: u64, delta: &delta::Delta<'_>) -> LoggedDelta {
        let command = match delta.service {
            SESSION_SERVICE => codec::decode::<SessionCommand>(delta.body).ok().and_then(to_json),
            SYSTEM_SERVICE => codec::decode::<SystemCommand>(delta.body).ok().and_then(to_json),
            name => {
                self.state.registry().get(name).and_then(|service| service.command_to_json(delta.body).ok())
            }
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
}

fn to_json(command: impl serde::Serialize) -> Option<serde_json::Value> {
    serde_json::to_value(command).ok()
}
