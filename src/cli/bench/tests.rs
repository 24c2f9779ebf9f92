//! The load generator against a stub server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::client::stub::{Act, Seen, Stub, nobody, problem, usual};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    arguments: BenchArgs,
}

/// A primary that is its own cluster; `command` answers everything on counters.
async fn primary(command: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Stub {
    let own = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let url = std::sync::Arc::clone(&own);
    let sessions = AtomicUsize::new(0);
    let server = Stub::start(move |seen| match seen.path.as_str() {
        "/v1/cluster" => {
            let servers = json!([{"name": "S1", "url": url.get()}]);
            Act::Reply(200, json!({"primary": "S1", "servers": servers}))
        }
        "/v1/sessions" => {
            let session = sessions.fetch_add(1, Ordering::SeqCst) + 1;
            Act::Reply(201, json!({"session": session, "next_sequence": 1}))
        }
        path if path.starts_with("/v1/counter/") || path == "/v1/batch" => command(seen),
        _ => usual(seen),
    })
    .await;
    own.set(server.url()).unwrap();
    server
}

/// Runs a bench and returns its JSON object and the first error.
async fn bench(line: &str, server: &str) -> (Value, Option<String>) {
    let line = format!("bench --servers {server} --warmup 0.1 --secs 0.3 {line}");
    let arguments = Line::try_parse_from(line.split_whitespace()).unwrap().arguments;
    let shared = Arc::new(Shared::new(&arguments.servers).unwrap());
    let secs = measure(&arguments, &shared, PATIENCE).await.unwrap();
    let report = report(&arguments, &shared, secs);
    (serde_json::to_value(&report).unwrap(), shared.first_error())
}

#[tokio::test]
async fn each_client_numbers_its_adds_without_a_gap() {
    let server = primary(|_| Act::Reply(200, json!({"previous": 0, "value": 1, "revision": 1}))).await;
    let (report, error) = bench("--clients 3 --keys 10 --json", &server.url()).await;
    assert_eq!((error, &report["errors"]), (None, &json!(0)));
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        ["op", "clients", "batch", "secs", "ops", "ops_per_sec", "p50_us", "p99_us", "p999_us", "errors"];
    assert_eq!(keys, expected);
    let ops = report["ops"].as_u64().unwrap();
    assert!(ops > 0 && report["p50_us"].as_u64() > Some(0), "{report}");

    let adds = server.seen("/v1/counter/add");
    assert!(adds.len() as u64 >= ops, "more was counted than was sent");
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for add in adds {
        let (session, sequence) = (add.session.unwrap(), add.sequence.unwrap());
        assert_eq!(sequence, last.insert(session, sequence).unwrap_or_default() + 1);
        assert_eq!(add.acked, Some(sequence - 1));
    }
    assert_eq!(last.len(), 3);
    let closed = server.seen("/v1/sessions/").iter().filter(|seen| seen.method == "DELETE").count();
    assert_eq!(closed, 3);
}

#[tokio::test]
async fn a_batch_counts_its_adds_and_takes_their_numbers() {
    let server = primary(|_| Act::Reply(200, json!([]))).await;
    let (report, _) = bench("--clients 1 --batch 20 --json", &server.url()).await;
    let batches = server.seen("/v1/batch");
    assert_eq!(report["ops"].as_u64().unwrap() % 20, 0);
    assert!(batches.len() > 1 && batches[0].body.as_array().unwrap().len() == 20);
    assert_eq!((batches[0].sequence, batches[1].sequence), (Some(1), Some(21)));
}

#[tokio::test]
async fn a_failed_add_is_sent_again_with_its_number() {
    let calls = AtomicUsize::new(0);
    let server = primary(move |seen| match calls.fetch_add(1, Ordering::SeqCst) {
        3 => problem(503, "no_primary", "not_applied"),
        5 => Act::Lose,
        7 => problem(429, "overloaded", "not_applied"),
        _ => usual(seen),
    })
    .await;
    let (report, error) = bench("--clients 1 --json", &server.url()).await;
    assert_eq!(report["errors"], 3, "{report}");
    assert!(error.unwrap().contains("503 no_primary"));
    let adds = server.seen("/v1/counter/add");
    let numbers: Vec<_> = adds.iter().take(9).map(|add| add.sequence.unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 4, 5, 5, 6, 6]);
    assert_eq!(adds[3].body, adds[4].body, "a retry has the same body");
    assert_eq!(adds[5].body, adds[6].body, "a retry has the same body");
}

#[tokio::test]
async fn a_batch_that_was_refused_does_not_count() {
    let lost = json!({"refused": {"code": "session_expired", "detail": "gone", "outcome": "unknown"}});
    let server = primary(move |_| Act::Reply(200, json!([lost, lost]))).await;
    let (report, error) = bench("--clients 1 --batch 2 --json", &server.url()).await;
    assert_eq!(report["ops"], 0);
    assert!(error.unwrap().contains("session_expired"));
    assert!(server.seen("/v1/sessions").len() > 1, "no new session was opened");
}

#[tokio::test]
async fn gets_need_no_session() {
    let server = primary(usual).await;
    let (report, error) = bench("--clients 2 --op get --read lease --json", &server.url()).await;
    assert_eq!((report["op"].as_str(), error), (Some("get"), None));
    assert!(report["ops"].as_u64() > Some(0));
    assert!(server.seen("/v1/sessions").is_empty());
    assert!(server.seen("/v1/counter/get")[0].query.ends_with("&read=lease"));
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_said_so() {
    let away = nobody().await;
    let line = format!("bench --servers {away} --clients 1 --secs 0.1");
    let arguments = Line::try_parse_from(line.split_whitespace()).unwrap().arguments;
    let shared = Arc::new(Shared::new(&arguments.servers).unwrap());
    let begun = Instant::now();
    let error = measure(&arguments, &shared, PATIENCE).await.unwrap_err();
    assert!(begun.elapsed() < PATIENCE / 2, "it took {:?}", begun.elapsed());
    for text in ["no server can be reached", "connection refused", "cluster.sh up --bare"] {
        assert!(error.contains(text), "no {text:?} in {error}");
    }
}

#[test]
fn numbers_are_grouped() {
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(grouped(1_000), "1,000");
    assert_eq!(grouped(1_234_567), "1,234,567");
    assert_eq!(counted(1, "client"), "1 client");
    assert_eq!(counted(2_000, "client"), "2,000 clients");
}
