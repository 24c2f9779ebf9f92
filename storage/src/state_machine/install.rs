//! Snapshot files: written when a peer or a backup needs one, installed by swapping the state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Applied, Positions, State, blocking, damaged, to_the_end};
use crate::files;
use crate::machine::Machine;
use crate::node_disk::free_bytes;
use crate::raft_types::{Entry, LogId};
use crate::snapshot;
use crate::tables::base::{Base, FlushMeta};
use crate::tables::rows::Rows;

const MIB: u64 = 1 << 20;
/// For a log that is behind the state that is to be put above it.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
const LOG_POLL: Duration = Duration::from_millis(20);

impl State {
    /// A snapshot file of the last flush: the one that is there already, or a new one.
    ///
    /// Flushes wait while it is written (sled has no view of an older state), so it is written at
    /// disk speed to a file, and slow peers read that.
    ///
    /// # Errors
    /// As the disk gives them; `StorageFull` when the file would take the disk below its reserve.
    pub async fn snapshot_file(&self) -> io::Result<(PathBuf, FlushMeta)> {
        let state = self.clone();
        to_the_end(async move { state.write_snapshot_file().await }).await
    }

    async fn write_snapshot_file(&self) -> io::Result<(PathBuf, FlushMeta)> {
        // Before the gate is taken: it is an estimate, and flushes need not wait for it.
        let bytes = self.snapshot_bytes().await?;
        let _gate = self.shared.gate.lock().await;
        let meta = self.flush_gated().await?;
        let dir = self.snapshots_dir();
        let index = meta.applied.as_ref().map_or(0, |id| id.index);
        let path = dir.join(format!("{index:020}-{:020}.snapshot", meta.revision));
        let base = self.read(|machine| machine.rows().base().clone())?;
        let state = self.clone();
        blocking(move || {
            std::fs::create_dir_all(&dir)?;
            if path.try_exists()? {
                return Ok((path, meta));
            }
            remove_all_but(&dir, &path)?;
            state.check_room(bytes)?;
            snapshot::write(&path, &base, &meta)?;
            Ok((path, meta))
        })
        .await
    }

    /// About how large a snapshot is now.
    async fn snapshot_bytes(&self) -> io::Result<u64> {
        let (base, dirty) =
            self.read(|machine| (machine.rows().base().clone(), machine.rows().dirty_bytes()))?;
        Ok(blocking(move || snapshot::size(&base)).await? + dirty as u64)
    }

