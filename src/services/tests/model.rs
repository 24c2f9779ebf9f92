//! Counters and registers against two maps: same replies, same refusals, same state, with requests that are
//! sent again, sent late, sent twice in one entry, or sent under a sequence that was used before.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Outcome, SESSION_SERVICE};
use quorate_storage::machine::SessionCommand;
use serde_json::{Value, json};

use super::replicas::Replicas;
use crate::services::{counter, register};

#[derive(Debug, Clone, PartialEq)]
enum Request {
    Counter(counter::Command),
    Register(register::Command),
}

/// One delta of an entry.
#[derive(Debug, Clone)]
enum Step {
    Send {
        session: u64,
        sequence: u64,
        acked: u64,
        request: Request,
    },
    /// Something that was sent before, as it was.
    Resend(prop::sample::Index),
}

fn request() -> impl Strategy<Value = Request> {
    let name = || prop_oneof!["[abc]", Just("default".to_owned()), Just("\n".to_owned())];
    let number = || prop_oneof![5 => -3i64..4, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    let text = || {
        let length = prop_oneof![30 => 0usize..3, 5 => Just(1_024), 5 => Just(1_025), 1 => Just(600_000)];
        ("[xy]", length).prop_map(|(letter, length)| letter.repeat(length))
    };
    let expect = || proptest::option::weighted(0.7, text());
    use counter::Command as C;
    use register::Command as R;
    prop_oneof![
        3 => (name(), number()).prop_map(|(name, amount)| Request::Counter(C::Add { name, amount })),
        2 => (name(), number()).prop_map(|(name, amount)| Request::Counter(C::Minus { name, amount })),
        2 => (name(), number()).prop_map(|(name, value)| Request::Counter(C::Set { name, value })),
        2 => (name(), number(), number())
            .prop_map(|(name, expect, value)| Request::Counter(C::CompareAndSet { name, expect, value })),
        1 => name().prop_map(|name| Request::Counter(C::Delete { name })),
        2 => (name(), text()).prop_map(|(name, text)| Request::Register(R::Set { name, text })),
        3 => (name(), text()).prop_map(|(name, text)| Request::Register(R::Append { name, text })),
        2 => (name(), expect(), text())
            .prop_map(|(name, expect, text)| Request::Register(R::CompareAndSet { name, expect, text })),
        1 => name().prop_map(|name| Request::Register(R::Delete { name })),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Few sequences, so that many are used before, and acked rarely, so that most are kept.
        3 => (1u64..3, 1u64..40, prop_oneof![4 => Just(0), 1 => 0u64..12], request())
            .prop_map(|(session, sequence, acked, request)| Step::Send { session, sequence, acked, request }),
        2 => any::<prop::sample::Index>().prop_map(Step::Resend),
    ]
}

/// What is expected of a delta that is applied.
#[derive(Debug, PartialEq)]
enum Expected {
    Reply(Value),
    Refused(&'static str),
}

#[derive(Default)]
struct Model {
    counters: BTreeMap<String, i64>,
    registers: BTreeMap<String, String>,
    changes: usize,
    acked: BTreeMap<u64, u64>,
    kept: BTreeMap<(u64, u64), (Request, Outcome)>,
}

impl Model {
    fn apply(&mut self, request: &Request) -> Expected {
        let result = match request {
            Request::Counter(command) => self.counter(command),
            Request::Register(command) => self.register(command),
        };
        result.map_or_else(Expected::Refused, Expected::Reply)
    }

    fn counter(&mut self, command: &counter::Command) -> Result<Value, &'static str> {
        use counter::Command::*;
        let (Add { name, .. }
        | Minus { name, .. }
        | Set { name, .. }
        | CompareAndSet { name, .. }
        | Delete { name }) = command;
        if name == "\n" {
            return Err("bad_name");
        }
        let previous = self.counters.get(name).copied().unwrap_or(0);
        let wide = |value: i128| i64::try_from(value).map_err(|_| "overflow");
        let value = match *command {
            Add { amount, .. } => wide(i128::from(previous) + i128::from(amount))?,
            Minus { amount, .. } => wide(i128::from(previous) - i128::from(amount))?,
            Set { value, .. } => value,
            CompareAndSet { expect, value, .. } if expect == previous => value,
            CompareAndSet { .. } => return Err("compare_failed"),
            Delete { .. } => 0,
        };
        match command {
            Delete { .. } => self.counters.remove(name),
            _ => self.counters.insert(name.clone(), value),
        };
        self.changes += usize::from(value != previous);
        Ok(json!({"previous": previous, "value": value}))
    }

    fn register(&mut self, command: &register::Command) -> Result<Value, &'static str> {
        use register::Command::*;
        let (Set { name, .. } | Append { name, .. } | CompareAndSet { name, .. } | Delete { name }) = command;
        if name == "\n" {
            return Err("bad_name");
        }
        let previous = self.registers.get(name).cloned();
        let text = match command.clone() {
            Set { text, .. } => Some(text),
            Append { text, .. } => Some(previous.clone().unwrap_or_default() + &text),
            CompareAndSet { text, .. } if text.len() > register::MAX_TEXT_BYTES => return Err("too_large"),
            CompareAndSet { expect, text, .. } if expect == previous => Some(text),
            CompareAndSet { .. } => return Err("compare_failed"),
            Delete { .. } => None,
        };
        if text.as_ref().is_some_and(|text| text.len() > register::MAX_TEXT_BYTES) {
            return Err("too_large");
        }
        match text.clone() {
            Some(text) => self.registers.insert(name.clone(), text),
            None => self.registers.remove(name),
        };
        self.changes += usize::from(text != previous);
        let told = |text: &Option<String>| text.clone().filter(|text| text.len() <= 1_024);
        Ok(json!({
            "previous": if matches!(command, Append { .. }) { None } else { told(&previous) },
            "previous_length": previous.map(|text| text.len()),
            "text": told(&text),
            "length": text.map(|text| text.len()),
        }))
    }

    /// Checks one outcome against what the session and the maps say.
    fn check(&mut self, replicas: &Replicas, sent: &Sent, revision: u64, outcome: Outcome) {
        let (key @ (session, sequence), acked, request) = sent;
        let ended = self.acked.entry(*session).or_default();
        if *sequence <= *ended {
            assert_eq!(outcome, Outcome { revision, result: DeltaResult::SequenceAcked });
            return;
        }
        if let Some((first, kept)) = self.kept.get(key) {
            let reused = Outcome { revision, result: DeltaResult::SequenceReused };
            assert_eq!(&outcome, if first == request { kept } else { &reused });
            return;
        }
        *ended = (*ended).max((*acked).min(sequence - 1));
        let ended = *ended;
        self.kept.retain(|(s, q), _| s != session || *q > ended);
        let found = match &outcome.result {
            DeltaResult::Reply(reply) => {
                let service = replicas.machine().registry().get(service_of(request)).unwrap();
                let mut json = Vec::new();
                service.reply_to_json(reply, &mut json).unwrap();
                Expected::Reply(serde_json::from_slice(&json).unwrap())
            }
            DeltaResult::Refused(refusal) => {
                let known = ["bad_name", "overflow", "compare_failed", "too_large"];
                Expected::Refused(known.into_iter().find(|code| *code == refusal.code).unwrap())
            }
            other => panic!("{other:?} for {request:?}"),
        };
        assert_eq!(found, self.apply(request), "{request:?}");
        assert_eq!(outcome.revision, revision);
        self.kept.insert(*key, (request.clone(), outcome));
    }

    /// Checks the state and the events at the end.
    fn check_state(&self, replicas: &Replicas) {
        let list = |service: &str, rows: &str, field: &str| {
            let mut found = BTreeMap::new();
            let mut after = String::new();
            loop {
                let page = replicas.query(service, "list", &format!("limit=2{after}")).unwrap();
                let page: Value = serde_json::from_str(&page).unwrap();
                for row in page[rows].as_array().unwrap() {
                    found.insert(row["name"].as_str().unwrap().to_owned(), row[field].clone());
                }
                match page["next"].as_str() {
                    Some(next) => after = format!("&after={next}"),
                    None => return json!(found),
                }
            }
        };
        assert_eq!(list("counter", "counters", "value"), json!(self.counters));
        assert_eq!(list("register", "registers", "text"), json!(self.registers));
        for name in ["a", "b", "c", "default"] {
            let counter = replicas.query("counter", "get", &format!("name={name}")).unwrap();
            assert_eq!(counter, json!({"value": self.counters.get(name).unwrap_or(&0)}).to_string());
            let register = replicas.query("register", "get", &format!("name={name}")).unwrap();
            assert_eq!(register, json!({"text": self.registers.get(name)}).to_string());
        }
        let (events, _) = replicas.machine().events((0, 0), usize::MAX, |_| true).unwrap().unwrap();
        assert_eq!(events.len(), self.changes, "one event per change");
    }
}

