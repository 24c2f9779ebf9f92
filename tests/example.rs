//! `examples/`: a service of somebody's own on three real processes, and a server with hooks.

use std::path::{Path, PathBuf};

use quorate::client::{BatchCommand, Client, Position, ReadLevel, Reply};
use serde::Deserialize;
use serde_json::json;

use crate::support::{Cluster, Setup};

mod support;

#[derive(Debug, PartialEq, Deserialize)]
struct Ticket {
    number: u64,
    who: String,
}

fn example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_quorate")).with_file_name("examples").join(name);
    assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
    program
}

async fn take(client: &Client, who: &str) -> Ticket {
    let reply: Reply<Ticket> =
        client.command("tickets", "take", &json!({"desk": "visa", "who": who})).await.expect("a ticket");
    reply.data
}

async fn call(client: &Client) -> Option<Ticket> {
    match client.command::<Ticket>("tickets", "call", &json!({"desk": "visa"})).await {
        Ok(reply) => Some(reply.data),
        Err(error) => {
            let refusal = error.refused().and_then(|refused| refused.refusal.clone());
            assert_eq!(refusal.as_deref(), Some("nobody_waits"), "{error}");
            None
        }
    }
}

#[tokio::test]
async fn a_service_of_ones_own_survives_the_death_of_the_primary() {
    let cluster = Cluster::with(Setup { program: Some(example("tickets")), ..Setup::default() }).await;
    let client = cluster.client().build().expect("a client");
    let mut called = client.watch("tickets", &["visa"], Some(Position::after(0)));
    let first = tokio::spawn(async move { called.next().await.expect("an event") });
    assert_eq!(take(&client, "ada").await.number, 1);
    assert_eq!(take(&client, "bob").await.number, 2);

    let primary = cluster.primary().await;
    cluster.kill9(&primary);
    assert_eq!(take(&client, "cleo").await.number, 3);
    for (number, who) in (1..).zip(["ada", "bob", "cleo"]) {
        assert_eq!(call(&client).await, Some(Ticket { number, who: who.to_owned() }));
    }
    assert_eq!(call(&client).await, None);
    assert_eq!(first.await.expect("the watch").data, json!({"number": 1, "who": "ada"}));
    client.close().await.expect("the end of the session");
    cluster.restart(&primary).await;
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn a_servers_hooks_are_asked_before_and_told_after_each_command() {
    let cluster =
        Cluster::with(Setup { servers: 1, program: Some(example("guard")), ..Setup::default() }).await;
    let client = cluster.client().build().expect("a client");
    client.counter("free").add(1).await.expect("it is free");
    let error = client.counter("locked-1").add(1).await.expect_err("it is locked");
    let refused = error.refused().expect("a refusal");
    // Not a service's refusal, which would be remembered: what a hook says is of this attempt alone.
    assert_eq!((refused.refusal.as_deref(), refused.status), (None, 403), "{error}");
    assert_eq!(refused.problem["hook"], "locked", "{error}");
    client.register("locked-1").set("x").await.expect("a register is none of its business");
    let add = |name: &str| BatchCommand::new("counter", "add", json!({"name": name, "amount": 1}));
    let error = client.batch(&[add("free"), add("locked-2")]).await.expect_err("one of it is locked");
    assert!(error.to_string().contains("locked-2 is locked"), "{error}");
    client.batch(&[add("free"), add("free")]).await.expect("all of it is free");
    assert_eq!(
        client.counter("free").get(ReadLevel::Linearizable).await.expect("its value").value,
        3,
        "a batch is taken whole or not at all"
    );
    client.counter("free").compare_and_set(7, 8).await.expect_err("it is 3");
    let log = cluster.server("S1").log();
    for told in [
        r#"counter add: {"previous":0,"value":1}"#,
        r#"register set: {"previous":null,"#,
        r#"counter add: {"previous":2,"value":3}"#,
        "counter compare_and_set: compare_failed",
    ] {
        assert!(log.contains(told), "{told} is not in {log}");
    }
    assert!(!log.contains("locked-"), "what was refused was not done: {log}");
}
