//! How long a peer's silence may last.
//!
//! This is the φ accrual failure detector of Hayashibara, Défago, Yared and Katayama (SRDS 2004, section 3): the times
//! between answers are kept in a window and taken as normally distributed; φ = -log10 of the probability that an answer
//! comes even later than now. A level of φ is reached when the silence is so many deviations longer than the mean; so
//! no φ is computed, the two limits are.
//!
//! What differs from the paper:
//!
//! - The limits have bounds that the user sets. In a calm network a peer is dead after the time-out, not after the
//!   few hundred milliseconds that φ alone would say; in a rough one later, at most [`PATIENCE`] times as late.
//! - A detector that stalls (a paused machine, a busy core) hears nobody and would take all for dead. So only silence
//!   that it listened to counts: each look adds at most one interval. It is Lifeguard's idea (Dadgar, Phillips and
//!   Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection", DSN-W 2018) that who is slow itself is to give others more time.
//!
//! Caveat: gaps of a network that breaks down now and then are not normally distributed. The window is short, so that a
//! rough hour is soon forgotten, and the bounds hold whatever it says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Gaps that are remembered: half a minute at the default interval.
const WINDOW: usize = 128;
/// φ = 8: one answer in a hundred million comes later.
const SUSPECT_DEVIATIONS: f64 = 5.6;
/// φ = 12.
const DEAD_DEVIATIONS: f64 = 7.0;
/// No network is as regular as it looks: the deviation is at least this part of the interval.
const LEAST_DEVIATION: f64 = 1.0 / 8.0;
/// Before there are so many gaps, the deviation is a quarter of the interval.
const FEW: usize = 8;
/// A peer is dead at the latest after so many time-outs, however rough the network is.
pub const PATIENCE: u32 = 3;

/// What is to be thought of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Alive,
    /// It has been silent for longer than it should; nothing is to be done yet.
    Suspect,
    /// It has been silent for too long.
    Dead,
}

/// The detector for one peer, which is asked every `interval` and judged by when its answers come.
#[derive(Debug, Clone)]
pub struct Accrual {
    interval: Duration,
    timeout: Duration,
    /// Milliseconds between answers, the newest last.
    gaps: VecDeque<f64>,
    /// As long as it was listened.
    silence: Duration,
    looked: Instant,
}

impl Accrual {
    /// A peer that is taken for alive since `now`.
    pub fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            gaps: VecDeque::with_capacity(WINDOW),
            silence: Duration::ZERO,
            looked: now,
        }
    }

    /// An answer has come. Silence that was a death says nothing of the network, and is not remembered.
    pub fn answered(&mut self, now: Instant) {
        self.listen(now);
        if self.silence < self.dead_after() {
            if self.gaps.len() == WINDOW {
                self.gaps.pop_front();
            }
            self.gaps.push_back(millis(self.silence));
        }
        self.silence = Duration::ZERO;
    }

    /// What is to be thought of it now. To be called several times in an interval: what a late look did not listen to
    /// does not count.
    pub fn look(&mut self, now: Instant) -> Health {
        self.listen(now);
        match self.silence {
            silence if silence >= self.dead_after() => Health::Dead,
            silence if silence >= self.suspect_after() => Health::Suspect,
            _ => Health::Alive,
        }
    }

    /// Silence after which it is suspect: two intervals at least, the time-out at most.
    pub fn suspect_after(&self) -> Duration {
        self.late(SUSPECT_DEVIATIONS).max(self.interval * 2).min(self.timeout)
    }

    /// Silence after which it is dead: the time-out at least, [`PATIENCE`] of them at most.
    pub fn dead_after(&self) -> Duration {
        self.late(DEAD_DEVIATIONS).clamp(self.timeout, self.timeout * PATIENCE)
    }

    fn listen(&mut self, now: Instant) {
        self.silence += now.saturating_duration_since(self.looked).min(self.interval);
        self.looked = self.looked.max(now);
    }

    /// So many deviations after the mean.
    fn late(&self, deviations: f64) -> Duration {
        let interval = millis(self.interval);
        let count = self.gaps.len();
        let (mean, deviation) = if count < FEW {
            (interval, interval / 4.0)
        } else {
            let mean = self.gaps.iter().sum::<f64>() / count as f64;
            let variance = self.gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count as f64;
            (mean, variance.sqrt())
        };
        let late = mean + deviations * deviation.max(interval * LEAST_DEVIATION);
        Duration::from_secs_f64(late / 1000.0)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(250);
    const TIMEOUT: Duration = Duration::from_secs(1);
    const LOOK: Duration = Duration::from_millis(50);

    struct Watched {
        accrual: Accrual,
        now: Instant,
    }

    impl Watched {
        fn new() -> Self {
            let now = Instant::now();
            Self { accrual: Accrual::new(INTERVAL, TIMEOUT, now), now }
        }

        /// Looks all the time while nothing is heard for so long; gives the worst.
        fn silent(&mut self, for_so_long: Duration) -> Health {
            let end = self.now + for_so_long;
            let mut worst = Health::Alive;
            while self.now < end {
                self.now = (self.now + LOOK).min(end);
                worst = worst.max(self.accrual.look(self.now));
            }
            worst
        }

        fn answers_after(&mut self, gap: u64) -> Health {
            let worst = self.silent(Duration::from_millis(gap));
            self.accrual.answered(self.now);
            worst
        }
    }

    #[test]
    fn in_a_calm_network_the_timeout_counts() {
        let mut peer = Watched::new();
        for _ in 0..100 {
            assert_eq!(peer.answers_after(250), Health::Alive);
        }
        assert_eq!(peer.accrual.dead_after(), TIMEOUT);
        assert_eq!(peer.silent(INTERVAL), Health::Alive);
        assert_eq!(peer.silent(TIMEOUT - INTERVAL - LOOK), Health::Suspect);
        assert_eq!(peer.silent(LOOK), Health::Dead);
        peer.accrual.answered(peer.now);
        assert_eq!(peer.silent(INTERVAL), Health::Alive, "it is back");
        assert_eq!(peer.accrual.dead_after(), TIMEOUT, "its absence was no jitter");
    }

    #[test]
    fn jitter_below_the_timeout_kills_nobody_and_makes_patient() {
        let mut peer = Watched::new();
        for n in 0..1_000_u64 {
            assert_ne!(peer.answers_after(100 + n * 7919 % 890), Health::Dead, "gap {n}");
        }
        let patience = peer.accrual.dead_after();
        assert!(patience > TIMEOUT && patience <= TIMEOUT * PATIENCE, "{patience:?}");
        assert_eq!(peer.silent(TIMEOUT * PATIENCE), Health::Dead);
    }

    #[test]
    fn a_rough_time_is_forgotten() {
        let mut peer = Watched::new();
        for n in 0..200 {
            peer.answers_after(if n % 2 == 0 { 20 } else { 980 });
        }
        assert!(peer.accrual.dead_after() > TIMEOUT);
        for _ in 0..WINDOW {
            peer.answers_after(250);
        }
        assert_eq!(peer.accrual.dead_after(), TIMEOUT);
    }

    #[test]
    fn its_own_stall_is_not_the_peers() {
        let mut peer = Watched::new();
        for _ in 0..100 {
            peer.answers_after(250);
        }
        peer.now += Duration::from_secs(3_600);
        assert_eq!(peer.accrual.look(peer.now), Health::Alive);
        assert_eq!(peer.answers_after(50), Health::Alive);
        // Nor does it make patient.
        assert_eq!(peer.accrual.dead_after(), TIMEOUT);
    }
}
