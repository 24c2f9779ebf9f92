//! Jobs against a list of jobs: same states, same refusals, one at a time of each key and in order, nothing given to two; and a ring
//! whose slots have one owner each, whoever comes, goes, or says nothing any more.

mod check;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use quorate_storage::codec;
use quorate_storage::delta::{Command as Delta, DeltaResult, SYSTEM_SERVICE};
use quorate_storage::machine::SystemCommand;
use serde_json::Value;

use super::replicas::Replicas;
use crate::services::jobs::{Claim, Command, Phase, Reply, SLOTS, Standing, State};

const KEYS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 4] = ["W1", "W2", "W3", "W4"];
const LEASE: u64 = 1_000;
const BACKOFF: u64 = 50;

/// What is done next. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        key: Option<usize>,
        priority: u8,
        delay: u64,
        attempts: u32,
    },
    Join(usize),
    Leave(usize),
    Claim(usize),
    /// With the token of what it holds, or of nothing.
    Heartbeat(usize, bool),
    Acknowledge(usize),
    Complete(usize),
    /// Whether it is to be the last attempt.
    Fail(usize, bool),
    Cancel(usize),
    Retry(usize),
    /// So much later.
    Tick(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = || 0..WORKERS.len();
    prop_oneof![
        6 => (prop::option::of(0..KEYS.len()), 4u8..6, prop_oneof![3 => Just(0u64), 1 => 1u64..300], 1u32..4)
            .prop_map(|(key, priority, delay, attempts)| Step::Submit { key, priority, delay, attempts }),
        2 => worker().prop_map(Step::Join),
        1 => worker().prop_map(Step::Leave),
        8 => worker().prop_map(Step::Claim),
        2 => (worker(), any::<bool>()).prop_map(|(at, holds)| Step::Heartbeat(at, holds)),
        8 => worker().prop_map(Step::Acknowledge),
        4 => (0usize..50).prop_map(Step::Complete),
        2 => (0usize..50, prop::bool::weighted(0.2)).prop_map(|(at, last)| Step::Fail(at, last)),
        1 => (0usize..50).prop_map(Step::Cancel),
        1 => (0usize..50).prop_map(Step::Retry),
        3 => (0u64..600).prop_map(Step::Tick),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Done,
    Failed { last: bool },
}

#[derive(Debug, Clone)]
struct Job {
    key: Option<&'static str>,
    priority: u8,
    state: State,
    attempts: u32,
    most: u32,
    due: u64,
    token: u64,
    worker: Option<&'static str>,
    completions: u32,
    /// Of the attempt that was said to have failed last.
    failed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    id: u64,
    until: u64,
}

struct Model {
    replicas: Replicas,
    /// Whose job was cancelled under their hands; its key, which waits until they have said something else, and its token.
    letting_go: BTreeMap<&'static str, (&'static str, u64)>,
    time: u64,
    jobs: BTreeMap<u64, Job>,
    members: BTreeMap<&'static str, Member>,
}

impl Model {
    fn new() -> Self {
        Self {
            replicas: Replicas::new(),
            time: 0,
            jobs: BTreeMap::new(),
            members: BTreeMap::new(),
            letting_go: BTreeMap::new(),
        }
    }

