//! When a local fault detector launches its server: pure, the process itself is elsewhere.
//!
//! - There is never more than one process: a launch happens only when none runs.
//! - A launch on somebody's word names the incarnation that it follows, so that the same word said twice launches once.
//! - A server that ends soon after its launch is launched again later and later.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// When a server that has ended is launched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// By the detector itself, at once.
    Always,
    /// When the replication manager, or a person, says so.
    OnCommand,
    /// When a person says so.
    Never,
}

impl Restart {
    /// The policies' names, as the command line has them.
    pub const NAMES: [&str; 3] = ["always", "on-command", "never"];

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "always" => Some(Self::Always),
            "on-command" => Some(Self::OnCommand),
            "never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// A server that ran for so long did not crash at its start.
const SETTLED: Duration = Duration::from_secs(10);
/// The pause after the first crash at the start; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a launch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody wants it to stay down.
    #[error("the server is held down; a launch without an incarnation releases it")]
    Held,
    /// The policy is that only a person launches it.
    #[error("this detector launches nothing on the replication manager's word (--restart never)")]
    Never,
}

/// What a word to launch has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// It is going to be launched.
    Soon,
    /// A process runs, or the incarnation named is not the last one any more.
    Already,
}

/// The launches of one server.
#[derive(Debug)]
pub struct Supervisor {
    restart: Restart,
    held: bool,
    /// The last launch; 0 before the first.
    incarnation: u64,
    running: Option<Instant>,
    /// Crashes at the start, one after another.
    crashes: u32,
    /// When the next launch is due.
    due: Option<Instant>,
}

impl Supervisor {
    /// Nothing runs, and the first launch is due `now`.
    pub fn new(restart: Restart, now: Instant) -> Self {
        Self { restart, held: false, incarnation: 0, running: None, crashes: 0, due: Some(now) }
    }

    /// The last launch; 0 before the first.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Somebody wants it to stay down.
    pub fn held(&self) -> bool {
        self.held
    }

    /// Whether a process runs.
    pub fn running(&self) -> bool {
        self.running.is_some()
    }

    /// When the next launch is due; never while a process runs.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Launched at `now`; `wall` is milliseconds since the Unix epoch. Gives the incarnation, which is greater than
    /// all before, also than those of a detector that ran earlier.
    pub fn launched(&mut self, now: Instant, wall: u64) -> u64 {
        self.incarnation = wall.max(self.incarnation + 1);
        self.runs(now);
        self.incarnation
    }

    /// A process was found running that another detector launched; or a person, then it has no incarnation (0), and gets
    /// one as if it were launched now.
    pub fn adopted(&mut self, incarnation: u64, now: Instant, wall: u64) {
        if incarnation == 0 {
            self.launched(now, wall);
            return;
        }
        self.incarnation = incarnation.max(self.incarnation);
        self.runs(now);
    }

    fn runs(&mut self, now: Instant) {
        debug_assert!(self.running.is_none(), "never two processes of one server");
        (self.running, self.due) = (Some(now), None);
    }

    /// The process has ended, or could not be launched.
    pub fn ended(&mut self, now: Instant) {
        let ran = self.running.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.crashes = if ran >= SETTLED { 0 } else { self.crashes.saturating_add(1) };
        self.due = (self.restart == Restart::Always && !self.held).then(|| now + self.pause());
    }

    /// Nobody is to launch it until a person says so.
    pub fn hold(&mut self) {
        (self.held, self.due) = (true, None);
    }

    /// It is to run: on the word of the replication manager `after` an incarnation that ended, or without one on a
    /// person's, which releases what is held.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn launch(&mut self, after: Option<u64>, now: Instant) -> Result<Launch, Refused> {
        match after {
            None => {
                (self.held, self.crashes) = (false, 0);
            }
            Some(_) if self.held => return Err(Refused::Held),
            Some(_) if self.restart == Restart::Never => return Err(Refused::Never),
            Some(after) if after != self.incarnation => return Ok(Launch::Already),
            Some(_) => {}
        }
        if self.running() {
            return Ok(Launch::Already);
        }
        if after.is_none() || self.due.is_none() {
            self.due = Some(now + self.pause());
        }
        Ok(Launch::Soon)
    }

    /// The first time again, at once: a server may be killed at any moment. Then later and later.
    fn pause(&self) -> Duration {
        match self.crashes {
            0 | 1 => Duration::ZERO,
            crashes => (FIRST_PAUSE * 2_u32.saturating_pow(crashes - 2)).min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(supervisor: &mut Supervisor, at: Instant, after: Duration) {
        supervisor.launched(at, 0);
        supervisor.ended(at + after);
    }

    #[test]
    fn a_crash_loop_is_slowed_down() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(Restart::Always, now);
        assert_eq!(supervisor.due(), Some(now));
        let pauses: Vec<u128> = (0..11)
            .map(|_| {
                crash(&mut supervisor, now, Duration::ZERO);
                (supervisor.due().unwrap() - now).as_millis()
            })
            .collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        crash(&mut supervisor, now, SETTLED);
        assert_eq!(supervisor.due(), Some(now + SETTLED), "that was no crash at the start");
        assert_eq!(supervisor.incarnation(), 12);
    }

    #[test]
    fn the_same_word_launches_once() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(Restart::OnCommand, now);
        let first = supervisor.launched(now, 1_000);
        assert_eq!(supervisor.launch(Some(first), now), Ok(Launch::Already), "it runs");
        supervisor.ended(now + SETTLED);
        assert_eq!(supervisor.due(), None, "nobody has said so");
        assert_eq!(supervisor.launch(Some(first - 1), now), Ok(Launch::Already), "of an earlier one");
        assert_eq!(supervisor.launch(Some(first), now), Ok(Launch::Soon));
        let due = supervisor.due();
        assert_eq!(supervisor.launch(Some(first), now + SETTLED), Ok(Launch::Soon));
        assert_eq!(supervisor.due(), due, "no later for that");
        let second = supervisor.launched(now, 500);
        assert_eq!(second, first + 1, "greater, though the clock went back");
        supervisor.ended(now);
        assert_eq!(supervisor.launch(Some(first), now), Ok(Launch::Already), "it was obeyed");
    }

    #[test]
    fn what_is_held_stays_down_until_a_person_says_otherwise() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(Restart::Always, now);
        let first = supervisor.launched(now, 7);
        supervisor.hold();
        supervisor.ended(now);
        assert_eq!((supervisor.due(), supervisor.held()), (None, true));
        assert_eq!(supervisor.launch(Some(first), now), Err(Refused::Held));
        assert_eq!(supervisor.launch(None, now), Ok(Launch::Soon));
        assert_eq!((supervisor.due(), supervisor.held()), (Some(now), false));
        let mut never = Supervisor::new(Restart::Never, now);
        let first = never.launched(now, 7);
        never.ended(now);
        assert_eq!(never.launch(Some(first), now), Err(Refused::Never));
        assert_eq!(never.launch(None, now), Ok(Launch::Soon));
    }

    #[test]
    fn an_adopted_process_keeps_its_incarnation() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(Restart::OnCommand, now);
        supervisor.adopted(2_000, now, 9_000);
        assert_eq!((supervisor.running(), supervisor.due(), supervisor.incarnation()), (true, None, 2_000));
        supervisor.ended(now);
        assert_eq!(supervisor.launched(now, 1_000), 2_001);
        supervisor.ended(now);
        supervisor.adopted(0, now, 9_000);
        assert_eq!(supervisor.incarnation(), 9_000, "a person has started it");
    }
}
