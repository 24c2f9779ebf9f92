//! The grammar of the command line, and its exit codes against a stub server.

use clap::{CommandFactory, Parser};
use serde_json::json;

use super::output::{CliError, Exit};
use super::{Cli, dispatch};
use crate::client::stub::{Act, Seen, Stub, nobody, problem, usual};

fn parses(line: &str) -> bool {
    Cli::try_parse_from(line.split_whitespace()).is_ok()
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_contract_s_lines_are_understood() {
    for line in [
        "quorate cluster init --name S1 --data d --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001",
        "quorate server --name S2 --data d --listen 127.0.0.1:8002 --peer-listen 127.0.0.1:9002 --join a:1,b:2",
        "quorate server --disk-reserve 256MiB --election-timeout 300ms --heartbeat 50ms --log-level debug",
        "quorate server --advertise http://h:1 --peer-advertise h:2",
        "quorate client --servers http://a:1,http://b:2 --timeout 5s --json add 5",
        "quorate client add -5",
        "quorate client minus -9223372036854775808",
        "quorate client set -1 --counter hits",
        "quorate client cas -1 -2",
        "quorate client get --read stale --max-age 1s",
        "quorate client delete --json --servers a:1",
        "quorate client register --name x set hello",
        "quorate client register set -hello --name x",
        "quorate client register append -- --name",
        "quorate client register cas a b",
        "quorate client register cas --absent b",
        "quorate client register delete",
        "quorate client list --prefix a --after b --limit 10",
        "quorate client watch hits --from 42.1 --count 3",
        "quorate client console",
        "quorate client loop --every 1s --text hello_world",
        "quorate bench --clients 64 --secs 10 --batch 1000 --op add --json",
        "quorate bench --servers http://a:1 --clients 1 --secs 0.5 --warmup 0 --op get --read lease --keys 10",
        "quorate cluster status --json",
        "quorate cluster members",
        "quorate cluster log --from 1 --limit 5",
        "quorate cluster promote S2 --if-membership 7",
        "quorate cluster demote S2",
        "quorate cluster remove S2",
        "quorate cluster transfer",
        "quorate cluster transfer S2",
        "quorate cluster snapshot",
        "quorate cluster set target-size 3",
        "quorate completions bash",
    ] {
        assert!(parses(line), "{line}: {}", Cli::try_parse_from(line.split_whitespace()).unwrap_err());
    }
}

#[test]
fn mistakes_are_refused() {
    for line in [
        "quorate",
        "quorate client add",
        "quorate client add five",
        "quorate client add 9223372036854775808",
        "quorate client get --timeout 5",
        "quorate client get --timeout 0s",
        "quorate client list --limit 1001",
        "quorate bench --clients 0",
        "quorate bench --op put",
        "quorate server --listen 8001",
    ] {
        assert!(!parses(line), "{line} should not be understood");
    }
}

#[test]
fn every_help_has_an_example_and_says_what_each_flag_does() {
    fn visit(path: &str, command: &mut clap::Command) {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "`{path}` does not explain {}", argument.get_id());
        }
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "`{path} --help` has no example:\n{help}");
        for inner in command.get_subcommands_mut() {
            if inner.get_name() != "help" {
                visit(&format!("{path} {}", inner.get_name()), inner);
            }
        }
    }
    visit("quorate", &mut Cli::command());
}

#[test]
fn the_version_names_commit_and_formats() {
    let version = Cli::command().render_long_version();
    for part in [env!("CARGO_PKG_VERSION"), "commit ", "disk format ", "peer protocol "] {
        assert!(version.contains(part), "{version}");
    }
}

/// Runs `quorate LINE --servers URL` as the binary does, without its printing of the error.
async fn run(line: &str, url: &str) -> Result<Exit, CliError> {
    let line = format!("quorate {line} --servers {url}");
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    tokio::task::spawn_blocking(move || {
        dispatch(cli, crate::server::Services { registry: crate::services::registry(), hooks: None })
    })
    .await
    .unwrap()
}

