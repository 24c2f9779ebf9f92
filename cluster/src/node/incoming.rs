//! Snapshots that are sent here: received piece by piece, built beside the state, and given to openraft.
//!
//! openraft takes a failed install for a failed disk and stops the node. So all that can fail for want of room, or because
//! the file is damaged, is done before openraft hears of the snapshot: then this server goes on as it was.

use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::PoisonError;

use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use quorate_storage::raft_types::{SnapshotMeta, TypeConfig, Vote};
use quorate_storage::state_machine::{Built, SnapshotHandle};

use super::Inner;
use crate::error::{Code, NodeError};
use crate::message::SnapshotChunk;

type Result<T> = std::result::Result<T, NodeError>;

/// When a server without room for a snapshot is to be asked again.
const NO_ROOM_RETRY_MS: u64 = 5_000;

fn store(file: &Path, chunk: &SnapshotChunk) -> io::Result<()> {
    let mut out = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
    if chunk.offset == 0 {
        out.set_len(0)?;
        remove_incoming(file.parent(), Some(file))?;
    }
    if out.seek(SeekFrom::End(0))? != chunk.offset {
        return Err(io::Error::other("a piece is missing"));
    }
    out.write_all(&chunk.bytes)?;
    if chunk.last { out.sync_all() } else { Ok(()) }
}

/// What interrupted or refused transfers left would fill the disk. One that is under way begins again.
fn remove_incoming(dir: Option<&Path>, keep: Option<&Path>) -> io::Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let incoming = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("incoming-"));
        if incoming && Some(&*path) != keep {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn failed(error: io::Error) -> NodeError {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            NodeError::not_applied(Code::DiskFull, error.to_string()).retry_after(NO_ROOM_RETRY_MS)
        }
        _ => NodeError::not_applied(Code::Failed, format!("the snapshot cannot be stored: {error}")),
    }
}

impl Inner {
    /// Whether a snapshot of so many bytes may be sent here: there must be room for the file, and for the tables that are
    /// built from it.
    pub(super) fn offered(&self, bytes: u64) -> Result<()> {
        self.state.check_room(bytes.saturating_mul(2)).map_err(|e| self.no_snapshot(e))
    }

    /// Takes a piece of a snapshot; gives the file to openraft when it was the last one.
    pub(super) async fn take_chunk(&self, chunk: SnapshotChunk) -> Result<Option<Vote>> {
        let vote = chunk.vote;
        let Some(built) = self.take_piece(chunk).await? else { return Ok(None) };
        let meta = built.meta();
        tracing::info!(revision = meta.revision, "installing a snapshot");
        let meta = SnapshotMeta { last_log_id: meta.applied, last_membership: meta.membership.clone() };
        let snapshot: SnapshotOf<TypeConfig, SnapshotHandle> =
            openraft::storage::Snapshot { meta, snapshot: SnapshotHandle::Received(built) };
        let SnapshotResponse { vote } =
            self.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| self.fatal(e))?;
        Ok(Some(vote))
    }

    /// Takes a piece of the state that this server asked for; keeps what it builds of it for who asked.
    pub(super) async fn take_state(&self, chunk: SnapshotChunk) -> Result<Option<Vote>> {
        if self.differs().is_none() {
            let text = "this server has not asked for the state, or has it by now";
            return Err(NodeError::not_applied(Code::Refused, text));
        }
        let vote = chunk.vote;
        let Some(built) = self.take_piece(chunk).await? else { return Ok(None) };
        *self.sent_state.lock().unwrap_or_else(PoisonError::into_inner) = Some(built);
        Ok(Some(vote))
    }

    /// Stores a piece; builds the tables when it was the last one.
    async fn take_piece(&self, chunk: SnapshotChunk) -> Result<Option<Built>> {
        let path = self.state.incoming_file(chunk.transfer).map_err(failed)?;
        let last = chunk.last;
        let (state, file) = (self.state.clone(), path.clone());
        let stored = tokio::task::spawn_blocking(move || {
            // Others may have filled the disk since the offer.
            state.check_room(chunk.bytes.len() as u64)?;
            store(&file, &chunk)
        });
        stored.await.map_err(io::Error::other).flatten().map_err(|e| self.no_snapshot(e))?;
        if !last {
            return Ok(None);
        }
        self.state.build(path).await.map(Some).map_err(|e| self.no_snapshot(e))
    }

    /// A snapshot is refused. Where the disk is full, what has come of it goes: it may be what fills the disk.
    fn no_snapshot(&self, error: io::Error) -> NodeError {
        if error.kind() == io::ErrorKind::StorageFull {
            tracing::warn!(%error, "a snapshot is refused");
            match remove_incoming(Some(&self.state.snapshots_dir()), None) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(error = %e, "what has come of it cannot be removed");
                }
                _ => {}
            }
        }
        failed(error)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn piece(bytes: &[u8], last: bool) -> SnapshotChunk {
        let vote = Vote::new_committed(1, 1);
        SnapshotChunk { transfer: 1, vote, offset: 0, bytes: Bytes::copy_from_slice(bytes), last }
    }

    #[test]
    fn a_new_transfer_removes_what_was_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let [interrupted, new] = [1, 2].map(|n| dir.path().join(format!("incoming-{n}.tmp")));
        let backup = dir.path().join("backup.snapshot");
        std::fs::write(&backup, "kept").unwrap();
        store(&interrupted, &piece(b"half", false)).unwrap();
        store(&new, &piece(b"a piece", false)).unwrap();
        assert!(!interrupted.exists() && backup.exists());
        // And one of the same number, of a primary that was started again, begins anew.
        store(&new, &piece(b"another", true)).unwrap();
        assert_eq!(std::fs::read(&new).unwrap(), b"another");
        remove_incoming(Some(dir.path()), None).unwrap();
        assert!(!new.exists() && backup.exists());
    }
}
