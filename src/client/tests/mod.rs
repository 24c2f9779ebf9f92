//! The client against servers that fail in every way that it claims to survive.

mod groups;
mod sessions;
mod watches;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::stub::{Act, Stub, counter_reply, nobody, problem, usual};
use super::{
    BatchCommand, Client, ClientBuilder, Error, ErrorKind, Position, ReadLevel, SessionMode, WINDOW,
};

/// A client that gives an unanswered attempt up quickly.
fn client(servers: &[String]) -> ClientBuilder {
    Client::builder()
        .servers(servers)
        .timeout(Duration::from_secs(10))
        .attempt_timeout(Duration::from_millis(200))
}

/// What `first` does happens once; after that the stub is as usual.
async fn once_on(path: &'static str, first: impl Fn() -> Act + Send + Sync + 'static) -> Stub {
    let calls = AtomicUsize::new(0);
    Stub::start(move |seen| {
        if seen.path == path && calls.fetch_add(1, Ordering::SeqCst) == 0 { first() } else { usual(seen) }
    })
    .await
}

/// Does the same to every command on a counter.
async fn always(act: impl Fn() -> Act + Send + Sync + 'static) -> Stub {
    Stub::start(move |seen| {
        if seen.method == "POST" && seen.path.starts_with("/v1/counter/") { act() } else { usual(seen) }
    })
    .await
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_elsewhere_with_the_same_sequence() {
    let first = once_on("/v1/counter/add", || Act::Lose).await;
    let second = Stub::start(usual).await;
    let client = client(&[first.url(), second.url()]).build().unwrap();
    let reply = client.counter("hits").add(5).await.unwrap();
    assert_eq!((reply.value, reply.attempts, &reply.server), (5, 2, &second.url()));
    let (lost, answered) = (&first.seen("/counter/add")[0], &second.seen("/counter/add")[0]);
    assert_eq!((lost.session, lost.sequence, lost.acked), (Some(17), Some(1), Some(0)));
    assert_eq!((answered.session, answered.sequence, answered.acked), (Some(17), Some(1), Some(0)));
    assert_eq!(lost.body, json!({"name": "hits", "amount": 5}));
    assert_eq!(lost.body, answered.body);
    // The server that answered is asked first from now on.
    client.counter("hits").add(5).await.unwrap();
    assert_eq!(second.seen("/counter/add")[1].sequence, Some(2));
    assert_eq!(first.seen("/counter/add").len(), 1);
}

#[tokio::test]
async fn any_one_server_may_be_away_from_the_first_call_on() {
    let hanging = Stub::start(|_| Act::Hang).await;
    for away in [nobody().await, hanging.url()] {
        for position in 0..3 {
            let (a, b) = (Stub::start(usual).await, Stub::start(usual).await);
            let mut servers = vec![a.url(), b.url()];
            servers.insert(position, away.clone());
            let client = client(&servers).build().unwrap();
            assert_eq!(client.counter("hits").add(5).await.unwrap().value, 5);
            assert_eq!(client.counter("hits").get(ReadLevel::Linearizable).await.unwrap().value, 5);
            client.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn silence_is_unknown_for_a_command_and_harmless_for_a_query() {
    let server =
        Stub::start(|seen| if seen.path.contains("counter") { Act::Hang } else { usual(seen) }).await;
    let client = client(&[server.url()]).timeout(Duration::from_millis(500)).build().unwrap();
    let error = client.counter("hits").add(5).await.unwrap_err();
    let Error::Unknown(failure) = &error else { panic!("{error:?}") };
    assert_eq!(failure.tried[0].server, server.url());
    assert_eq!(failure.tried[0].cause, "no answer in time");
    assert!(failure.attempts >= 2 && error.to_string().contains("cluster log"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NetworkTimeout);
    let error = client.counter("hits").get(ReadLevel::Linearizable).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)), "{error:?}");
}

#[tokio::test]
async fn what_was_never_sent_was_not_applied() {
    let client = client(&[nobody().await]).timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.counter("hits").add(5).await.unwrap_err();
    let Error::NotApplied(failure) = &error else { panic!("{error:?}") };
    assert!(failure.tried[0].cause.contains("refused"), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// A stranger among the addresses does not end the wait for a server that is away for a moment.
#[tokio::test]
async fn a_server_that_comes_back_is_found_beside_a_stranger() {
    let port = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let page = Stub::start(|_| Act::Reply(404, json!("another program"))).await;
    for servers in [[page.url(), format!("http://{address}")], [format!("http://{address}"), page.url()]] {
        let client = client(&servers).session(SessionMode::Off).build().unwrap();
        let coming = async {
            page.wait_for("/counter/get", 3).await;
            Stub::start_at(address, usual).await
        };
        let counter = client.counter("hits");
        let (reply, _server) = tokio::join!(counter.get(ReadLevel::Linearizable), coming);
        assert_eq!(reply.unwrap().value, 5);
        page.forget();
    }
}

#[tokio::test]
async fn a_server_that_says_not_applied_leaves_nothing_open() {
    let server = always(|| problem(503, "no_primary", "not_applied")).await;
    let client = client(&[server.url()]).timeout(Duration::from_millis(200)).build().unwrap();
    let error = client.counter("hits").add(5).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)) && error.code() == Some("no_primary"), "{error:?}");
    assert!(server.seen("/counter/add").len() > 2, "it was not retried");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_later_refusal_closes_the_question_only_if_it_is_the_remembered_reply() {
    let second = |act: fn() -> Act| async move {
        let calls = AtomicUsize::new(0);
        let server =
            always(move || if calls.fetch_add(1, Ordering::SeqCst) == 0 { Act::Lose } else { act() }).await;
        client(&[server.url()]).build().unwrap().counter("hits").compare_and_set(1, 2).await.unwrap_err()
    };
    let error = second(|| {
        let body = json!({"code": "refused", "detail": "it is 7", "refusal": "compare_failed", "current": 7});
        Act::Reply(409, body)
    })
    .await;
    let refused = error.refused().unwrap();
    assert_eq!((refused.refusal.as_deref(), &refused.current), (Some("compare_failed"), &Some(json!(7))));
    assert_eq!(refused.status, 409);
    // A service's refusal may have any status and code; its own word marks it.
    let error = second(|| {
        let body = json!({"code": "too_large", "detail": "a long text", "refusal": "text_too_long"});
        Act::Reply(413, body)
    })
    .await;
    assert_eq!(error.refused().unwrap().refusal.as_deref(), Some("text_too_long"));
    let error = second(|| problem(413, "too_large", "not_applied")).await;
    assert!(error.is_unknown() && error.code() == Some("too_large"), "{error:?}");
}

#[tokio::test]
async fn a_hint_is_followed_at_once_even_to_a_server_that_was_not_named() {
    let primary = Stub::start(usual).await;
    let url = primary.url();
    let backup = Stub::start(move |seen| {
        if !seen.path.starts_with("/v1/counter") {
            return usual(seen);
        }
        Act::Reply(
            421,
            json!({"code": "not_primary", "detail": "", "outcome": "not_applied", "primary": url}),
        )
    })
    .await;
    let client = client(&[backup.url()]).build().unwrap();
    let started = Instant::now();
    let reply = client.counter("hits").add(5).await.unwrap();
    assert_eq!((reply.attempts, &reply.server), (2, &primary.url()));
    assert!(started.elapsed() < Duration::from_secs(5));
    client.counter("hits").get(ReadLevel::Lease).await.unwrap();
    assert_eq!(backup.seen("/v1/counter").len(), 1, "the primary was forgotten");
}

#[tokio::test]
async fn the_primary_is_found_before_the_first_command() {
    let primary = Stub::start(usual).await;
    let body = json!({"primary": "S2", "servers": [{"name": "S1"}, {"name": "S2", "url": primary.url()}]});
    let backup =
        Stub::start(
            move |seen| {
                if seen.path == "/v1/cluster" { Act::Reply(200, body.clone()) } else { usual(seen) }
            },
        )
        .await;
    let client = client(&[backup.url(), primary.url()]).build().unwrap();
    assert_eq!(client.counter("hits").add(5).await.unwrap().server, primary.url());
}

#[tokio::test]
async fn servers_that_point_at_each_other_are_not_asked_in_a_spin() {
    let server = always(|| {
        let body = json!({"code": "not_primary", "outcome": "not_applied", "primary": "http://127.0.0.1:1"});
        Act::Reply(421, body)
    })
    .await;
    let client = client(&[server.url()]).timeout(Duration::from_millis(400)).build().unwrap();
    let error = client.counter("hits").add(5).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)), "{error:?}");
    let asked = server.seen("/counter/add").len();
    assert!((2..30).contains(&asked), "asked {asked} times");
}