/// Session and sequence, acked, request.
type Sent = ((u64, u64), u64, Request);

fn service_of(request: &Request) -> &'static str {
    match request {
        Request::Counter(_) => "counter",
        Request::Register(_) => "register",
    }
}

fn command((key, acked, request): &Sent) -> Command {
    let body = match request {
        Request::Counter(command) => codec::encode(command),
        Request::Register(command) => codec::encode(command),
    };
    Command {
        session: key.0,
        sequence: key.1,
        acked: *acked,
        service: service_of(request).to_owned().into(),
        body: body.into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn services_agree_with_a_model(entries in vec((vec(step(), 1..9), prop::bool::weighted(0.15)), 1..40)) {
        let mut replicas = Replicas::new();
        let open = codec::encode(&SessionCommand::Open { name: None, ttl_ms: None });
        let open = Command::sessionless(SESSION_SERVICE, open);
        replicas.apply(0, &[open.clone(), open]);
        let mut model = Model::default();
        let mut history: Vec<Sent> = Vec::new();
        for (steps, flush) in entries {
            let first = history.len();
            for step in steps {
                match step {
                    Step::Send { session, sequence, acked, request } => {
                        history.push(((session, sequence), acked, request));
                    }
                    Step::Resend(which) if !history.is_empty() => history.push(which.get(&history).clone()),
                    Step::Resend(_) => {}
                }
            }
            let sent = &history[first..];
            let revision = replicas.machine().revision();
            let commands: Vec<_> = sent.iter().map(command).collect();
            let outcomes = replicas.apply(0, &commands);
            assert_eq!(outcomes.len(), sent.len());
            for ((sent, outcome), revision) in sent.iter().zip(outcomes).zip(revision + 1..) {
                model.check(&replicas, sent, revision, outcome);
            }
            if flush {
                replicas.flush_second();
            }
        }
        model.check_state(&replicas);
    }
}
