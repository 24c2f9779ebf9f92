//! Time: the one place where clocks are read, and how the primary makes logged time of them.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quorate_storage::delta::Millis;

/// A wall clock this much ahead of the logged time is not believed on its own word.
const MAX_AHEAD: Millis = 3_600_000;
/// Two wall clocks that differ by less show the same time.
pub(crate) const SAME_TIME: Millis = 60_000;

/// Clocks, so that tests can bring their own.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch. May jump, in both directions.
    fn wall(&self) -> Millis;

    /// Never goes back.
    fn monotonic(&self) -> Instant;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Millis {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// Logged time, as a primary continues it: from max(last logged, its wall clock), by its monotonic
/// clock. A wall clock that jumps later changes nothing until the next primary. One that is far ahead counts only once
/// a majority shows the same.
#[derive(Debug, Default)]
pub struct LoggedClock {
    anchor: Mutex<Option<Anchor>>,
}

#[derive(Debug, Clone, Copy)]
struct Anchor {
    term: u64,
    logged: Millis,
    at: Instant,
    /// How far the wall clock was ahead of what is believable.
    ahead: Option<Millis>,
}

impl LoggedClock {
    /// The time to log now, as the primary of `term`, when `last` is the last logged time.
    pub fn now(&self, clock: &dyn Clock, term: u64, last: Millis) -> Millis {
        let now = clock.monotonic();
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let anchored = match *anchor {
            Some(anchored) if anchored.term == term => anchored,
            _ => *anchor.insert(Anchor::new(term, clock.wall(), now, last)),
        };
        let elapsed = now.saturating_duration_since(anchored.at).as_millis() as Millis;
        last.max(anchored.logged + elapsed)
    }

    /// A majority shows the same time as the wall clock here: time goes on from it, as the primary of `term`.
    pub fn believe(&self, clock: &dyn Clock, term: u64) {
        let now = clock.monotonic();
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(anchor) = anchor.as_mut().filter(|anchor| anchor.term == term && anchor.ahead.is_some()) {
            let elapsed = now.saturating_duration_since(anchor.at).as_millis() as Millis;
            let logged = clock.wall().max(anchor.logged + elapsed);
            *anchor = Anchor { term, logged, at: now, ahead: None };
            tracing::info!("a majority of the servers has the same wall clock as this one: it is believed");
        }
    }

    /// How far ahead the wall clock was when it was not believed, in milliseconds.
    pub fn ahead(&self) -> Option<Millis> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner).and_then(|anchor| anchor.ahead)
    }
}

impl Anchor {
    fn new(term: u64, wall: Millis, at: Instant, last: Millis) -> Self {
        // The first entry of all has nothing to compare with.
        let ahead = wall.checked_sub(last).filter(|ahead| last > 0 && *ahead > MAX_AHEAD);
        if let Some(ahead) = ahead {
            tracing::warn!(
                ahead_ms = ahead,
                "this server's wall clock is more than an hour ahead of the cluster's logged time: it is not \
                 believed until a majority of the servers shows the same. Time goes on from the logged time. Unless \
                 the cluster was stopped for so long, check the clock (NTP)"
            );
        }
        let logged = if ahead.is_some() { last } else { wall.max(last) };
        Self { term, logged, at, ahead }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    struct Manual {
        wall: AtomicU64,
        start: Instant,
        elapsed: AtomicU64,
    }

    impl Manual {
        fn at(wall: Millis) -> Self {
            Self { wall: wall.into(), start: Instant::now(), elapsed: 0.into() }
        }

        fn pass(&self, ms: u64) {
            self.elapsed.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clock for Manual {
        fn wall(&self) -> Millis {
            self.wall.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Instant {
            self.start + Duration::from_millis(self.elapsed.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn goes_on_by_the_monotonic_clock_and_ignores_jumps() {
        let (clock, logged) = (Manual::at(5_000), LoggedClock::default());
        assert_eq!(logged.now(&clock, 1, 1_000), 5_000);
        clock.pass(10);
        clock.wall.store(99_000_000, Ordering::Relaxed);
        assert_eq!(logged.now(&clock, 1, 5_000), 5_010);
        clock.wall.store(0, Ordering::Relaxed);
        assert_eq!(logged.now(&clock, 1, 5_010), 5_010);
    }

    #[test]
    fn a_new_primary_behind_goes_on_from_the_logged_time() {
        let (clock, logged) = (Manual::at(5_000), LoggedClock::default());
        assert_eq!(logged.now(&clock, 2, 8_000), 8_000);
        clock.pass(7);
        assert_eq!(logged.now(&clock, 2, 8_000), 8_007);
    }

    #[test]
    fn an_hour_ahead_is_not_believed_and_is_told() {
        let (clock, logged) = (Manual::at(10_000 + MAX_AHEAD + 1), LoggedClock::default());
        assert_eq!(logged.now(&clock, 3, 10_000), 10_000);
        assert_eq!(logged.ahead(), Some(MAX_AHEAD + 1));
        assert_eq!(LoggedClock::default().now(&clock, 1, 0), 10_000 + MAX_AHEAD + 1);
    }

    #[test]
    fn an_hour_ahead_is_believed_when_others_show_the_same() {
        let (clock, logged) = (Manual::at(10_000 + 2 * MAX_AHEAD), LoggedClock::default());
        assert_eq!(logged.now(&clock, 3, 10_000), 10_000);
        clock.pass(50);
        logged.believe(&clock, 2);
        assert_eq!(logged.now(&clock, 3, 10_000), 10_050, "of another term");
        logged.believe(&clock, 3);
        assert_eq!((logged.now(&clock, 3, 10_050), logged.ahead()), (10_000 + 2 * MAX_AHEAD, None));
        // What is believed already is not set anew, and time does not go back.
        clock.wall.store(0, Ordering::Relaxed);
        logged.believe(&clock, 3);
        assert_eq!(logged.now(&clock, 3, 10_050), 10_000 + 2 * MAX_AHEAD);
    }
}
