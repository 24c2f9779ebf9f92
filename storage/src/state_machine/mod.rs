//! The machine between openraft above and the disk below: apply, flush, snapshot, install.
//!
//! Rules that make a crash harmless (docs/architecture.md):
//! - a flush first syncs the delta log, so that what it covers is in the log on disk;
//! - an install first syncs the delta log too, truncations included, then swaps one symbolic link;
//! - to openraft, the last flush *is* the current snapshot, so the log is purged up to it at most;
//! - flushes, snapshot files and installs exclude each other (`gate`): each needs the tables as
//!   one flush left them.

mod adapter;
mod install;
mod positions;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

pub use self::adapter::{SnapshotHandle, StateMachine};
use self::install::Skipping;
pub use self::install::{Built, NotReplaced};
pub use self::positions::Place;
use self::positions::Positions;
use crate::delta::Outcome;
use crate::files;
use crate::log::DeltaLog;
use crate::machine::{Checkpoint, Machine};
use crate::raft_types::{Entry, LogId, Payload};
use crate::service::Registry;
use crate::tables::base::{Base, FlushMeta};
use crate::tables::overlay::Overlay;
use crate::tables::rows::Rows;

/// Dirty bytes at which a flush is asked for.
pub const FLUSH_BYTES: usize = 16 << 20;
/// Dirty bytes at which new writes are told to come back later.
pub const OVERLOADED_BYTES: usize = 96 << 20;
/// Dirty bytes at which apply itself waits for a flush. Committed entries cannot be refused.
pub const FULL_BYTES: usize = 192 << 20;

const _: () = assert!(FLUSH_BYTES < OVERLOADED_BYTES && OVERLOADED_BYTES < FULL_BYTES);

/// How far this replica has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last applied log id.
    pub log_id: Option<LogId>,
    /// The revision there.
    pub revision: u64,
}

/// The tables as the last flush left them.
pub struct Flushed {
    base: Base,
    meta: FlushMeta,
    lock: File,
}

impl Flushed {
    /// Opens the tables in `dir` and checks their hash. The directory is locked for as long as they are in use.
    ///
    /// # Errors
    /// `InvalidData` when they are damaged; `WouldBlock` when another process has the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        // Before anything is removed: what looks left over may be an install that is under way.
        let lock = files::when_unlocked(|| {
            let dir = File::open(dir)?;
            dir.try_lock()?;
            Ok(dir)
        })?;
        install::remove_leftovers(dir)?;
        install::sweep_snapshots(dir)?;
        let base = Base::open(&dir.join("state"))?;
        let meta = base.meta()?.unwrap_or_default();
        check_hash(&base, &meta)?;
        Ok(Self { base, meta, lock })
    }

    /// The position of the last flush.
    pub fn meta(&self) -> &FlushMeta {
        &self.meta
    }
}

/// A handle to one replica's state. Clones share it.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    _lock: File,
    log: DeltaLog,
    registry: Registry,
    machine: Mutex<Machine>,
    /// Held by apply for each entry, and by who replaces the state beneath it.
    applying: tokio::sync::Mutex<()>,
    /// While the state is to be replaced nothing is applied to it; the last entry that was not. openraft is not held up: it
    /// would wait for apply, and neither write entries nor vote.
    skipping: Mutex<Skipping>,
    /// One of: a flush, the writing of a snapshot file, an install.
    gate: tokio::sync::Mutex<()>,
    last_flush: Mutex<FlushMeta>,
    applied: watch::Sender<Applied>,
    checkpoints: watch::Sender<Vec<Checkpoint>>,
    /// Asked for by apply when much is dirty; answered by whoever runs the flushes.
    flush_wanted: Notify,
    /// A flush has ended: there is room again.
    room: Notify,
    positions: Mutex<Positions>,
    /// Bytes that snapshots leave free on the disk.
    reserve: AtomicU64,
}

impl State {
    /// The state over the tables in `dir`, as `flushed` found them.
    ///
    /// # Errors
    /// `InvalidData` when they are damaged.
    pub fn new(dir: &Path, registry: Registry, log: DeltaLog, flushed: Flushed) -> io::Result<Self> {
        let Flushed { base, meta, lock } = flushed;
        let applied = Applied { log_id: meta.applied, revision: meta.revision };
        let machine =
            Machine::new(registry.clone(), Rows::new(base, meta.hash), meta.clone()).map_err(damaged)?;
        let checkpoints = machine.checkpoints().map_err(damaged)?;
        let positions = Mutex::new(Positions::at(&applied));
        Ok(Self {
            shared: Arc::new(Shared {
                dir: dir.to_owned(),
                _lock: lock,
                log,
                registry,
                machine: Mutex::new(machine),
                applying: tokio::sync::Mutex::default(),
                skipping: Mutex::default(),
                gate: tokio::sync::Mutex::new(()),
                last_flush: Mutex::new(meta),
                applied: watch::Sender::new(applied),
                checkpoints: watch::Sender::new(checkpoints),
                flush_wanted: Notify::new(),
                room: Notify::new(),
                positions,
                reserve: AtomicU64::new(0),
            }),
        })
    }

