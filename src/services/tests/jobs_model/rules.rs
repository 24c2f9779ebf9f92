//! What is to become of jobs, in a list of them.

use super::{Job, Model, State};

impl Model {
    /// Puts a job where it belongs: behind another one of its key, into the future, or among those that are ready.
    pub(super) fn arm(&mut self, id: u64) {
        let (key, now) = (self.jobs[&id].key, self.time);
        let busy = |other: &Job| matches!(other.state, State::Delayed | State::Ready | State::Running);
        let behind =
            key.is_some() && self.jobs.iter().any(|(other, job)| *other != id && job.key == key && busy(job));
        let behind = behind || key.is_some_and(|key| self.letting_go.values().any(|(kept, _)| *kept == key));
        let job = self.jobs.get_mut(&id).unwrap();
        job.worker = None;
        job.state = match (behind, job.due > now) {
            (true, _) => State::Waiting,
            (false, true) => State::Delayed,
            (false, false) => State::Ready,
        };
    }

    pub(super) fn end(&mut self, id: u64, state: State) {
        let job = self.jobs.get_mut(&id).unwrap();
        let was_head = job.state != State::Waiting;
        (job.state, job.worker) = (state, None);
        let key = job.key;
        if was_head && let Some(key) = key {
            self.pass_on(key);
        }
    }

    pub(super) fn pass_on(&mut self, key: &'static str) {
        let next = self.jobs.iter().find(|(_, job)| job.key == Some(key) && job.state == State::Waiting);
        if let Some((&next, _)) = next {
            self.arm(next);
        }
    }

    pub(super) fn lets_go(&mut self, worker: &str) {
        if let Some((key, _)) = self.letting_go.remove(worker) {
            self.pass_on(key);
        }
    }

    /// The attempt has come to nothing.
    pub(super) fn fail(&mut self, id: u64, pause: u64) {
        let now = self.time;
        let job = self.jobs.get_mut(&id).unwrap();
        if job.attempts >= job.most {
            self.end(id, State::Dead);
        } else {
            job.due = now + pause;
            self.arm(id);
        }
    }

    pub(super) fn held(&self, worker: &str) -> Option<u64> {
        self.jobs.iter().find(|(_, job)| job.worker == Some(worker)).map(|(id, _)| *id)
    }

    pub(super) fn give_back(&mut self, worker: &str) {
        if let Some(id) = self.held(worker) {
            let job = self.jobs.get_mut(&id).unwrap();
            job.attempts -= 1;
            job.due = job.due.min(self.time);
            self.arm(id);
        }
    }
}