#[tokio::test]
async fn an_error_says_of_what_kind_it_is() {
    let lost = always(|| Act::Lose).await;
    let client_of = |servers: &[String]| client(servers).timeout(Duration::from_millis(300)).build().unwrap();
    let without_session = client(&[lost.url()]).session(SessionMode::Off).build().unwrap();
    let error = without_session.counter("hits").add(5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "there was time left: {error}");
    // One is away, one breaks off: neither alone is what happened.
    let error = client_of(&[nobody().await, lost.url()]).counter("hits").add(5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let refused = always(|| problem(409, "refused", "not_applied")).await;
    let error = client_of(&[refused.url()]).counter("hits").add(5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn overload_is_waited_out() {
    let server = once_on("/v1/counter/add", || {
        Act::Reply(429, json!({"code": "overloaded", "outcome": "not_applied", "retry_after_ms": 200}))
    })
    .await;
    let client = client(&[server.url()]).build().unwrap();
    let started = Instant::now();
    assert_eq!(client.counter("hits").add(5).await.unwrap().attempts, 2);
    assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
}

#[tokio::test]
async fn read_levels_are_passed_on() {
    let server = Stub::start(usual).await;
    let client = client(&[server.url()]).build().unwrap();
    let counter = client.counter("a b&c");
    counter.get(ReadLevel::Linearizable).await.unwrap();
    counter.get(ReadLevel::Lease).await.unwrap();
    counter.get(ReadLevel::Stale { max_age: Some(Duration::from_millis(250)) }).await.unwrap();
    let queries: Vec<_> = server.seen("/counter/get").into_iter().map(|seen| seen.query).collect();
    let name = "name=a+b%26c&read=";
    assert_eq!(
        queries,
        [format!("{name}linearizable"), format!("{name}lease"), format!("{name}stale&max_age_ms=250")]
    );
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_is_not_called_a_failure() {
    let server = always(|| Act::Reply(200, json!({"unexpected": true}))).await;
    let client = client(&[server.url()]).build().unwrap();
    assert!(client.counter("hits").add(5).await.unwrap_err().is_unknown());
}

#[test]
fn addresses_are_checked_before_anything_is_sent() {
    let bad = ["https://127.0.0.1:8001", "http://", "ftp://x", "http://127.0.0.1:99999", "8001"];
    let with_path =
        ["http://127.0.0.1:8001/foo", "127.0.0.1:8001/v1/cluster", "http://h:1?a=b", "http://h:1/#x"];
    for bad in bad.into_iter().chain(with_path) {
        assert!(Client::builder().servers([bad]).build().is_err(), "{bad}");
    }
    assert!(Client::builder().servers(Vec::<String>::new()).build().is_err());
    for good in ["127.0.0.1:8001", "http://127.0.0.1:8001/"] {
        assert!(Client::builder().servers([good]).build().is_ok(), "{good}");
    }
}