    /// The machine, to read from: one revision for as long as the closure runs.
    ///
    /// # Errors
    /// When an apply failed or panicked: what it left must not be read.
    pub fn read<R>(&self, read: impl FnOnce(&Machine) -> R) -> io::Result<R> {
        Ok(read(&*self.machine()?))
    }

    /// As [`Self::read`], with the state hash at that revision.
    ///
    /// # Errors
    /// As [`Self::read`], and when a row cannot be read: the node must stop.
    pub fn read_hashed<R>(&self, read: impl FnOnce(&Machine, u128) -> R) -> io::Result<R> {
        let mut machine = self.machine()?;
        let hash = machine.state_hash().map_err(damaged)?;
        Ok(read(&machine, hash))
    }

    fn machine(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let machine = self.shared.machine.lock();
        let machine = machine.map_err(|_| io::Error::other("the state is unusable: an apply panicked"))?;
        machine.usable().map_err(damaged)?;
        Ok(machine)
    }

    /// Whether both are handles to the same replica.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The services.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// The delta log.
    pub fn log(&self) -> &DeltaLog {
        &self.shared.log
    }

    /// Follows how far this replica has applied.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.shared.applied.subscribe()
    }

    /// Follows the last checkpoints, oldest first.
    pub fn checkpoints(&self) -> watch::Receiver<Vec<Checkpoint>> {
        self.shared.checkpoints.subscribe()
    }

    /// The position of the last flush.
    pub fn last_flush(&self) -> FlushMeta {
        self.shared.last_flush.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of dirty rows.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn dirty_bytes(&self) -> io::Result<usize> {
        self.read(|machine| machine.rows().dirty_bytes())
    }

    /// Returns when so much is dirty that a flush should run.
    pub async fn flush_wanted(&self) {
        self.shared.flush_wanted.notified().await;
    }

    /// Applies one entry; waits for a flush while the overlay is full.
    pub(super) async fn apply(&self, log_id: LogId, payload: &Payload) -> io::Result<Vec<Outcome>> {
        let _applying = self.shared.applying.lock().await;
        // A primary that was deposed may have a client waiting for one of these: without an outcome, it is told that it is
        // unknown.
        let held = self.shared.applied.borrow().log_id >= Some(log_id);
        if held || self.skipping().skip(log_id) {
            return Ok(Vec::new());
        }
        self.apply_alone(log_id, payload).await
    }

    /// [`Self::apply`] for who holds `applying`.
    async fn apply_alone(&self, log_id: LogId, payload: &Payload) -> io::Result<Vec<Outcome>> {
        loop {
            let room = self.shared.room.notified();
            let (dirty, checkpoint_frozen) = {
                let mut machine = self.machine()?;
                (machine.rows().dirty_bytes(), machine.freeze_checkpoint().map_err(damaged)?)
            };
            if dirty >= FLUSH_BYTES {
                self.shared.flush_wanted.notify_one();
            }
            if dirty < FULL_BYTES && checkpoint_frozen {
                break;
            }
            room.await;
        }
        let (outcomes, revision, checkpoints) = {
            let mut machine = self.machine()?;
            let outcomes = machine.apply_entry(log_id, payload).map_err(damaged)?;
            let at_checkpoint = machine.at_checkpoint();
            machine.freeze_checkpoint().map_err(damaged)?;
            let checkpoints = at_checkpoint.then(|| machine.checkpoints()).transpose().map_err(damaged)?;
            (outcomes, machine.revision(), checkpoints)
        };
        if let Some(checkpoints) = checkpoints {
            self.shared.flush_wanted.notify_one();
            self.shared.checkpoints.send_replace(checkpoints);
        }
        self.positions().push(log_id.index, revision);
        self.shared.applied.send_replace(Applied { log_id: Some(log_id), revision });
        Ok(outcomes)
    }

    /// Applies what the log says is committed. For the start: openraft would read 64 entries at once, whatever their
    /// size, and would wait for ever if the overlay filled up, because nobody runs flushes before it has started.
    ///
    /// # Errors
    /// When an entry cannot be read or applied, or a flush fails: the node must not start.
    pub async fn replay(&self) -> io::Result<()> {
        let end = self.log().committed().map_or(0, |id| id.index + 1);
        let mut next = self.applied().borrow().log_id.map_or(0, |id| id.index + 1);
        if next < end {
            tracing::info!(from = next, to = end - 1, "applying again what was not flushed");
        }
        while next < end {
            let entries = self.log().read(next, end)?;
            if entries.first().is_none_or(|entry| entry.log_id.index != next) {
                return Err(damaged(format!("entry {next} is committed and not in the log")));
            }
            for Entry { log_id, payload } in entries {
                let (dirty, wanted) =
                    self.read(|machine| (machine.rows().dirty_bytes(), machine.wants_flush()))?;
                if wanted || dirty >= FLUSH_BYTES {
                    self.flush().await?;
                }
                self.apply(log_id, &payload).await?;
                next = log_id.index + 1;
            }
            // A signal to stop is heard in between.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Writes what is dirty to disk as one atomic batch; returns the position of the last flush.
    ///
    /// # Errors
    /// When the disk fails: the node must stop.
    pub async fn flush(&self) -> io::Result<FlushMeta> {
        let state = self.clone();
        to_the_end(async move {
            let _gate = state.shared.gate.lock().await;
            state.flush_gated().await
        })
        .await
    }

    /// A last flush, before this and all other handles are dropped.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn close(&self) -> io::Result<()> {
        let flushed = self.flush().await;
        if let Ok(base) = self.read(|machine| machine.rows().base().clone()) {
            blocking(move || {
                base.close();
                Ok(())
            })
            .await?;
        }
        flushed.map(drop)
    }

    /// [`Self::flush`] for who holds the gate.
    async fn flush_gated(&self) -> io::Result<FlushMeta> {
        loop {
            let last = self.last_flush();
            let (held, (frozen, meta), base) = {
                let mut machine = self.machine()?;
                let base = machine.rows().base().clone();
                // A checkpoint's rows first, then what came after it.
                match machine.take_held() {
                    Some(held) => (true, held, base),
                    None if machine.applied() == last.applied.as_ref() => return Ok(last),
                    None if machine.rows().is_frozen() => {
                        let text = "an earlier flush failed; the log replays at the next start";
                        return Err(io::Error::other(text));
                    }
                    None => (false, machine.freeze().map_err(damaged)?, base),
                }
            };
            let meta = self.write_frozen(frozen, meta, base).await?;
            if !held {
                return Ok(meta);
            }
        }
    }

    async fn write_frozen(
        &self,
        frozen: Arc<Overlay>,
        mut meta: FlushMeta,
        base: Base,
    ) -> io::Result<FlushMeta> {
        // The safety rule: what the flush covers must be in the log on disk first.
        meta.mark = self.shared.log.sync().await?;
        let meta = blocking(move || {
            let changes = frozen.iter().map(|(key, dirty)| (key.to_vec(), dirty.value()));
            base.flush(changes, &meta)?;
            Ok(meta)
        })
        .await?;
        self.machine()?.thawed();
        *self.shared.last_flush.lock().unwrap_or_else(PoisonError::into_inner) = meta.clone();
        self.shared.room.notify_waiters();
        Ok(meta)
    }

    /// Where snapshot files are.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.shared.dir.join("snapshots")
    }
}

/// A full scan: it finds lost and damaged rows before anybody is told anything false.
fn check_hash(base: &Base, meta: &FlushMeta) -> io::Result<()> {
    use std::ops::Bound::Unbounded;
    let mut hash = 0u128;
    for row in base.range(Unbounded, Unbounded) {
        let (key, value) = row?;
        hash = hash.wrapping_add(crate::tables::rows::row_hash(&key, &value));
    }
    if hash == meta.hash {
        return Ok(());
    }
    Err(damaged("the tables do not have the hash that their last flush recorded"))
}

/// Runs `work` to its end, also when nobody waits for it any more. A flush that is dropped half way would leave frozen
/// rows for ever, and the writing of a file would go on without the gate.
async fn to_the_end<R: Send + 'static>(
    work: impl Future<Output = io::Result<R>> + Send + 'static,
) -> io::Result<R> {
    tokio::spawn(work).await.map_err(io::Error::other)?
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> io::Result<R> + Send + 'static) -> io::Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn damaged(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