    /// Snapshots leave so many bytes free on the disk: it is the log that must not find it full.
    pub fn keep_free(&self, bytes: u64) {
        self.shared.reserve.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is room for `bytes` of a snapshot.
    ///
    /// # Errors
    /// `StorageFull`, with what to do, when there is not.
    pub fn check_room(&self, bytes: u64) -> io::Result<()> {
        let (dir, reserve) = (&self.shared.dir, self.shared.reserve.load(Ordering::Relaxed));
        let free = free_bytes(dir)?;
        if free >= reserve.saturating_add(bytes) {
            return Ok(());
        }
        let text = format!(
            "no room for a snapshot: it takes about {} MiB and is to leave the reserve of {} MiB, and the disk of {} has \
             {} MiB free. Free some space there; it is tried again by itself",
            bytes.div_ceil(MIB),
            reserve.div_ceil(MIB),
            dir.display(),
            free / MIB
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
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

    /// Builds the tables of the snapshot in `file` beside those in force, and removes the file. All that is large is
    /// written here: what goes wrong harms nothing, while a failed install stops the node.
    ///
    /// # Errors
    /// `InvalidData` when the snapshot is damaged, `StorageFull` when there is no room: nothing is left of it.
    pub async fn build(&self, file: PathBuf) -> io::Result<Built> {
        let state = self.clone();
        to_the_end(async move {
            let _gate = state.shared.gate.lock().await;
            let state = state.clone();
            blocking(move || {
                let built = state.build_now(&file);
                let _ = std::fs::remove_file(&file);
                built
            })
            .await
        })
        .await
    }

    fn build_now(&self, file: &Path) -> io::Result<Built> {
        // The tables are compressed, but lie in slots that are larger than they are: about as much as the file.
        self.check_room(file.metadata()?.len())?;
        let dir = self.shared.dir.join(format!("state.new-{}", next_number(&self.shared.dir)?));
        // From here on it is removed if anything fails. What is left to fail is the disk: damage was looked for.
        let built = Built { meta: Box::new(snapshot::verify(file)?), dir };
        let base = Base::open(&built.dir)?;
        let filled =
            snapshot::load(file, &base).and_then(|meta| base.flush(std::iter::empty::<(&[u8], _)>(), &meta));
        match filled {
            Ok(()) => {
                base.close();
                Ok(built)
            }
            Err(e) => {
                base.abandon();
                Err(e)
            }
        }
    }

    pub(super) fn skipping(&self) -> MutexGuard<'_, Skipping> {
        self.shared.skipping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no entry is applied, until [`Self::resume`]. Gives the last one that was.
    pub async fn skip(&self) -> Option<LogId> {
        let _applying = self.shared.applying.lock().await;
        *self.skipping() = Skipping { on: true, last: None };
        self.applied().borrow().log_id
    }

    /// Applies what was not applied since [`Self::skip`], to whatever state there is now, and goes on as usual. Entries
    /// that come meanwhile are left for it, too.
    ///
    /// # Errors
    /// As [`Self::replay`]: the node must stop.
    pub async fn resume(&self) -> io::Result<()> {
        loop {
            let _applying = self.shared.applying.lock().await;
            let next = self.applied().borrow().log_id.map_or(0, |id| id.index + 1);
            let end = self.skipping().last.map_or(0, |id| id.index + 1);
            if next >= end {
                *self.skipping() = Skipping::default();
                return Ok(());
            }
            let entries = self.log().read(next, end)?;
            if entries.first().is_none_or(|entry| entry.log_id.index != next) {
                return Err(damaged(format!("entry {next} was not applied and is not in the log")));
            }
            for Entry { log_id, payload } in entries {
                self.apply_alone(log_id, &payload).await?;
            }
        }
    }

    /// Replaces a state that is wrong by what was built of another replica's, at a later entry than [`Self::skip`] gave. To
    /// openraft nothing happens.
    ///
    /// # Errors
    /// [`NotReplaced::Now`] leaves the state as it was. After [`NotReplaced::Broken`] the node must stop.
    pub async fn replace(&self, built: Built) -> Result<(), NotReplaced> {
        let own = self.applied().borrow().log_id;
        let Some(new) = built.meta.applied.filter(|new| Some(new) > own.as_ref()) else {
            return Err(NotReplaced::Now("the state that was sent is no later one".to_owned()));
        };
        // A flush covers at most what is in the log on disk: the install syncs it.
        let deadline = Instant::now() + LOG_PATIENCE;
        loop {
            let entry = self.log().read(new.index, new.index + 1).map_err(NotReplaced::Broken)?;
            if entry.first().is_some_and(|entry| entry.log_id == new) {
                break;
            }
            if Instant::now() >= deadline {
                let text =
                    format!("the log has not come to entry {new}, which the state that was sent holds");
                return Err(NotReplaced::Now(text));
            }
            tokio::time::sleep(LOG_POLL).await;
        }
        self.install(built).await.map(drop).map_err(NotReplaced::Broken)
    }

    /// Replaces the state by what was built.
    ///
    /// # Errors
    /// As the disk gives them.
    pub(super) async fn install(&self, built: Built) -> io::Result<FlushMeta> {
        let state = self.clone();
        to_the_end(async move {
            let _applying = state.shared.applying.lock().await;
            state.install_now(built).await
        })
        .await
    }

    async fn install_now(&self, built: Built) -> io::Result<FlushMeta> {
        let _gate = self.shared.gate.lock().await;
        // A truncation that is not on disk yet must not come back behind the new state: openraft
        // would find a log whose last id is before the applied one at a greater index, and not start.
        let mark = self.shared.log.sync().await?;
        let dir = self.shared.dir.clone();
        let old_dir = dir.join(std::fs::read_link(dir.join("state"))?);
        let (base, meta) = blocking(move || switch(&dir, &built, mark)).await?;
        let rows = Rows::new(base, meta.hash);
        let machine = Machine::new(self.shared.registry.clone(), rows, meta.clone()).map_err(damaged)?;
        let checkpoints = machine.checkpoints().map_err(damaged)?;
        let old = std::mem::replace(&mut *self.machine()?, machine);
        *self.shared.last_flush.lock().unwrap_or_else(PoisonError::into_inner) = meta.clone();
        let applied = Applied { log_id: meta.applied, revision: meta.revision };
        *self.positions() = Positions::at(&applied);
        self.shared.applied.send_replace(applied);
        self.shared.checkpoints.send_replace(checkpoints);
        self.shared.room.notify_waiters();
        blocking(move || {
            old.rows().base().clone().close();
            drop(old);
            // That alone: another snapshot may have been built meanwhile.
            std::fs::remove_dir_all(old_dir)
        })
        .await?;
        Ok(meta)
    }
}

/// See [`State::skip`].
#[derive(Debug, Default)]
pub(super) struct Skipping {
    on: bool,
    last: Option<LogId>,
}

impl Skipping {
    /// Whether the entry is not to be applied now.
    pub(super) fn skip(&mut self, log_id: LogId) -> bool {
        if self.on {
            self.last = Some(log_id);
        }
        self.on
    }
}

/// Why a state was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum NotReplaced {
    /// It may be tried again.
    #[error("{0}")]
    Now(String),
    /// The disk failed half way.
    #[error("the state cannot be replaced: {0}")]
    Broken(io::Error),
}

/// The tables of a snapshot, beside those in force: ready to be installed, and removed when they are not.
pub struct Built {
    dir: PathBuf,
    meta: Box<FlushMeta>,
}

impl Built {
    /// The snapshot's position.
    pub fn meta(&self) -> &FlushMeta {
        &self.meta
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        // Installed, it has another name. What cannot be removed goes at the next start.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Switches the link to what was built. Until the switch is durable, a crash leaves the old state in force.
fn switch(dir: &Path, built: &Built, mark: crate::log::LogMark) -> io::Result<(Base, FlushMeta)> {
    let name = built.dir.file_name().unwrap_or_default().to_string_lossy().replace("state.new-", "state-");
    let new = dir.join(&name);
    std::fs::rename(&built.dir, &new)?;
    let base = Base::open(&new)?;
    let meta = FlushMeta { mark, ..FlushMeta::clone(&built.meta) };
    base.flush(std::iter::empty::<(&[u8], _)>(), &meta)?;
    files::sync_dir(dir)?;
    files::point(&dir.join("state"), &name)?;
    Ok((base, meta))
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

/// Removes what a crash left half written or half received in `dir/snapshots`: it would take the room that a server needs
/// to go on.
pub(super) fn sweep_snapshots(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir.join("snapshots")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
