//! Checkpoints: numbered marks in the order of deltas, at which every replica flushes and says what its state hash is.
//!
//! The hash stands in the rows that it is about, so that it comes with each flush and each snapshot: a replica whose
//! state differs keeps a hash that differs, also through a restart. It covers what the tables held before the mark's own
//! row was written.

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::delta::Millis;
use crate::span;
use crate::tables::{Table, Tables, View};

const MARKS: Table<u64, Mark> = Table::new("checkpoints");

/// So many are kept: replicas are compared by the newest that they have in common, and one may be a little behind.
const KEPT: u64 = 8;

/// As often as a primary looks whether one is due; so of revisions there may be more between two than was asked for.
const LEAST_TIME: Duration = Duration::from_millis(100);
const MOST_TIME: Duration = Duration::from_secs(7 * 24 * 3_600);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {
    revision: u64,
    time: Millis,
    hash: u128,
}

/// A checkpoint, as one replica has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// 1, 2, 3…
    pub number: u64,
    /// The revision of its delta.
    pub revision: u64,
    /// The logged time there.
    pub time: Millis,
    /// The hash of this replica's state before its delta.
    pub hash: u128,
}

/// Sets the next one. `hash` is that of all rows.
pub(super) fn set(tables: &mut Tables<'_>, revision: u64, time: Millis, hash: u128) -> u64 {
    let mut number = 0;
    tables.range(&MARKS, (Bound::Unbounded, Bound::Unbounded), |last, _| {
        number = last;
        ControlFlow::Continue(())
    });
    number += 1;
    tables.put(&MARKS, &number, &Mark { revision, time, hash });
    if let Some(old) = number.checked_sub(KEPT) {
        tables.remove(&MARKS, &old);
    }
    number
}

/// Those that are kept, oldest first.
pub(super) fn read(tables: &View<'_>) -> Vec<Checkpoint> {
    let mut kept = Vec::new();
    tables.range(&MARKS, (Bound::Unbounded, Bound::Unbounded), |number, Mark { revision, time, hash }| {
        kept.push(Checkpoint { number, revision, time, hash });
        ControlFlow::Continue(())
    });
    kept
}

/// When checkpoints are set. A state in which nothing has happened since the last one needs no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Interval {
    /// Never.
    #[default]
    Never,
    /// After so many revisions.
    Revisions(u64),
    /// After so much time.
    Time(Duration),
}

impl Interval {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            "it is a number of revisions, such as 1000, a span of time from 100ms to 168h, such as 60s, or never".to_owned()
        };
        if text == "never" {
            return Ok(Self::Never);
        }
        if let Ok(revisions) = text.parse() {
            return if revisions > 0 { Ok(Self::Revisions(revisions)) } else { Err(expected()) };
        }
        let span = span::parse(text).ok().filter(|span| (LEAST_TIME..=MOST_TIME).contains(span));
        span.map(Self::Time).ok_or_else(expected)
    }

    /// Whether the next one is due, at a revision, when the last one was set so long ago.
    pub fn is_due(self, last: Option<&Checkpoint>, revision: u64, since: Duration) -> bool {
        let new = revision.saturating_sub(last.map_or(0, |last| last.revision));
        match self {
            Self::Never => false,
            Self::Revisions(revisions) => new >= revisions,
            Self::Time(span) => new > 0 && since >= span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_revisions_or_time() {
        let parsed = ["never", "1", "1000", "100ms", "1m"].map(|text| Interval::parse(text).unwrap());
        let [never, every, many, short, minute] = parsed;
        assert_eq!(never, Interval::Never);
        assert_eq!((every, many), (Interval::Revisions(1), Interval::Revisions(1_000)));
        let seconds = Duration::from_secs;
        assert_eq!((short, minute), (Interval::Time(LEAST_TIME), Interval::Time(seconds(60))));
        for bad in ["", "0", "-1", "often", "99ms", "169h", "1 apple"] {
            assert!(Interval::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_is_due_when_enough_has_happened_since_the_last() {
        let last = Checkpoint { number: 3, revision: 50, time: 0, hash: 0 };
        let second = Duration::from_secs(1);
        assert!(!Interval::Never.is_due(None, 1_000, second));
        assert!(Interval::Revisions(10).is_due(Some(&last), 60, Duration::ZERO));
        assert!(!Interval::Revisions(10).is_due(Some(&last), 59, second));
        assert!(Interval::Time(second).is_due(Some(&last), 51, second));
        assert!(!Interval::Time(second).is_due(Some(&last), 51, second / 2));
        assert!(!Interval::Time(second).is_due(Some(&last), 50, second), "nothing has happened");
        assert!(!Interval::Time(second).is_due(None, 0, second), "nothing has happened yet");
    }
}
