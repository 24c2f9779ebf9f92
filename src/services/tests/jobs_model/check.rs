//! What the service says has to be what the model holds, after each step.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Model, SLOTS, State};

impl Model {
    pub(super) fn check(&self) {
        for (id, job) in &self.jobs {
            let row = self.ask("status", &format!("id={id}"));
            assert_eq!(row["state"], serde_json::json!(job.state), "job {id}: {row}, expected {job:?}");
            assert_eq!(row["attempts"], job.attempts, "{row}");
            assert!(job.completions <= 1, "job {id} was completed twice");
        }
        let Ok(ring) = self.replicas.query("jobs", "ring", "queue=q") else { return };
        let ring: Value = serde_json::from_str(&ring).unwrap();
        let workers = ring["workers"].as_array().unwrap();
        let names: Vec<&str> = workers.iter().map(|worker| worker["name"].as_str().unwrap()).collect();
        assert!(names.iter().eq(self.members.keys()), "{ring}");
        let asked = workers.iter().filter(|worker| worker["asked"] == true).count();
        assert_eq!(ring["pending"], asked, "{ring}");
        assert_eq!(ring["phase"] == 0, asked == 0, "a phase that waits for nobody is over: {ring}");
        let counts = &self.ask("queues", "")["queues"][0]["jobs"];
        for state in [
            State::Waiting,
            State::Delayed,
            State::Ready,
            State::Running,
            State::Done,
            State::Dead,
            State::Cancelled,
        ] {
            let count = self.jobs.values().filter(|job| job.state == state).count();
            assert_eq!(counts[serde_json::json!(state).as_str().unwrap()], count, "{state:?}: {counts}");
        }
        let mut slots = BTreeSet::new();
        for run in workers.iter().flat_map(|worker| worker["owns"].as_array().unwrap()) {
            let (first, last) = (run[0].as_u64().unwrap(), run[1].as_u64().unwrap());
            assert!((first..=last).all(|slot| slots.insert(slot)), "a slot has two owners: {ring}");
        }
        let owned: u64 = workers.iter().map(|worker| worker["slots"].as_u64().unwrap()).sum();
        assert_eq!(slots.len() as u64, owned);
        if ring["phase"] == 0 && !workers.is_empty() {
            assert_eq!(owned, u64::from(SLOTS), "a slot has no owner: {ring}");
        }
    }
}
