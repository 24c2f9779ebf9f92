//! Group commit: one fdatasync in flight, self-clocked.
//!
//! What is written while a sync runs waits for the next one, which starts when the running one ends.
//! raft-log calls [`Flushed`] on its own thread, with bytes of its bounded queue still held: to lock
//! the log or to start the next sync there could deadlock. So it completes the waiters, which wakes
//! the Raft core without a detour, and only *notifies* the task that starts the next sync.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use tokio::sync::{Notify, watch};

use crate::raft_types::TypeConfig;

/// Shared between the log, raft-log's thread and the task that starts syncs.
pub(super) struct FlushClock {
    /// The sync that is running has begun then.
    running: Mutex<Option<Instant>>,
    /// A sync has ended, and another may be wanted.
    pub(super) wake: Notify,
    /// Writes up to this number are on disk; the error that ended it all, if one did.
    pub(super) durable: watch::Sender<Result<u64, String>>,
}

impl FlushClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { running: Mutex::default(), wake: Notify::new(), durable: watch::Sender::new(Ok(0)) })
    }

    /// Takes the right to start a sync; false when one is running.
    pub(super) fn try_start(&self) -> bool {
        let mut running = self.running();
        let free = running.is_none();
        running.get_or_insert_with(Instant::now);
        free
    }

    /// For how long the sync that is running has run.
    pub(super) fn sync_time(&self) -> Option<Duration> {
        self.running().map(|begun| begun.elapsed())
    }

    fn running(&self) -> MutexGuard<'_, Option<Instant>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A failed sync is never retried: the kernel may have dropped the pages that it could not write.
    pub(super) fn fail(&self, error: &io::Error) {
        self.durable.send_if_modified(|durable| {
            let first = durable.is_ok();
            if first {
                *durable = Err(error.to_string());
            }
            first
        });
    }

    /// The error that ended the log, if one did.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let durable = self.durable.borrow();
        durable.as_ref().err().map(|cause| failed(cause))
    }
}

/// The error of every call after the log has failed.
pub(super) fn failed(cause: &str) -> io::Error {
    io::Error::other(format!("the delta log failed and takes no more writes: {cause}"))
}

/// Called by raft-log when a sync has ended.
pub(super) struct Flushed {
    clock: Arc<FlushClock>,
    /// The number of the last write that this sync covers.
    upto: u64,
    waiters: Vec<IOFlushed<TypeConfig>>,
    sent: bool,
}

impl Flushed {
    pub(super) fn new(clock: Arc<FlushClock>, upto: u64, waiters: Vec<IOFlushed<TypeConfig>>) -> Self {
        Self { clock, upto, waiters, sent: false }
    }
}

impl raft_log::Callback for Flushed {
    fn send(mut self, result: io::Result<()>) {
        self.sent = true;
        match &result {
            Ok(()) => {
                self.clock.durable.send_if_modified(|durable| {
                    if let Ok(upto) = durable {
                        *upto = self.upto.max(*upto);
                    }
                    true
                });
            }
            Err(e) => self.clock.fail(e),
        }
        for waiter in std::mem::take(&mut self.waiters) {
            waiter.io_completed(match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            });
        }
        *self.clock.running() = None;
        self.clock.wake.notify_one();
    }
}

/// raft-log's thread is gone, and the request with it, after a sync of its own that failed, say: who waits must learn that
/// nothing will come, and nothing more may be written.
impl Drop for Flushed {
    fn drop(&mut self) {
        if self.sent {
            return;
        }
        self.clock.fail(&io::Error::other("its writer thread is gone"));
        for waiter in self.waiters.drain(..) {
            waiter.io_completed(Err(failed("its writer thread is gone")));
        }
    }
}
