//! Snapshot files: written when a peer or a backup needs one, installed by swapping the state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::{Applied, Positions, State, blocking, damaged, to_the_end};
use crate::files;
use crate::machine::Machine;
use crate::snapshot;
use crate::tables::base::{Base, FlushMeta};
use crate::tables::rows::Rows;

impl State {
    /// A snapshot file of the last flush: the one that is there already, or a new one.
    ///
    /// Flushes wait while it is written (sled has no view of an older state), so it is written at
    /// disk speed to a file, and slow peers read that.
    ///
    /// # Errors
    /// As the disk gives them.
    pub async fn snapshot_file(&self) -> io::Result<(PathBuf, FlushMeta)> {
        let state = self.clone();
        to_the_end(async move { state.write_snapshot_file().await }).await
    }

    async fn write_snapshot_file(&self) -> io::Result<(PathBuf, FlushMeta)> {
        let _gate = self.shared.gate.lock().await;
        let meta = self.flush_gated().await?;
        let dir = self.snapshots_dir();
        let index = meta.applied.as_ref().map_or(0, |id| id.index);
        let path = dir.join(format!("{index:020}-{:020}.snapshot", meta.revision));
        let base = self.read(|machine| machine.rows().base().clone())?;
        blocking(move || {
            std::fs::create_dir_all(&dir)?;
            if path.try_exists()? {
                return Ok((path, meta));
            }
            remove_all_but(&dir, &path)?;
            snapshot::write(&path, &base, &meta)?;
            Ok((path, meta))
        })
        .await
    }

    /// A path for a snapshot that is being received. Whatever an earlier transfer left there is removed.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn incoming_file(&self, transfer: u64) -> io::Result<PathBuf> {
        let dir = self.snapshots_dir();
        std::fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("incoming-{transfer}.tmp")))
    }

    /// Replaces the state by the snapshot in `file`, then removes the file.
    ///
    /// # Errors
    /// `InvalidData` when the snapshot is damaged: then the state is as before.
    pub(super) async fn install(&self, file: PathBuf) -> io::Result<FlushMeta> {
        let state = self.clone();
        to_the_end(async move { state.install_now(file).await }).await
    }

    async fn install_now(&self, file: PathBuf) -> io::Result<FlushMeta> {
        let _gate = self.shared.gate.lock().await;
        // A truncation that is not on disk yet must not come back behind the new state: openraft
        // would find a log whose last id is before the applied one at a greater index, and not start.
        let mark = self.shared.log.sync().await?;
        let dir = self.shared.dir.clone();
        let (base, meta) = blocking(move || {
            let (base, meta) = build_and_switch(&dir, &file, mark)?;
            let _ = std::fs::remove_file(&file);
            Ok((base, meta))
        })
        .await?;
        let rows = Rows::new(base, meta.hash);
        let machine = Machine::new(self.shared.registry.clone(), rows, meta.clone()).map_err(damaged)?;
        let old = std::mem::replace(&mut *self.machine()?, machine);
        *self.shared.last_flush.lock().unwrap_or_else(PoisonError::into_inner) = meta.clone();
        let applied = Applied { log_id: meta.applied, revision: meta.revision };
        *self.positions() = Positions::at(&applied);
        self.shared.applied.send_replace(applied);
        self.shared.room.notify_waiters();
        let dir = self.shared.dir.clone();
        blocking(move || {
            drop(old);
            remove_leftovers(&dir)
        })
        .await?;
        Ok(meta)
    }
}

/// Builds the new state beside the old one and switches the link. Until the switch is durable, a
/// crash leaves the old state in force.
fn build_and_switch(dir: &Path, file: &Path, mark: crate::log::LogMark) -> io::Result<(Base, FlushMeta)> {
    let number = next_number(dir)?;
    let building = dir.join(format!("state.new-{number}"));
    match std::fs::remove_dir_all(&building) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let base = Base::open(&building)?;
    let mut meta = snapshot::load(file, &base)?;
    meta.mark = mark;
    base.flush(std::iter::empty::<(&[u8], _)>(), &meta)?;
    drop(base);
    let name = format!("state-{number}");
    std::fs::rename(&building, dir.join(&name))?;
    files::sync_dir(dir)?;
    files::point(&dir.join("state"), &name)?;
    Ok((Base::open(&dir.join("state"))?, meta))
}

fn next_number(dir: &Path) -> io::Result<u64> {
    let mut last = 0;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix("state-").or_else(|| name.strip_prefix("state.new-"));
        last = last.max(number.and_then(|n| n.parse().ok()).unwrap_or(0));
    }
    Ok(last + 1)
}

/// Removes what a crash left beside the state that the link names.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    let current = std::fs::read_link(dir.join("state"))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let ours = text.starts_with("state-") || text.starts_with("state.new-");
        if ours && name != current.as_os_str() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn remove_all_but(dir: &Path, keep: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let finished = path.extension().is_some_and(|extension| extension == "snapshot");
        if finished && path != keep {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