async fn exit_of(line: &str, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Exit {
    let server = Stub::start(script).await;
    match run(line, &server.url()).await {
        Ok(exit) => exit,
        Err(error) => {
            assert!(!error.message.is_empty());
            error.exit
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_done_refused_and_unknown_apart() {
    assert_eq!(exit_of("client add 5", usual).await, Exit::Done);
    assert_eq!(exit_of("client get", usual).await, Exit::Done);
    let refuse = |seen: &Seen| match seen.path.as_str() {
        "/v1/counter/compare_and_set" => problem(409, "refused", "not_applied"),
        _ => usual(seen),
    };
    assert_eq!(exit_of("client cas 1 2 --json", refuse).await, Exit::Failed);
    let lose = |seen: &Seen| match seen.path.as_str() {
        "/v1/counter/add" => Act::Lose,
        _ => usual(seen),
    };
    assert_eq!(exit_of("client add 5 --timeout 200ms", lose).await, Exit::Unknown);
    assert_eq!(exit_of("client add 5 --session off", lose).await, Exit::Unknown);
    let error = run("client add 5 --timeout 100ms", &nobody().await).await.unwrap_err();
    assert_eq!(error.exit, Exit::Failed, "what never left the client failed for certain");
    assert_eq!(run("client add 5", "https://x").await.unwrap_err().exit, Exit::Usage);
    assert_eq!(run("client register cas a", "http://127.0.0.1:1").await.unwrap_err().exit, Exit::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_session_without_a_name_is_closed() {
    for (flags, closed) in [("", 1), ("--session ada", 0)] {
        let server = Stub::start(usual).await;
        assert_eq!(run(&format!("client add 5 {flags}"), &server.url()).await.unwrap(), Exit::Done);
        assert_eq!(server.seen("/v1/sessions/17").len(), closed, "{flags}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_counts_replies_and_gives_up_on_silence() {
    let server = Stub::start(|seen| match seen.path.as_str() {
        "/v1/register/set" => Act::Reply(200, json!({"text": seen.body["text"], "revision": 1})),
        _ => usual(seen),
    })
    .await;
    assert_eq!(run("client loop --every 1ms --text a --count 3", &server.url()).await.unwrap(), Exit::Done);
    let texts: Vec<_> =
        server.seen("/register/set").into_iter().map(|seen| seen.body["text"].clone()).collect();
    assert_eq!(texts, [json!("a1"), json!("a2"), json!("a3")]);
    let error = run("client loop --timeout 100ms", &nobody().await).await.unwrap_err();
    assert_eq!(error.exit, Exit::Unknown);
    assert!(error.message.contains("at hello_world1: not applied"), "{}", error.message);
    let hanging =
        Stub::start(|seen| if seen.path.contains("register") { Act::Hang } else { usual(seen) }).await;
    let error = run("client loop --timeout 200ms", &hanging.url()).await.unwrap_err();
    assert_eq!(error.exit, Exit::Unknown);
    assert!(error.message.contains("at hello_world1: outcome unknown"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_changes_are_sent_once_and_unknown_when_lost() {
    let server = Stub::start(|_| Act::Lose).await;
    let error = run("cluster promote S4 --if-membership 7", &server.url()).await.unwrap_err();
    assert_eq!(error.exit, Exit::Unknown);
    let seen = server.seen("/v1/cluster/members");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].body, json!({"op": "promote", "name": "S4", "if_membership": "7"}));

    // The time limit holds, though a change may take longer by default.
    let server = Stub::start(|_| Act::Hang).await;
    let begun = std::time::Instant::now();
    let error = run("cluster promote S4 --timeout 300ms", &server.url()).await.unwrap_err();
    assert_eq!((error.exit, server.seen("/v1/cluster/members").len()), (Exit::Unknown, 1));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "it took {:?}", begun.elapsed());

    let server = Stub::start(|_| Act::Reply(200, json!({}))).await;
    assert_eq!(run("cluster transfer S2", &server.url()).await.unwrap(), Exit::Done);
    assert_eq!(server.seen("/v1/cluster/transfer")[0].body, json!({"to": "S2"}));
    assert_eq!(run("cluster set target-size 3", &server.url()).await.unwrap(), Exit::Done);
    assert_eq!(run("cluster set mode passive", &server.url()).await.unwrap(), Exit::Done);
    let settings: Vec<_> = server.seen("/v1/cluster/settings").into_iter().map(|seen| seen.body).collect();
    assert_eq!(settings, [json!({"target-size": 3}), json!({"mode": "passive"})]);
    let changed = |_: &Seen| problem(412, "changed", "not_applied");
    assert_eq!(exit_of("cluster remove S2", changed).await, Exit::Failed);
}
