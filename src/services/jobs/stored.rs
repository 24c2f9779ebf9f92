//! What is stored of jobs, queues and workers. By position: append fields only.

use serde::{Deserialize, Serialize};

use super::MAX_PRIORITY;
use super::ring::Slots;

/// One for each priority.
pub(super) const LEVELS: usize = MAX_PRIORITY as usize + 1;

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Behind another job of its key.
    Waiting,
    /// Until its time comes.
    Delayed,
    /// The next worker that asks may have it.
    Ready,
    /// A worker has it.
    Running,
    /// Completed.
    Done,
    /// A dead letter: all its attempts have failed.
    Dead,
    /// Taken out.
    Cancelled,
}

/// How a resize goes on. Each phase but the first ends when all members that take part have acknowledged it. In JSON its
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Phase {
    /// 0: there is no resize.
    #[default]
    Normal,
    /// 1: each member says which job it works on.
    Announce,
    /// 2: the new ring is known. Keys that move are not handed out; who owned them lets go of what it keeps of them.
    Synchronise,
    /// 3: the new ring holds.
    Resume,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Normal, Self::Announce, Self::Synchronise, Self::Resume];

    /// The one that follows.
    pub(super) fn next(self) -> Self {
        Self::ALL[(u8::from(self) as usize + 1) % 4]
    }

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Announce => "announce",
            Self::Synchronise => "synchronise",
            Self::Resume => "resume",
        }
    }
}

impl From<Phase> for u8 {
    fn from(phase: Phase) -> Self {
        phase as Self
    }
}

impl TryFrom<u8> for Phase {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        let phase = Self::ALL.get(usize::from(number)).copied();
        phase.ok_or_else(|| format!("there is no phase {number}; they are 0 to 3"))
    }
}

/// A job as it is stored, under its number. Its payload and its result have rows of their own: this one changes often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) queue: String,
    pub(super) key: Option<String>,
    pub(super) priority: u8,
    pub(super) state: State,
    /// Those that were begun and count.
    pub(super) attempts: u32,
    pub(super) most_attempts: u32,
    pub(super) backoff_ms: u64,
    pub(super) submitted_ms: u64,
    /// Not before.
    pub(super) due_ms: u64,
    /// When it was claimed the last time; 0: never.
    pub(super) claimed_ms: u64,
    /// When it ended; 0: not yet.
    pub(super) ended_ms: u64,
    /// The last one that claimed it.
    pub(super) worker: String,
    pub(super) member: u64,
    /// Of the last claim: the revision at which it was made.
    pub(super) token: u64,
    pub(super) progress: String,
    /// What came of the last attempt that failed.
    pub(super) error: String,
    /// Its number among those that have ended, under which it waits to be dropped.
    pub(super) place: u64,
    /// The token of the last attempt that was said to have failed.
    pub(super) failed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Queue {
    pub(super) counts: Counts,
    /// How many have ever taken a place among the ended ones, and how many places are dropped.
    pub(super) ended: u64,
    pub(super) dropped: u64,
    /// So many jobs are in a place.
    pub(super) kept: u64,
    /// Places below this one are to be dropped, a few at a time.
    pub(super) purged: u64,
    /// Of each level: its ready jobs without a key.
    pub(super) plain: [Front; LEVELS],
    /// Which priorities have a keyed job that is ready, a bit each.
    pub(super) levels: u16,
    pub(super) members: u32,
    pub(super) ring: Ring,
}

/// Rows that are mostly taken from the front. A row that was removed is walked over until it is removed on disk too, so it is
/// remembered where the first one may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Front {
    pub(super) count: u64,
    /// None has a smaller number.
    pub(super) first: u64,
}

impl Front {
    pub(super) fn add(&mut self, id: u64) {
        self.first = if self.count == 0 { id } else { self.first.min(id) };
        self.count += 1;
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.count = self.count.saturating_sub(1);
        if self.first == id {
            self.first = id + 1;
        }
    }
}

/// A key's jobs: the one that is not behind another one, and those that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// [`NOBODY`] while the first one was cancelled under a worker's hands.
    pub(super) head: u64,
    pub(super) behind: Front,
}

/// No job has this number.
pub(super) const NOBODY: u64 = 0;

/// How many jobs of a queue are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// [`State::Waiting`].
    pub waiting: u64,
    /// [`State::Delayed`].
    pub delayed: u64,
    /// [`State::Ready`].
    pub ready: u64,
    /// [`State::Running`].
    pub running: u64,
    /// [`State::Done`], those that are no longer kept included.
    pub done: u64,
    /// [`State::Dead`].
    pub dead: u64,
    /// [`State::Cancelled`], those that are no longer kept included.
    pub cancelled: u64,
}

impl Counts {
    pub(super) fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Waiting => &mut self.waiting,
            State::Delayed => &mut self.delayed,
            State::Ready => &mut self.ready,
            State::Running => &mut self.running,
            State::Done => &mut self.done,
            State::Dead => &mut self.dead,
            State::Cancelled => &mut self.cancelled,
        }
    }

    pub(super) fn open(&self) -> u64 {
        self.waiting + self.delayed + self.ready + self.running + self.dead
    }
}

/// The resize that is under way, or was the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Ring {
    pub(super) epoch: u64,
    pub(super) phase: Phase,
    pub(super) since_ms: u64,
    /// The revision at which the new ring was known.
    pub(super) sync: u64,
    /// So many have not acknowledged the phase.
    pub(super) pending: u32,
    /// Members have come or gone since the new ring was known.
    pub(super) changed: bool,
}

/// A worker that is a member of a queue. Its number is the revision at which it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) queue: String,
    pub(super) name: String,
    pub(super) lease_ms: u64,
    pub(super) until_ms: u64,
    /// When its lease is looked at next.
    pub(super) look_ms: u64,
    /// The session that it has joined through; 0 for none.
    pub(super) session: u64,
    /// The job that it holds, and the token; 0 for none.
    pub(super) job: u64,
    pub(super) token: u64,
    /// The key and token of a job that was cancelled under its hands: the key's next job waits until it has let go.
    pub(super) letting_go: Option<(String, u64)>,
    pub(super) done: u64,
    /// The last resize whose ring has it; 0: none yet.
    pub(super) epoch: u64,
    /// The last resize and phase that it has acknowledged.
    pub(super) acknowledged: (u64, Phase),
    /// What it owns,
    pub(super) slots: Slots,
    /// and what it will own when the resize is through.
    pub(super) next: Slots,
    /// Where it goes on looking for keyed jobs, so that each of its keys has its turn.
    pub(super) cursor: u32,
    /// As it was told when it joined.
    pub(super) run: u64,
}
