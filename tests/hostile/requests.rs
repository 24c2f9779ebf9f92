//! Requests that are HTTP and make no sense.

use serde_json::json;

use super::support::Cluster;
use super::support::wire::{self, Connection};
use super::{add, bad, check_all, check_problem, check_serves, counter, get, post, session};

const LAST_SEQUENCE: u64 = (1 << 53) - 1;

#[tokio::test]
async fn bad_commands_are_told_what_is_wrong() {
    let cluster = Cluster::start(1).await;
    let deep = format!("{{\"amount\":{}", "[".repeat(100_000));
    let long = format!(r#"{{"name":"{}","amount":1}}"#, "n".repeat(257));
    let text = format!(r#"{{"text":"{}"}}"#, "t".repeat((256 << 10) + 1));
    check_all(
        &cluster,
        vec![
            bad("no body", add(""), 400, "bad_request"),
            bad("truncated JSON", add(r#"{"amount":"#), 400, "bad_request"),
            bad("no JSON", add("amount=5"), 400, "bad_request"),
            bad("two values", add(r#"{"amount":1}{"amount":1}"#), 400, "bad_request"),
            bad("a second command smuggled in", add(r#"{"amount":1},"set":{"value":9}"#), 400, "bad_request"),
            bad("our own braces closed", add(r#"{"amount":1}}"#), 400, "bad_request"),
            bad("a list", add(r#"["hits",1]"#), 400, "bad_request"),
            bad("null", add("null"), 400, "bad_request"),
            bad("a field missing", add(r#"{"name":"hits"}"#), 400, "bad_request"),
            bad("an unknown field", add(r#"{"amount":1,"colour":"red"}"#), 400, "bad_request"),
            bad("a field twice", add(r#"{"amount":1,"amount":2}"#), 400, "bad_request"),
            bad("a text for a number", add(r#"{"amount":"1"}"#), 400, "bad_request"),
            bad("a fraction", add(r#"{"amount":1.5}"#), 400, "bad_request"),
            bad("more than an i64", add(r#"{"amount":9223372036854775808}"#), 400, "bad_request"),
            bad("no finite number", add(r#"{"amount":1e999}"#), 400, "bad_request"),
            bad("deep nesting", add(deep), 400, "bad_request"),
            bad("invalid UTF-8", add(b"{\"name\":\"\xff\xfe\",\"amount\":1}"), 400, "bad_request"),
            bad("half a surrogate", add(r#"{"name":"\ud800","amount":1}"#), 400, "bad_request"),
            bad("a raw NUL", add(b"{\"name\":\"a\0b\",\"amount\":1}"), 400, "bad_request"),
            bad("an escaped NUL", add(r#"{"name":"a\u0000b","amount":1}"#), 400, "bad_request"),
            bad("an empty name", add(r#"{"name":"","amount":1}"#), 400, "bad_request"),
            bad("a name of 257 bytes", add(long), 400, "bad_request"),
            bad(
                "fields in the URL",
                post("/v1/counter/add?name=lost", "", r#"{"amount":1}"#),
                400,
                "bad_request",
            ),
            bad("a text over 256 KiB", post("/v1/register/set", "", text), 413, "too_large"),
            bad("an unknown service", post("/v1/oracle/ask", "", "{}"), 404, "unknown_service"),
            bad("a built-in service", post("/v1/system/tick", "", "{}"), 404, "unknown_service"),
            bad("a query as a command", post("/v1/counter/get", "", "{}"), 404, "not_found"),
            bad("a query as a command, asked", post("/v1/counter/get?name=a", "", "{}"), 404, "not_found"),
            bad("an unknown command", post("/v1/counter/explode", "", "{}"), 404, "not_found"),
            bad("a command with a quote", post("/v1/counter/add%22", "", "{}"), 404, "not_found"),
            bad("a command in capitals", post("/v1/counter/ADD", "", "{}"), 404, "not_found"),
            bad("a service of NULs", post("/v1/%00%00/add", "", "{}"), 404, "unknown_service"),
            bad("a path of invalid UTF-8", post("/v1/counter/%ff%fe", "", "{}"), 400, "bad_request"),
            bad("nothing there", get("/v2/everything"), 404, "not_found"),
            bad("a longer path", post("/v1/counter/add/more", "", "{}"), 404, "not_found"),
            bad(
                "DELETE of a command",
                [b"DELETE", &get("/v1/counter/add")[3..]].concat(),
                405,
                "bad_request",
            ),
            bad("a method unheard of", [b"BREW", &get("/v1/counter/add")[3..]].concat(), 405, "bad_request"),
            bad("POST to a page", post("/v1/status", "", "{}"), 405, "bad_request"),
        ],
    )
    .await;
    assert_eq!(counter(&cluster).await, 0, "one of them was carried out");
    check_serves(&cluster).await;
}

#[tokio::test]
async fn bad_queries_sessions_and_watches_are_told_what_is_wrong() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let long = format!("/v1/counter/get?name={}", "n".repeat(40_000));
    let many = format!("/v1/counter/get?{}", "a=b&".repeat(10_000));
    let named = format!(r#"{{"name":"{}"}}"#, "n".repeat(257));
    let last_event = |id: &[u8]| {
        [b"GET /v1/watch HTTP/1.1\r\nhost: q\r\nconnection: close\r\nlast-event-id: ", id, b"\r\n\r\n"]
            .concat()
    };
    check_all(
        &cluster,
        vec![
            bad("an unknown query", get("/v1/counter/explain"), 404, "not_found"),
            bad("an unknown service", get("/v1/oracle/get"), 404, "unknown_service"),
            bad("a huge query string", get(&long), 400, "bad_request"),
            bad("thousands of parameters", get(&many), 400, "bad_request"),
            bad("an unknown parameter", get("/v1/counter/get?colour=red"), 400, "bad_request"),
            bad("a parameter twice", get("/v1/counter/get?name=a&name=b"), 400, "bad_request"),
            bad("an escaped NUL", get("/v1/counter/get?name=a%00b"), 400, "bad_request"),
            bad("invalid UTF-8", get("/v1/counter/get?name=a%ffb"), 400, "bad_request"),
            bad("a limit in words", get("/v1/counter/list?limit=many"), 400, "bad_request"),
            bad("a limit of 0", get("/v1/counter/list?limit=0"), 400, "bad_request"),
            bad("a limit of 1001", get("/v1/counter/list?limit=1001"), 400, "bad_request"),
            bad("a limit of -1", get("/v1/counter/list?limit=-1"), 400, "bad_request"),
            bad("an unknown level", get("/v1/counter/get?read=soon"), 400, "bad_request"),
            bad("an age without stale", get("/v1/counter/get?max_age_ms=5"), 400, "bad_request"),
            bad(
                "an age too large",
                get("/v1/counter/get?read=stale&max_age_ms=99999999999999999999"),
                400,
                "bad_request",
            ),
            bad("half a session", session("quorate-session: 1\r\n"), 400, "bad_request"),
            bad("no number", session("quorate-session: one\r\nquorate-sequence: 1\r\n"), 400, "bad_request"),
            bad("session 0", session("quorate-session: 0\r\nquorate-sequence: 1\r\n"), 400, "bad_request"),
            bad("sequence -1", session("quorate-session: 1\r\nquorate-sequence: -1\r\n"), 400, "bad_request"),
            bad(
                "over a u64",
                session("quorate-session: 18446744073709551616\r\nquorate-sequence: 1\r\n"),
                400,
                "bad_request",
            ),
            bad(
                "bytes in a header",
                session("quorate-session: \u{ff}\r\nquorate-sequence: 1\r\n"),
                400,
                "bad_request",
            ),
            bad(
                "acked too far",
                session("quorate-session: 1\r\nquorate-sequence: 1\r\nquorate-acked: 1\r\n"),
                400,
                "bad_request",
            ),
            bad(
                "no such session",
                session("quorate-session: 99\r\nquorate-sequence: 1\r\n"),
                410,
                "session_expired",
            ),
            bad("a session named nothing", post("/v1/sessions", "", r#"{"name":""}"#), 400, "bad_request"),
            bad("a session's long name", post("/v1/sessions", "", named), 400, "bad_request"),
            bad("a negative time to live", post("/v1/sessions", "", r#"{"ttl_ms":-1}"#), 400, "bad_request"),
            bad("an unknown field", post("/v1/sessions", "", r#"{"colour":1}"#), 400, "bad_request"),
            bad("keeping nothing alive", post("/v1/sessions/7/keepalive", "", ""), 410, "session_expired"),
            bad("keeping x alive", post("/v1/sessions/x/keepalive", "", ""), 400, "bad_request"),
            bad("no position", get("/v1/watch?from=x"), 400, "bad_request"),
            bad("half a position", get("/v1/watch?from=1."), 400, "bad_request"),
            bad("a watch's unknown parameter", get("/v1/watch?colour=red"), 400, "bad_request"),
            bad("a Last-Event-ID of bytes", last_event(b"\xff\xfe"), 400, "bad_request"),
            bad("a log from x", get("/v1/log?from=x"), 400, "bad_request"),
            bad("a log's unknown parameter", get("/v1/log?colour=red"), 400, "bad_request"),
        ],
    )
    .await;
    // Numbers at the end of their range are no reason to stop either.
    let address = cluster.server("S1").listen.address();
    for path in ["/v1/log?from=18446744073709551615&limit=18446744073709551615", "/v1/log?from=0&limit=0"] {
        assert_eq!(wire::exchange(&address, &get(path)).await.expect(path).status, 200, "{path}");
    }
    let id = cluster.http.session(&url, u64::MAX).await;
    let last =
        format!("quorate-session: {id}\r\nquorate-sequence: {0}\r\nquorate-acked: 1\r\n", LAST_SEQUENCE);
    assert_eq!(wire::exchange(&address, &session(&last)).await.expect("an answer").status, 200);
    let kept = wire::exchange(&address, &post(&format!("/v1/sessions/{id}/keepalive"), "", "")).await;
    assert_eq!(kept.expect("an answer").json()["next_sequence"], LAST_SEQUENCE + 1);
    let two =
        post("/v1/batch", &last, r#"[{"counter":{"add":{"amount":1}}},{"counter":{"add":{"amount":1}}}]"#);
    check_problem(
        "a batch past the last sequence",
        &wire::exchange(&address, &two).await.unwrap(),
        400,
        "bad_request",
    );
    let watch = get("/v1/watch?from=18446744073709551615.4294967295");
    let mut open = Connection::open(&address).await.expect("a connection");
    open.send(&watch).await.expect("sent");
    let head = open.head().await.expect("a watch from the future begins, and waits");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    check_serves(&cluster).await;
}

#[tokio::test]
async fn bad_batches_and_changes_are_told_what_is_wrong() {
    let cluster = Cluster::start(1).await;
    let batch = |body: &str| post("/v1/batch", "", body);
    let change = |body: &str| post("/v1/cluster/members", "", body);
    let item = r#"{"counter":{"add":{"amount":1}}}"#;
    let too_many = format!("[{}]", vec![item; 4097].join(","));
    // A million items, of which each takes more memory than it has bytes.
    let million = format!("[{}]", vec![r#"{"a":1}"#; (1 << 20) - 1].join(","));
    let keys: Vec<String> = (0..500_000).map(|n| format!("\"{n:07}\":1")).collect();
    let wide = format!("[{{{}}}]", keys.join(","));
    check_all(
        &cluster,
        vec![
            bad("no list", batch("{}"), 400, "bad_request"),
            bad("a list of numbers", batch("[1,2]"), 400, "bad_request"),
            bad("an item without a service", batch("[{}]"), 400, "bad_request"),
            bad("an item with two services", batch(r#"[{"counter":{},"register":{}}]"#), 400, "bad_request"),
            bad(
                "one bad item among good ones",
                batch(&format!("[{item},{{\"counter\":{{\"add\":{{}}}}}}]")),
                400,
                "bad_request",
            ),
            bad("an unknown service", batch(r#"[{"oracle":{"ask":{}}}]"#), 404, "unknown_service"),
            bad(
                "another one's unknown service",
                batch(&format!(r#"[{item},{{"oracle":{{}}}}]"#)),
                404,
                "unknown_service",
            ),
            bad("an unknown command", batch(r#"[{"counter":{"explode":{}}}]"#), 404, "not_found"),
            bad("too many items", batch(&too_many), 413, "too_large"),
            bad("far too many items", batch(&million), 413, "too_large"),
            bad("an item of many services", batch(&wide), 400, "bad_request"),
            bad("truncated", batch(&format!("[{item},")), 400, "bad_request"),
            bad("a change of nothing", change("{}"), 400, "bad_request"),
            bad("an unknown change", change(r#"{"op":"explode","name":"S1"}"#), 400, "bad_request"),
            bad("an unknown server", change(r#"{"op":"promote","name":"nobody"}"#), 404, "not_found"),
            bad(
                "no log id",
                change(r#"{"op":"promote","name":"S1","if_membership":"x"}"#),
                400,
                "bad_request",
            ),
            bad("the only voter", change(r#"{"op":"remove","name":"S1"}"#), 409, "refused"),
            bad(
                "a transfer to nobody",
                post("/v1/cluster/transfer", "", r#"{"to":"nobody"}"#),
                404,
                "not_found",
            ),
            bad("settings as a list", post("/v1/cluster/settings", "", "[]"), 400, "bad_request"),
            bad(
                "an unknown setting",
                post("/v1/cluster/settings", "", r#"{"colour":"red"}"#),
                400,
                "bad_request",
            ),
        ],
    )
    .await;
    assert_eq!(counter(&cluster).await, 0, "one of them was carried out");
    check_serves(&cluster).await;
}

#[tokio::test]
async fn names_of_all_kinds_come_back_as_they_were() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let longest = "n".repeat(256);
    let names = [
        "ü/☃",
        " ",
        "a b",
        "%00",
        "a&b=c?d#e",
        "\"'\\",
        "..",
        "../../etc/passwd",
        "\u{10ffff}",
        "日本",
        &longest,
    ];
    for name in names {
        let body = json!({"name": name, "amount": 7});
        let added = cluster.http.post(&format!("{url}/v1/counter/add"), &body).await.expect("an answer");
        assert_eq!(added.status, 200, "{name:?}: {added:?}");
        let query: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let got = cluster.http.json(&format!("{url}/v1/counter/get?name={query}")).await;
        assert_eq!(got.expect("the counter")["value"], 7, "{name:?}");
    }
    let list = cluster.http.json(&format!("{url}/v1/counter/list")).await.expect("a list");
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let listed: Vec<&str> =
        list["counters"].as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(listed, sorted);
}