    fn send(&mut self, command: &Command) -> Result<Reply, String> {
        let delta = Delta::sessionless("jobs", codec::encode(command));
        let outcome = self.replicas.apply(self.time, &[delta]).remove(0);
        self.replicas.flush_second();
        match outcome.result {
            DeltaResult::Reply(reply) => Ok(codec::decode(&reply).unwrap()),
            DeltaResult::Refused(refusal) => Err(refusal.code.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, query: &str, params: &str) -> Value {
        serde_json::from_str(&self.replicas.query("jobs", query, params).unwrap()).unwrap()
    }

    fn stands(&mut self, worker: &'static str, standing: &Standing) {
        assert!(standing.until_ms > self.time);
        let member = Member { id: standing.member, until: standing.until_ms };
        self.members.insert(worker, member);
        let held = self.held(worker).map_or(0, |id| self.jobs[&id].token);
        assert_eq!(standing.token, held);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit { key, priority, delay, attempts } => {
                self.submit(key.map(|key| KEYS[key]), priority, delay, attempts)
            }
            Step::Join(at) => {
                let worker = WORKERS[at];
                let join = Command::Join {
                    queue: "q".to_owned(),
                    worker: worker.to_owned(),
                    lease_ms: LEASE,
                    run: 0,
                };
                match self.send(&join) {
                    Ok(Reply::Standing(standing)) => {
                        assert!(!self.members.contains_key(worker));
                        self.stands(worker, &standing);
                    }
                    refused => {
                        assert_eq!(refused, Err("worker_exists".to_owned()));
                        assert!(self.members.contains_key(worker));
                    }
                }
            }
            Step::Leave(at) => {
                if let Some(member) = self.members.remove(WORKERS[at]) {
                    assert_eq!(self.send(&Command::Leave { member: member.id }), Ok(Reply::Left));
                    self.give_back(WORKERS[at]);
                    self.lets_go(WORKERS[at]);
                    assert_eq!(
                        self.send(&Command::Leave { member: member.id }),
                        Err("unknown_member".to_owned())
                    );
                }
            }
            Step::Claim(at) => drop(self.claim(WORKERS[at])),
            Step::Heartbeat(at, holds) => self.heartbeat(WORKERS[at], holds),
            Step::Acknowledge(at) => self.acknowledge(WORKERS[at]),
            Step::Complete(at) => self.outcome(at, Outcome::Done),
            Step::Fail(at, last) => self.outcome(at, Outcome::Failed { last }),
            Step::Cancel(at) => self.cancel(at),
            Step::Retry(at) => self.retry(at),
            Step::Tick(later) => self.tick(later),
        }
        self.check();
    }

    fn heartbeat(&mut self, worker: &'static str, holds: bool) {
        let Some(member) = self.members.get(worker).copied() else { return };
        let held = self.held(worker).map(|id| self.jobs[&id].token);
        // Who works on what was cancelled keeps its key.
        let cancelled = self.letting_go.get(worker).map(|(_, token)| *token);
        let token = if holds { held.or(cancelled).unwrap_or(0) } else { 0 };
        let heartbeat = Command::Heartbeat { member: member.id, token, progress: String::new() };
        let asked_since = self.asked_since(worker);
        let Ok(Reply::Standing(standing)) = self.send(&heartbeat) else { panic!("no standing") };
        if cancelled != Some(token) {
            self.lets_go(worker);
        }
        // A phase that waits for it ends its lease, whatever else it says.
        let begin = asked_since.unwrap_or(self.time);
        assert_eq!(standing.until_ms, (begin + LEASE).max(member.until));
        self.stands(worker, &standing);
    }

    /// Since when a phase waits for this worker, if one does.
    fn asked_since(&self, worker: &str) -> Option<u64> {
        let ring = self.ask("ring", "queue=q");
        let mut workers = ring["workers"].as_array().unwrap().iter();
        let is_asked = workers.any(|row| row["name"] == worker && row["asked"] == true);
        is_asked.then(|| ring["since_ms"].as_u64().unwrap())
    }

    fn submit(&mut self, key: Option<&'static str>, priority: u8, delay: u64, attempts: u32) {
        let submit = Command::Submit {
            queue: "q".to_owned(),
            payload: String::new(),
            key: key.map(str::to_owned),
            priority,
            delay_ms: delay,
            attempts,
            backoff_ms: BACKOFF,
        };
        let Ok(Reply::Submitted { id, state }) = self.send(&submit) else { panic!("not submitted") };
        assert_eq!(id, self.jobs.len() as u64 + 1, "numbers have no gap");
        let job = Job {
            key,
            priority,
            // Until it is put where it belongs.
            state: State::Cancelled,
            attempts: 0,
            most: attempts,
            due: self.time + delay,
            token: 0,
            worker: None,
            completions: 0,
            failed: 0,
        };
        self.jobs.insert(id, job);
        self.arm(id);
        assert_eq!(state, self.jobs[&id].state);
    }

    /// What this worker may be given: without a key any job, with a key what it owns.
    fn may_have(&self, worker: &str) -> Vec<(u64, Job)> {
        let phase = self.ask("ring", "queue=q")["phase"].clone();
        let owned: BTreeSet<&str> = KEYS
            .into_iter()
            .filter(|key| {
                let owner = self.ask("owner", &format!("queue=q&key={key}"));
                owner["worker"] == worker && (phase != 2 || owner["next"] == worker)
            })
            .collect();
        let ready = self.jobs.iter().filter(|(_, job)| job.state == State::Ready);
        let mine = ready.filter(|(_, job)| job.key.is_none_or(|key| owned.contains(key)));
        mine.map(|(id, job)| (*id, job.clone())).collect()
    }

    fn claim(&mut self, worker: &'static str) -> Option<Claim> {
        let member = *self.members.get(worker)?;
        let held = self.held(worker);
        self.lets_go(worker);
        let allowed = self.may_have(worker);
        let Ok(Reply::Claimed { job, standing }) = self.send(&Command::Claim { member: member.id }) else {
            panic!("no claim")
        };
        match (&job, held) {
            (Some(claim), Some(held)) => assert_eq!((claim.id, claim.token), (held, self.jobs[&held].token)),
            (None, None) => assert!(allowed.is_empty(), "{allowed:?} are there"),
            (None, Some(held)) => panic!("{worker} holds {held}"),
            (Some(claim), None) => {
                let found = allowed.iter().find(|(id, _)| *id == claim.id);
                let (_, found) = found.unwrap_or_else(|| panic!("{claim:?} is none of {allowed:?}"));
                let highest = allowed.iter().map(|(_, job)| job.priority).max();
                assert_eq!(Some(found.priority), highest, "of {allowed:?}");
                let oldest =
                    allowed.iter().find(|(_, job)| job.key.is_none() && job.priority == found.priority);
                if found.key.is_none() {
                    assert_eq!(oldest.map(|(id, _)| *id), Some(claim.id), "the oldest without a key");
                }
                let job = self.jobs.get_mut(&claim.id).unwrap();
                assert!(claim.token > job.token, "tokens grow");
                job.attempts += 1;
                assert_eq!((claim.attempt, claim.key.as_deref()), (job.attempts, job.key));
                (job.state, job.token, job.worker) = (State::Running, claim.token, Some(worker));
            }
        }
        self.stands(worker, &standing);
        job
    }

    /// As a worker does: with the token of what it holds.
    fn acknowledge(&mut self, worker: &'static str) {
        let Some(member) = self.members.get(worker) else { return };
        let ring = self.ask("ring", "queue=q");
        let phase = Phase::try_from(ring["phase"].as_u64().unwrap() as u8).unwrap();
        let token = self.held(worker).map_or(0, |id| self.jobs[&id].token);
        let epoch = ring["epoch"].as_u64().unwrap();
        match self.send(&Command::Acknowledge { member: member.id, epoch, phase, token }) {
            Ok(Reply::Standing(standing)) => {
                self.lets_go(worker);
                self.stands(worker, &standing);
            }
            refused => {
                assert_eq!(refused, Err("bad_phase".to_owned()));
                assert_eq!(phase, Phase::Normal);
            }
        }
    }

    fn outcome(&mut self, at: usize, outcome: Outcome) {
        let Some((&id, job)) = self.jobs.iter().nth(at) else { return };
        let (token, was) = (job.token, job.clone());
        let command = match outcome {
            Outcome::Done => Command::Complete { id, token, result: String::new() },
            Outcome::Failed { last } => Command::Fail { id, token, error: "x".to_owned(), last },
        };
        let reply = self.send(&command);
        match (was.state, outcome) {
            (State::Running, Outcome::Done) => {
                self.jobs.get_mut(&id).unwrap().completions += 1;
                self.end(id, State::Done);
            }
            (State::Running, Outcome::Failed { last }) => {
                self.jobs.get_mut(&id).unwrap().failed = token;
                match last {
                    true => self.end(id, State::Dead),
                    false => self.fail(id, BACKOFF << (was.attempts - 1)),
                }
            }
            // Said again.
            (State::Done, Outcome::Done) => {}
            (_, Outcome::Failed { .. }) if token != 0 && was.failed == token => {}
            _ => return assert_eq!(reply, Err("stale_token".to_owned())),
        }
        let Ok(Reply::Job { state, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(state, self.jobs[&id].state);
    }

    fn cancel(&mut self, at: usize) {
        let Some((&id, job)) = self.jobs.iter().nth(at) else { return };
        let state = job.state;
        let reply = self.send(&Command::Cancel { id });
        match state {
            State::Done => assert_eq!(reply, Err("already_done".to_owned())),
            State::Cancelled => assert_eq!(reply, Err("already_cancelled".to_owned())),
            _ => {
                assert!(reply.is_ok());
                // A dead letter is nobody's head.
                match state {
                    State::Dead => self.jobs.get_mut(&id).unwrap().state = State::Cancelled,
                    State::Running => {
                        let job = self.jobs.get_mut(&id).unwrap();
                        job.state = State::Cancelled;
                        if let (Some(worker), Some(key)) = (job.worker.take(), job.key) {
                            self.letting_go.insert(worker, (key, job.token));
                        }
                    }
                    _ => self.end(id, State::Cancelled),
                }
            }
        }
    }

    fn retry(&mut self, at: usize) {
        let Some((&id, job)) = self.jobs.iter().nth(at) else { return };
        let state = job.state;
        let reply = self.send(&Command::Retry { id });
        match state {
            State::Done => assert_eq!(reply, Err("already_done".to_owned())),
            State::Dead | State::Cancelled => {
                assert!(reply.is_ok());
                let (now, job) = (self.time, self.jobs.get_mut(&id).unwrap());
                (job.attempts, job.due) = (0, now);
                self.arm(id);
            }
            _ => assert_eq!(reply, Err("not_ended".to_owned())),
        }
    }

    fn tick(&mut self, later: u64) {
        self.time += later;
        let tick = Delta::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
        // Each does a part of what is due.
        while self.replicas.machine().next_deadline().unwrap().is_some_and(|due| due <= self.time) {
            self.replicas.apply(self.time, std::slice::from_ref(&tick));
            self.replicas.flush_second();
        }
        for (_, job) in self.jobs.iter_mut().filter(|(_, job)| job.state == State::Delayed) {
            if job.due <= self.time {
                job.state = State::Ready;
            }
        }
        let dead = self.members.iter().filter(|(_, member)| member.until <= self.time);
        for worker in dead.map(|(worker, _)| *worker).collect::<Vec<_>>() {
            self.members.remove(worker);
            if let Some(id) = self.held(worker) {
                self.fail(id, 0);
            }
            self.lets_go(worker);
        }
    }

    /// All workers do as they should: whatever has happened, each job ends.
    fn drain(&mut self) {
        self.step(&Step::Join(0));
        for _ in 0..400 {
            for (at, worker) in WORKERS.into_iter().enumerate() {
                self.step(&Step::Acknowledge(at));
                if let Some(claim) = self.claim(worker) {
                    let at = self.jobs.keys().position(|id| *id == claim.id).unwrap();
                    self.step(&Step::Complete(at));
                }
            }
            if self.jobs.values().all(|job| matches!(job.state, State::Done | State::Dead | State::Cancelled))
            {
                return;
            }
            self.step(&Step::Tick(10));
        }
        panic!("it does not end: {:?}, {}", self.jobs, self.ask("ring", "queue=q"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn jobs_agree_with_a_model(steps in vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.drain();
    }
}
