//! Sessions and their numbers.

use super::*;

#[tokio::test]
async fn a_lost_session_is_unknown_once_and_replaced() {
    for code in ["session_expired", "sequence_acked", "sequence_reused"] {
        let status = if code == "session_expired" { 410 } else { 409 };
        let server = once_on("/v1/counter/add", move || problem(status, code, "unknown")).await;
        let client = client(&[server.url()]).build().unwrap();
        let error = client.counter("hits").add(5).await.unwrap_err();
        assert!(error.is_unknown() && error.code() == Some(code), "{error:?}");
        assert_eq!(server.seen("/counter/add").len(), 1, "it was sent again");
        client.counter("hits").add(5).await.unwrap();
        assert_eq!(server.seen("/v1/sessions").iter().filter(|seen| seen.path == "/v1/sessions").count(), 2);
    }
}

#[tokio::test]
async fn acked_is_the_largest_number_with_every_reply_before_it() {
    let (release, released) = oneshot::channel();
    let held = Mutex::new(Some(released));
    let server = Stub::start(move |seen| match seen.sequence {
        Some(2) => Act::Later(held.lock().unwrap().take().unwrap(), counter_reply(2)),
        _ => usual(seen),
    })
    .await;
    let client = client(&[server.url()]).attempt_timeout(Duration::from_secs(5)).build().unwrap();
    let counter = client.counter("hits");
    counter.add(1).await.unwrap();
    let slow = tokio::spawn({
        let counter = counter.clone();
        async move { counter.add(2).await }
    });
    server.wait_for("/counter/add", 2).await;
    counter.add(3).await.unwrap();
    counter.add(4).await.unwrap();
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
    counter.add(5).await.unwrap();
    let numbers: Vec<_> = server
        .seen("/counter/add")
        .iter()
        .map(|seen| (seen.sequence.unwrap(), seen.acked.unwrap()))
        .collect();
    assert_eq!(numbers, [(1, 0), (2, 1), (3, 1), (4, 1), (5, 4)]);
}

#[tokio::test]
async fn a_number_that_was_given_up_does_not_hold_the_others() {
    let server = once_on("/v1/counter/add", || Act::Hang).await;
    let client = client(&[server.url()]).timeout(Duration::from_millis(100)).build().unwrap();
    assert!(client.counter("hits").add(1).await.unwrap_err().is_unknown());
    client.with_timeout(Duration::from_secs(5)).counter("hits").add(2).await.unwrap();
    let seen = server.seen("/counter/add");
    let last = seen.last().unwrap();
    assert_eq!((last.sequence, last.acked), (Some(2), Some(1)));
}

#[tokio::test]
async fn at_most_a_window_of_numbers_is_above_acked() {
    let (release, released) = oneshot::channel();
    let held = Mutex::new(Some(released));
    let server = Stub::start(move |seen| match seen.sequence {
        Some(1) => Act::Later(held.lock().unwrap().take().unwrap(), counter_reply(1)),
        _ => usual(seen),
    })
    .await;
    let client = client(&[server.url()])
        .timeout(Duration::from_secs(60))
        .attempt_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let all: Vec<_> = (0..WINDOW + 50)
        .map(|_| {
            let counter = client.counter("hits");
            tokio::spawn(async move { counter.add(1).await })
        })
        .collect();
    let seen = server.wait_for("/counter/add", WINDOW).await;
    assert_eq!(seen.iter().filter_map(|seen| seen.sequence).max(), Some(WINDOW as u64));
    assert_eq!(seen.len(), WINDOW);
    release.send(()).unwrap();
    for one in all {
        one.await.unwrap().unwrap();
    }
    assert_eq!(server.seen("/counter/add").len(), WINDOW + 50);
}

#[tokio::test]
async fn without_a_session_a_lost_reply_is_not_retried() {
    let server = once_on("/v1/counter/add", || Act::Lose).await;
    let client = client(&[nobody().await, server.url()]).session(SessionMode::Off).build().unwrap();
    let error = client.counter("hits").add(5).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let seen = server.seen("/counter/add");
    assert_eq!((seen.len(), seen[0].session, seen[0].sequence), (1, None, None));
    assert!(server.seen("/v1/sessions").is_empty());
}

