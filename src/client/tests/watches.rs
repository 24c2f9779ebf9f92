//! Watches.

use super::*;

#[tokio::test]
async fn a_watch_goes_on_elsewhere_without_gap_or_double() {
    let first = Stub::start(|seen| match seen.path.as_str() {
        "/v1/watch" => Act::Events(vec![
            ": hello\n\n",
            "id: 41.0\nevent: hits\ndata: {\"value\":1}\n\n",
            "id: 42.0\nevent: hits\nda",
            "ta: {\"value\":2}\n\n",
            "id: 43.0\nevent: hits\ndata: {\"val",
        ]),
        _ => usual(seen),
    })
    .await;
    let second = Stub::start(|seen| match (seen.path.as_str(), seen.last_event_id.as_deref()) {
        ("/v1/watch", Some("42.0")) => Act::Events(vec![
            "id: 42.0\nevent: hits\ndata: {\"value\":2}\n\n",
            "id: 43.0\nevent: hits\ndata: {\"value\":3}\n\nid: 43.1\nevent: hits\ndata: {\"value\":4}\n\n",
        ]),
        ("/v1/watch", _) => Act::Reply(410, json!({"code": "compacted", "detail": "gone", "oldest": "90.2"})),
        _ => usual(seen),
    })
    .await;
    let client = client(&[first.url(), nobody().await, second.url()]).build().unwrap();
    let mut watch = client.watch("counter", &["hits"], Some(Position::after(40)));
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = watch.next().await.unwrap();
        assert_eq!(event.topic, "hits");
        seen.push((event.position.to_string(), event.data["value"].as_i64().unwrap()));
    }
    let expected = [("41.0", 1), ("42.0", 2), ("43.0", 3), ("43.1", 4)];
    assert_eq!(seen, expected.map(|(position, value)| (position.to_owned(), value)));
    assert_eq!(first.seen("/v1/watch")[0].query, "service=counter&topic=hits&from=40");
    assert_eq!(first.seen("/v1/watch")[0].last_event_id, None);

    // Later nobody has the events any more.
    let error = loop {
        match watch.next().await {
            Ok(event) => assert!(event.position > Position { revision: 43, event: Some(1) }, "{event:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.code(), error.refused().unwrap().oldest),
        (Some("compacted"), Some("90.2".parse().unwrap()))
    );
}

#[tokio::test]
async fn a_watch_from_now_fixes_now_before_it_connects() {
    let server = Stub::start(|seen| match seen.path.as_str() {
        "/v1/watch" => Act::Events(vec!["id: 41.0\nevent: a\ndata: 1\n\n"]),
        _ => usual(seen),
    })
    .await;
    let client = client(&[server.url()]).build().unwrap();
    let mut watch = client.watch("counter", &[], None);
    assert_eq!(watch.next().await.unwrap().position.to_string(), "41.0");
    assert_eq!(server.seen("/v1/watch")[0].query, "service=counter&from=40");
}
