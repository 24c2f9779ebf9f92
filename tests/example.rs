//! `examples/tickets.rs`, a service of somebody's own, on three real processes.

use std::path::Path;

use quorate::client::{Client, Position, Reply};
use serde::Deserialize;
use serde_json::json;

use crate::support::{Cluster, Setup};

mod support;

#[derive(Debug, PartialEq, Deserialize)]
struct Ticket {
    number: u64,
    who: String,
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
    let program = Path::new(env!("CARGO_BIN_EXE_quorate")).with_file_name("examples").join("tickets");
    assert!(program.exists(), "{} is not built: `cargo build --example tickets`", program.display());
    let cluster = Cluster::with(Setup { program: Some(program), ..Setup::default() }).await;
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