#[tokio::test]
async fn a_session_is_kept_alive_while_its_client_lives_and_closed_with_it() {
    let server = Stub::start(usual).await;
    let ttl = Duration::from_millis(60);
    let client = client(&[server.url()])
        .session(SessionMode::Named("ada".to_owned()))
        .session_ttl(ttl)
        .build()
        .unwrap();
    assert!(server.seen("").is_empty(), "a session is opened by the first command");
    client.counter("hits").add(5).await.unwrap();
    assert_eq!(server.seen("/v1/sessions")[0].body, json!({"name": "ada", "ttl_ms": 60}));
    server.wait_for("/v1/sessions/17/keepalive", 3).await;
    client.close().await.unwrap();
    let closing = server.seen("/v1/sessions/17").into_iter().find(|seen| seen.method == "DELETE");
    assert!(closing.is_some());
    // After the close nothing keeps the session alive: three intervals bring at most the one that was under way.
    let before = server.seen("keepalive").len();
    let end = Instant::now() + ttl;
    while Instant::now() < end {
        assert!(server.seen("keepalive").len() <= before + 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_expiry_that_the_keep_alive_notices_costs_no_command() {
    let server = once_on("/v1/sessions/17/keepalive", || problem(410, "session_expired", "unknown")).await;
    let client = client(&[server.url()]).session_ttl(Duration::from_millis(60)).build().unwrap();
    client.counter("hits").add(5).await.unwrap();
    server.wait_for("keepalive", 1).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.seen("/v1/sessions").iter().filter(|seen| seen.path == "/v1/sessions").count() < 2 {
        client.counter("hits").add(5).await.unwrap();
        assert!(Instant::now() < deadline, "no second session was opened");
    }
}

#[tokio::test]
async fn a_batch_takes_a_number_for_each_command() {
    let server = Stub::start(|seen| match seen.path.as_str() {
        "/v1/batch" => {
            Act::Reply(200, json!([{"value": 1}, {"refused": {"code": "overflow", "detail": "too much"}}]))
        }
        _ => usual(seen),
    })
    .await;
    let client = client(&[server.url()]).build().unwrap();
    let add = |amount| BatchCommand::new("counter", "add", json!({"amount": amount}));
    let reply = client.batch(&[add(1), add(i64::MAX)]).await.unwrap();
    assert_eq!(reply[0].as_ref().unwrap()["value"], 1);
    assert_eq!(reply[1].as_ref().unwrap_err().detail, "too much");
    client.counter("hits").add(5).await.unwrap();
    let batch = &server.seen("/v1/batch")[0];
    assert_eq!((batch.sequence, batch.body[0]["counter"]["add"]["amount"].as_i64()), (Some(1), Some(1)));
    let next = &server.seen("/counter/add")[0];
    assert_eq!((next.sequence, next.acked), (Some(3), Some(2)));
    for size in [0, WINDOW + 1] {
        let error = client.batch(&vec![add(1); size]).await.unwrap_err();
        assert_eq!(error.code(), Some("bad_request"));
    }
}

#[tokio::test]
async fn a_batch_of_a_lost_session_is_unknown_as_a_whole() {
    let server = Stub::start(|seen| match seen.path.as_str() {
        "/v1/batch" => {
            let problem = json!({"code": "session_expired", "detail": "gone", "outcome": "unknown"});
            Act::Reply(200, json!([{"refused": problem}, {"refused": problem}]))
        }
        _ => usual(seen),
    })
    .await;
    let client = client(&[server.url()]).build().unwrap();
    let add = BatchCommand::new("counter", "add", json!({"amount": 1}));
    let error = client.batch(&[add.clone(), add]).await.unwrap_err();
    assert!(error.is_unknown() && error.code() == Some("session_expired"), "{error:?}");
    client.counter("hits").add(5).await.unwrap();
    assert_eq!(server.seen("/v1/sessions").iter().filter(|seen| seen.path == "/v1/sessions").count(), 2);
}
