//! The disk under a node: its free space, and whether it answers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::node_disk::free_bytes;
use quorate_storage::raft_types::NodeId;

use super::Inner;
use crate::error::{Code, NodeError};

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(400);
/// A sync that takes so long is told of. Disks that are merely busy end theirs within a second or so.
const HANG: Duration = Duration::from_secs(2);

/// Free space here, and what the primary knows of the others'.
pub(super) struct DiskWatch {
    dir: PathBuf,
    reserve: u64,
    free: AtomicU64,
    low: AtomicBool,
    peers_low: Mutex<HashMap<NodeId, bool>>,
}

impl DiskWatch {
    pub(super) fn new(dir: PathBuf, reserve: u64) -> Self {
        let watch = Self {
            dir,
            reserve,
            free: AtomicU64::new(u64::MAX),
            low: AtomicBool::new(false),
            peers_low: Mutex::default(),
        };
        watch.look();
        watch
    }

    fn look(&self) {
        match free_bytes(&self.dir) {
            Ok(free) => {
                self.free.store(free, Ordering::Relaxed);
                let low = free < self.reserve;
                if !low {
                    // Known for a hand-over for want of disk, and growing old: other transfers go anywhere.
                    self.peers_low().clear();
                }
                if self.low.swap(low, Ordering::Relaxed) != low {
                    match low {
                        true => tracing::warn!(
                            free,
                            reserve = self.reserve,
                            "the disk is below its reserve: no writes"
                        ),
                        false => tracing::info!(free, "the disk has room again: writes are taken"),
                    }
                }
            }
            Err(e) => {
                tracing::warn!(error = %e, dir = %self.dir.display(), "cannot tell how much disk is free")
            }
        }
    }

    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Below the reserve: as primary, no writes.
    pub(super) fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Below half the reserve: as backup, no entries either.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.free() < self.reserve / 2
    }

    pub(super) fn is_low_on(&self, id: NodeId) -> bool {
        self.peers_low().get(&id).copied().unwrap_or(false)
    }

    fn peers_low(&self) -> MutexGuard<'_, HashMap<NodeId, bool>> {
        self.peers_low.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn error(&self) -> NodeError {
        let text = format!(
            "the disk of this server has {} MiB free, below its reserve of {} MiB: it takes no writes. Free some space \
             there; it goes on by itself",
            self.free() >> 20,
            self.reserve >> 20
        );
        NodeError::not_applied(Code::DiskFull, text).retry_after(1000)
    }
}

/// Looks at the free space, for as long as the node runs.
pub(super) async fn watch_room(inner: Arc<Inner>) {
    loop {
        inner.pace(POLL).await;
        inner.disk.look();
        if !inner.disk.is_low() || !inner.is_leader() {
            continue;
        }
        // Leadership moves where another server has room.
        let members = inner.members();
        let statuses = join_all(members.iter().map(|(id, info)| inner.ask_status(*id, info))).await;
        let low: HashMap<NodeId, bool> = members
            .keys()
            .zip(statuses)
            .map(|(id, status)| (*id, status.is_none_or(|status| status.disk_low)))
            .collect();
        *inner.disk.peers_low() = low;
        inner.hand_over(Duration::from_secs(2)).await;
    }
}

/// Says that a sync of the log does not come to its end. As primary, moves leadership if the others go on without this disk.
pub(super) async fn watch_syncs(inner: Arc<Inner>) {
    let committed = || inner.metrics.borrow_watched().cluster_committed.as_ref().map_or(0, |id| id.index);
    // What was committed when the hang was noticed.
    let mut hung = None;
    loop {
        inner.pace(POLL).await;
        match (inner.hang(), hung) {
            (None, None) => {}
            (None, Some(_)) => {
                tracing::info!("the disk syncs again");
                hung = None;
            }
            (Some(time), None) => {
                tracing::warn!(
                    ?time,
                    "the disk hangs: a sync of the delta log has not ended, and what waits for this disk waits"
                );
                hung = Some(committed());
            }
            // A disk that all servers share, say, would hang for a new primary as well.
            (Some(_), Some(before)) if inner.is_leader() && committed() > before => {
                inner.hand_over(Duration::from_secs(2)).await;
            }
            (Some(_), Some(_)) => {}
        }
    }
}

impl Inner {
    /// How long the running sync of the log has taken, once that is longer than a slow disk needs.
    pub(super) fn hang(&self) -> Option<Duration> {
        self.state.log().sync_time().filter(|time| *time >= HANG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_other_disks_is_forgotten_with_the_want_that_asked_for_it() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut disk = DiskWatch::new(dir, u64::MAX);
        assert!(disk.is_low());
        disk.peers_low().insert(2, true);
        disk.look();
        assert!(disk.is_low_on(2) && !disk.is_low_on(3));
        disk.reserve = 0;
        disk.look();
        assert!(!disk.is_low() && !disk.is_low_on(2));
    }
}
