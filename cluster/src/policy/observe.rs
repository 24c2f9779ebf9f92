//! For how long things have been as they are: the manager's memory between two looks.
//!
//! It remembers by node id, so a server that was wiped begins anew. Times go by the manager's own monotonic clock; a
//! manager that stalled has not seen what it slept through, so a step counts for [`LONGEST_STEP`] at most, and a new one
//! begins with nothing: it waits for one more stabilisation time, and does no harm.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_storage::raft_types::NodeId;

/// Longer than a manager needs from one look to the next.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// What was seen of one member in one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The view has it dead.
    pub view_dead: bool,
    /// The primary does not hear of it.
    pub silent: bool,
    /// It is ready and caught up.
    pub steady: bool,
}

/// How long each has lasted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lasting {
    /// The view has it dead.
    pub view_dead: Option<Duration>,
    /// The primary does not hear of it.
    pub silent: Option<Duration>,
    /// It is ready and caught up.
    pub steady: Option<Duration>,
}

/// Remembers what was seen.
#[derive(Debug, Default)]
pub struct Observer {
    members: BTreeMap<NodeId, Lasting>,
    looked: Option<Instant>,
}

impl Observer {
    /// Takes a look at `now` in; gives how long everything has lasted. Who is not in it is forgotten.
    pub fn look(&mut self, looks: &BTreeMap<NodeId, Look>, now: Instant) -> &BTreeMap<NodeId, Lasting> {
        let step =
            self.looked.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)).min(LONGEST_STEP);
        self.looked = Some(now);
        self.members.retain(|id, _| looks.contains_key(id));
        for (id, look) in looks {
            let lasting = self.members.entry(*id).or_default();
            go_on(&mut lasting.view_dead, look.view_dead, step);
            go_on(&mut lasting.silent, look.silent, step);
            go_on(&mut lasting.steady, look.steady, step);
        }
        &self.members
    }
}

fn go_on(lasting: &mut Option<Duration>, still: bool, step: Duration) {
    *lasting = still.then(|| lasting.map_or(Duration::ZERO, |time| time + step));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn look(id: NodeId, view_dead: bool, silent: bool) -> BTreeMap<NodeId, Look> {
        BTreeMap::from([(id, Look { view_dead, silent, steady: !silent })])
    }

    #[test]
    fn times_add_up_while_nothing_changes() {
        let (mut observer, begin) = (Observer::default(), Instant::now());
        for (second, view_dead, silent, expected) in [
            (0, true, false, (Some(0), None, Some(0))),
            (1, true, true, (Some(1), Some(0), None)),
            (2, true, true, (Some(2), Some(1), None)),
            (3, false, true, (None, Some(2), None)),
            (4, false, false, (None, None, Some(0))),
        ] {
            let lasting = observer.look(&look(7, view_dead, silent), begin + SECOND * second)[&7];
            let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
            let now = (seconds(lasting.view_dead), seconds(lasting.silent), seconds(lasting.steady));
            assert_eq!(now, expected, "second {second}");
        }
    }

    #[test]
    fn a_stall_is_not_time_that_was_seen() {
        let (mut observer, begin) = (Observer::default(), Instant::now());
        observer.look(&look(7, true, true), begin);
        let later = observer.look(&look(7, true, true), begin + SECOND * 3_600);
        assert_eq!(later[&7].silent, Some(LONGEST_STEP));
        // Another node of the same name is another one.
        assert_eq!(
            observer.look(&look(8, true, true), begin + SECOND * 3_601)[&8].silent,
            Some(Duration::ZERO)
        );
    }
}
