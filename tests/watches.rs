//! Watches go on, on another server, after a failure: every event once, in order, no gap and no double.

mod support;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use eventsource_stream::Eventsource as _;
use futures_util::{Stream, StreamExt as _};
use quorate::client::{Client, Position, Watch};
use support::load::{Acknowledged, Load};
use support::{Cluster, PATIENCE};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const CLIENTS: usize = 6;
const COUNTERS: [&str; 2] = ["hits", "stock"];
const SWING: u64 = 200;

/// An event of a counter: revision, counter, value.
type Seen = (u64, String, i64);

/// The events that the acknowledged adds must have caused: one each, in the order of the revisions.
fn expected(acknowledged: &Acknowledged) -> Vec<Seen> {
    let adds = acknowledged.iter().flat_map(|(name, added)| added.iter().map(move |add| (name, add.reply)));
    let by_revision: BTreeMap<u64, Seen> =
        adds.map(|(name, reply)| (reply.revision, (reply.revision, name.clone(), reply.value))).collect();
    by_revision.into_values().collect()
}

#[track_caller]
fn assert_same(seen: &[Seen], expected: &[Seen], whose: &str) {
    let mismatch = seen.iter().zip(expected).position(|(seen, expected)| seen != expected);
    let at = mismatch.unwrap_or(seen.len().min(expected.len()));
    assert!(
        mismatch.is_none() && seen.len() == expected.len(),
        "{whose} saw {} events, {} were caused; the first difference is at {at}: saw {:?}, caused {:?}",
        seen.len(),
        expected.len(),
        seen.get(at),
        expected.get(at)
    );
}

/// Reads events until the one that `end` names has come.
async fn collect(mut watch: Watch, end: &'static str) -> Vec<Seen> {
    let mut seen = Vec::new();
    loop {
        let event = timeout(PATIENCE, watch.next()).await.expect("an event in time").expect("an event");
        if event.topic == end {
            return seen;
        }
        let value = event.data["value"].as_i64().expect("the value in the event's data");
        seen.push((event.position.revision, event.topic, value));
    }
}

/// Each server is killed in turn, so every watch loses its server at least once; the primary is killed on top.
#[tokio::test]
async fn of_the_client_library() {
    let cluster = Cluster::start(3).await;
    let urls = cluster.urls();
    let watches: Vec<JoinHandle<Vec<Seen>>> = (0..3)
        .map(|first| {
            // Each begins on a server of its own.
            let servers = urls.iter().cycle().skip(first).take(3).cloned();
            let client: Client =
                Client::builder().servers(servers).timeout(PATIENCE).build().expect("a client");
            tokio::spawn(collect(client.watch("counter", &[], Some(Position::after(0))), "end"))
        })
        .collect();
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for name in cluster.names() {
        load.progress(&cluster, SWING).await;
        cluster.kill9(&name);
        load.progress(&cluster, SWING).await;
        cluster.restart(&name).await;
    }
    let primary = cluster.primary().await;
    cluster.kill9(&primary);
    load.progress(&cluster, SWING).await;
    cluster.restart(&primary).await;

    let expected = expected(&load.verify(&cluster).await);
    let client = cluster.client().build().expect("a client");
    client.counter("end").add(1).await.expect("the last event");
    for (number, watch) in watches.into_iter().enumerate() {
        let seen = watch.await.expect("a watch has failed, see above");
        assert_same(&seen, &expected, &format!("watch {number}"));
    }
    cluster.equal_hashes().await;
}

type Events = Pin<Box<dyn Stream<Item = eventsource_stream::Event>>>;

/// A stream of `server`, after the event with this id; it ends when the connection does.
async fn stream(cluster: &Cluster, server: &str, last_event_id: Option<&str>) -> Events {
    let from = if last_event_id.is_none() { "&from=0" } else { "" };
    let url = format!("{}/v1/watch?service=counter{from}", cluster.url(server));
    let response = cluster
        .until(&format!("{server} streams events"), async || cluster.http.stream(&url, last_event_id).await)
        .await;
    Box::pin(
        response
            .bytes_stream()
            .eventsource()
            .take_while(|event| std::future::ready(event.is_ok()))
            .filter_map(|event| std::future::ready(event.ok().filter(|event| !event.id.is_empty()))),
    )
}

fn seen(event: &eventsource_stream::Event) -> Seen {
    let position: Position = event.id.parse().expect("an event's id");
    assert_eq!(position.event, Some(0), "a counter's command has one event: {event:?}");
    let data: serde_json::Value = serde_json::from_str(&event.data).expect("an event's data");
    (position.revision, event.event.clone(), data["value"].as_i64().expect("a value"))
}

/// A client without a memory of its own (it drops nothing that comes twice), which asks each time where the last
/// event was: the servers themselves neither skip nor repeat.
#[tokio::test]
async fn of_a_plain_client() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    let mut all = Vec::new();
    let mut last: Option<String> = None;
    for name in cluster.names() {
        let mut events = stream(&cluster, &name, last.as_deref()).await;
        for _ in 0..SWING {
            let event = timeout(PATIENCE, events.next()).await.expect("an event in time").expect("an event");
            all.push(seen(&event));
            last = Some(event.id);
        }
        cluster.kill9(&name);
        // What was under way still comes, up to where the connection breaks.
        while let Some(event) = timeout(PATIENCE, events.next()).await.expect("the end of the stream") {
            all.push(seen(&event));
            last = Some(event.id);
        }
        cluster.restart(&name).await;
    }
    let expected = expected(&load.verify(&cluster).await);
    let primary = cluster.primary().await;
    let mut events = stream(&cluster, &primary, last.as_deref()).await;
    while all.len() < expected.len() {
        let event = timeout(PATIENCE, events.next()).await.expect("an event in time").expect("an event");
        all.push(seen(&event));
    }
    assert_same(&all, &expected, "the plain client");
    // And no more than that.
    let more = timeout(Duration::from_millis(300), events.next()).await;
    assert!(more.is_err(), "one event too many: {more:?}");
    cluster.equal_hashes().await;
}
