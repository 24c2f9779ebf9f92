//! Requests to a group: one reply, most, or all of them; and when too few come.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::client;
use crate::client::stub::{Act, Stub, nobody, usual};
use crate::client::{Call, Error, Group, Hooks};

#[tokio::test]
async fn a_group_is_content_with_as_many_replies_as_it_wants() {
    let stubs = [Stub::start(usual).await, Stub::start(usual).await];
    let servers = [stubs[0].url(), nobody().await, stubs[1].url()];
    let client = client(&servers).timeout(Duration::from_secs(1)).build().unwrap();
    for group in [Group::First, Group::Majority] {
        let reply = client.group(group).counter("hits").add(5).await.unwrap();
        assert_eq!(reply.value, 5, "{group:?}");
    }
}

/// It was carried out: that is never called "not applied", however many are silent or say something else.
#[tokio::test]
async fn what_one_server_has_carried_out_is_not_said_to_be_undone() {
    let stranger = Stub::start(|seen| match seen.path.as_str() {
        "/v1/counter/add" => Act::Reply(404, json!({"message": "no such page"})),
        _ => usual(seen),
    })
    .await;
    let backup = Stub::start(|seen| match seen.path.as_str() {
        "/v1/counter/add" => {
            let detail = "only the primary serves";
            Act::Reply(421, json!({"code": "not_primary", "detail": detail, "outcome": "not_applied"}))
        }
        _ => usual(seen),
    })
    .await;
    for other in [nobody().await, stranger.url(), backup.url()] {
        let primary = Stub::start(usual).await;
        let client = client(&[primary.url(), other]).timeout(Duration::from_millis(500)).build().unwrap();
        for group in [Group::Majority, Group::All] {
            let error = client.group(group).counter("hits").add(5).await.unwrap_err();
            assert!(matches!(error, Error::Unknown(_)), "{error:?}");
            assert!(error.to_string().contains("it was carried out, but only 1 of 2 servers"), "{error}");
        }
    }
}

fn refuse() -> Act {
    let body =
        json!({"code": "refused", "refusal": "overflow", "detail": "too much", "outcome": "not_applied"});
    Act::Reply(409, body)
}

/// What a service has refused is refused, also if nobody else says so.
#[tokio::test]
async fn a_refusal_is_a_reply() {
    let refusing =
        Stub::start(|seen| if seen.path == "/v1/counter/add" { refuse() } else { usual(seen) }).await;
    let servers = [refusing.url(), nobody().await];
    let client = client(&servers).timeout(Duration::from_millis(500)).build().unwrap();
    let error = client.group(Group::All).counter("hits").add(5).await.unwrap_err();
    assert!(error.refused().is_some_and(|refused| refused.is_by_service()), "{error:?}");
}

#[derive(Debug, Default, Clone)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Hooks for Told {
    fn before_call(&self, call: &Call) {
        self.0.lock().unwrap().push(format!("before {} {}", call.sequence, call.server));
    }

    fn after_reply(&self, call: &Call) {
        self.0.lock().unwrap().push(format!("after {} {}", call.sequence, call.server));
    }
}

#[tokio::test]
async fn hooks_are_told_of_replies_and_refusals() {
    let stub = Stub::start(|seen| match seen.path.as_str() {
        "/v1/counter/minus" => refuse(),
        _ => usual(seen),
    })
    .await;
    let told = Told::default();
    let client = client(&[stub.url()]).hooks(told.clone()).build().unwrap();
    client.counter("hits").add(5).await.unwrap();
    client.counter("hits").minus(5).await.unwrap_err();
    client.group(Group::All).counter("hits").minus(5).await.unwrap_err();
    let url = stub.url();
    let expected: Vec<String> =
        (1..=3).flat_map(|n| [format!("before {n} {url}"), format!("after {n} {url}")]).collect();
    assert_eq!(*told.0.lock().unwrap(), expected);
}
