//! A wall clock that a test sets; the monotonic clock is the machine's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use quorate_cluster::clock::{Clock, SystemClock};
use quorate_storage::delta::Millis;

/// The machine's wall clock, and how far this one is off.
#[derive(Default)]
pub(crate) struct ManualClock {
    offset: AtomicI64,
}

impl ManualClock {
    /// Jumps, in either direction.
    pub(crate) fn set_offset(&self, ms: i64) {
        self.offset.store(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Millis {
        SystemClock.wall().saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}
