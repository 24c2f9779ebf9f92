//! The machine, driven by scripts that a person can follow, on two replicas that must agree.
//!
//! After a change: `UPDATE_GOLDENFILES=1 cargo test -p quorate-storage machine`, then read the difference.

mod replicas;
mod script;
mod services;

use super::{ApplyError, MAX_SESSIONS, SystemCommand, supports};
use crate::codec;
use crate::delta::{Command, DeltaResult, SESSION_SERVICE, SYSTEM_SERVICE, encode_entry};
use replicas::Replicas;
use services::registry;

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            let path = concat!("src/machine/testdata/", stringify!($name));
            goldenscript::run(&mut script::Runner::new(), path).unwrap();
        }
    )+};
}

scripts!(checkpoints, sessions, expiry, retries, acked, full, time, events, eviction, ticks, system);

/// Not a script: it would print 100,000 lines.
#[test]
fn sessions_are_bounded() {
    let mut replicas = Replicas::new();
    let open = || script::open(None, None);
    for _ in 0..MAX_SESSIONS / 1_000 {
        let entry: Vec<Command> = (0..1_000).map(|_| open()).collect();
        let outcomes = replicas.apply(0, &entry);
        assert!(outcomes.iter().all(|outcome| matches!(outcome.result, DeltaResult::Reply(_))));
    }
    let refused = |result: &DeltaResult| match result {
        DeltaResult::Refused(refusal) => (refusal.code.clone(), refusal.status),
        other => panic!("{other:?}"),
    };
    let outcomes = replicas.apply(0, &[open(), script::open(Some("a name"), None)]);
    for outcome in &outcomes {
        assert_eq!(refused(&outcome.result), ("too_many_sessions".to_owned(), 429));
    }
    // There is room again when they have expired, some with each tick.
    let tick = Command::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
    let outcomes = replicas.apply(60_000, &[tick, open()]);
    assert!(matches!(outcomes[1].result, DeltaResult::Reply(_)), "{outcomes:?}");
}

/// An entry is damage or a bug, never input: the machine says so and must not go on.
#[test]
fn an_entry_that_does_not_decode_stops_the_machine() {
    let error = Replicas::new().apply_bytes(&[9, 9]).unwrap_err();
    assert!(error.to_string().contains("a committed log entry cannot be read"), "{error}");
}

/// Another build's: whoever takes commands from elsewhere can tell before they are logged. Once they are, to pass over
/// them would be to diverge.
#[test]
fn a_command_that_this_build_does_not_know_stops_the_machine() {
    let bodies: [(&str, &[u8]); 7] = [
        ("nothing", &[1, 0]),
        // No variant 255, no version 0, nothing, a field more.
        ("tally", &[1, 255]),
        ("tally", &[0, 0]),
        ("tally", &[]),
        ("tally", &[1, 0, 5, 255]),
        (SESSION_SERVICE, &[1, 99]),
        (SYSTEM_SERVICE, &[1, 99]),
    ];
    for (service, body) in bodies {
        let command = Command::sessionless(service, body.to_vec());
        assert!(!supports(&registry(), service, body), "{command:?}");
        let error = Replicas::new().apply_bytes(&encode_entry(1, &[command])).unwrap_err();
        assert_eq!(error, ApplyError::Unsupported(service.to_owned()));
    }
    for command in [script::open(None, None), Command::sessionless("tally", vec![1, 0, 5])] {
        assert!(supports(&registry(), &command.service, &command.body), "{command:?}");
    }
}

#[test]
#[should_panic(expected = "is applied after")]
fn an_entry_is_never_applied_twice() {
    Replicas::new().apply_an_entry_twice();
}
