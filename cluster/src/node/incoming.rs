//! Snapshots that are sent here: received piece by piece, checked, and given to openraft.

use std::collections::HashSet;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use quorate_storage::raft_types::{SnapshotMeta, TypeConfig, Vote};
use quorate_storage::snapshot;
use quorate_storage::state_machine::SnapshotHandle;
use quorate_storage::tables::base::FlushMeta;

use super::Inner;
use crate::error::{Code, NodeError};
use crate::message::SnapshotChunk;

type Result<T> = std::result::Result<T, NodeError>;

/// The files that openraft has been given. To it, one that is missing is a failed disk, and it stops the node: so
/// nobody else touches them.
#[derive(Clone, Default)]
pub(super) struct Incoming {
    installing: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Incoming {
    fn installing(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.installing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, file: &Path, chunk: &SnapshotChunk) -> io::Result<()> {
        let installing = self.installing();
        if installing.contains(file) {
            return Err(io::Error::other("a snapshot of this number is being installed"));
        }
        let mut out = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        if chunk.offset == 0 {
            out.set_len(0)?;
            remove_others(file, &installing)?;
        }
        drop(installing);
        if out.seek(SeekFrom::End(0))? != chunk.offset {
            return Err(io::Error::other("a piece is missing"));
        }
        out.write_all(&chunk.bytes)?;
        if chunk.last { out.sync_all() } else { Ok(()) }
    }

    /// Checks what came; from here on the file is openraft's, until [`Incoming::installed`].
    fn give(&self, file: &Path) -> io::Result<FlushMeta> {
        let meta = snapshot::verify(file)?;
        let mut installing = self.installing();
        if !file.try_exists()? {
            return Err(io::Error::other("another snapshot has come meanwhile"));
        }
        installing.insert(file.to_owned());
        Ok(meta)
    }

    fn installed(&self, file: &Path) {
        // Still there if it was not needed after all.
        let _ = std::fs::remove_file(file);
        self.installing().remove(file);
    }
}

/// What interrupted transfers left would fill the disk.
fn remove_others(current: &Path, installing: &HashSet<PathBuf>) -> io::Result<()> {
    let Some(dir) = current.parent() else { return Ok(()) };
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let incoming = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("incoming-"));
        if incoming && path != current && !installing.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl Inner {
    /// Takes a piece of a snapshot; installs the file when it was the last one.
    pub(super) async fn take_chunk(&self, chunk: SnapshotChunk) -> Result<Option<Vote>> {
        let failed = |e: io::Error| {
            NodeError::not_applied(Code::Failed, format!("the snapshot cannot be stored: {e}"))
        };
        if self.disk.is_nearly_full() {
            return Err(self.disk.error());
        }
        let path = self.state.incoming_file(chunk.transfer).map_err(failed)?;
        let (vote, last) = (chunk.vote, chunk.last);
        let (incoming, file) = (self.incoming.clone(), path.clone());
        // openraft takes a failed install for a failed disk and stops the node, so what came is checked before.
        let stored = tokio::task::spawn_blocking(move || {
            incoming.store(&file, &chunk)?;
            if last { incoming.give(&file).map(Some) } else { Ok(None) }
        });
        let Some(meta) = stored.await.map_err(|e| failed(io::Error::other(e)))?.map_err(failed)? else {
            return Ok(None);
        };
        tracing::info!(revision = meta.revision, "installing a snapshot");
        let meta = SnapshotMeta { last_log_id: meta.applied, last_membership: meta.membership };
        let snapshot: SnapshotOf<TypeConfig, SnapshotHandle> =
            openraft::storage::Snapshot { meta, snapshot: SnapshotHandle::Received(path.clone()) };
        let SnapshotResponse { vote } =
            self.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| self.fatal(e))?;
        self.incoming.installed(&path);
        Ok(Some(vote))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_storage::tables::base::Base;

    use super::*;

    fn piece(bytes: &[u8], last: bool) -> SnapshotChunk {
        let vote = Vote::new_committed(1, 1);
        SnapshotChunk { transfer: 1, vote, offset: 0, bytes: Bytes::copy_from_slice(bytes), last }
    }

    #[test]
    fn a_new_transfer_removes_what_was_interrupted_and_nothing_that_is_being_installed() {
        let dir = tempfile::tempdir().unwrap();
        let sent = dir.path().join("sent.snapshot");
        let base = Base::open(&dir.path().join("base")).unwrap();
        snapshot::write(&sent, &base, &FlushMeta::default()).unwrap();
        let bytes = std::fs::read(&sent).unwrap();

        let incoming = Incoming::default();
        let files: Vec<_> = (1..5).map(|n| dir.path().join(format!("incoming-{n}.tmp"))).collect();
        let [old, superseded, interrupted, new] = &files[..] else { unreachable!() };
        incoming.store(old, &piece(&bytes, true)).unwrap();
        incoming.give(old).unwrap();
        incoming.store(superseded, &piece(&bytes, true)).unwrap();
        incoming.store(interrupted, &piece(b"half", false)).unwrap();
        incoming.give(superseded).unwrap_err();
        incoming.store(new, &piece(b"a piece", false)).unwrap();
        assert_eq!(files.iter().map(|file| file.exists()).collect::<Vec<_>>(), [true, false, false, true]);
        // Nor does one that has the same number, of a primary that was started again.
        incoming.store(old, &piece(b"a piece", false)).unwrap_err();
        assert_eq!(std::fs::read(old).unwrap(), bytes);
        incoming.installed(old);
        assert!(!old.exists());
        incoming.store(old, &piece(b"a piece", false)).unwrap();
    }
}
