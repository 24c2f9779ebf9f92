//! What is no HTTP, too large, too slow, or too much.

use std::time::{Duration, Instant};

use quorate_cluster::message::Request;
use quorate_cluster::transport::frame::{Kind, Route};
use quorate_storage::codec;
use serde_json::json;
use tokio::task::JoinSet;

use super::support::Cluster;
use super::support::wire::{self, Connection};
use super::{add, check_problem, check_serves, frame};

#[tokio::test]
async fn what_is_not_http_is_turned_away() {
    let cluster = Cluster::start(1).await;
    let address = cluster.server("S1").listen.address();
    let peer = Route { cluster: [7; 16], from: 1, to: 1 };
    let header = |name: &str, bytes: usize| {
        let value = "v".repeat(bytes);
        format!("GET /healthz HTTP/1.1\r\nhost: q\r\n{name}: {value}\r\n\r\n").into_bytes()
    };
    let headers: String = (0..2_000).map(|n| format!("h{n}: v\r\n")).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", (0..=255).cycle().take(10_000).collect()),
        ("zeros", vec![0; 10_000]),
        ("a TLS hello", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[9; 500]].concat()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a peer's frame", frame(peer, Kind::Request, codec::encode(&Request::Status)).to_vec()),
        ("a header without an end", header("long", 2 << 20)),
        ("too many headers", format!("GET /healthz HTTP/1.1\r\n{headers}\r\n").into_bytes()),
        ("a header of control characters", b"GET /healthz HTTP/1.1\r\nh: \x01\x02\r\n\r\n".to_vec()),
        ("a version unheard of", b"GET /healthz HTTP/9.9\r\nhost: q\r\n\r\n".to_vec()),
        ("no version", b"GET /healthz\r\n\r\n".to_vec()),
        ("a length that is none", b"POST /v1/counter/add HTTP/1.1\r\ncontent-length: x\r\n\r\n{}".to_vec()),
        ("a negative length", b"POST /v1/counter/add HTTP/1.1\r\ncontent-length: -5\r\n\r\n{}".to_vec()),
        ("two lengths", b"POST /v1/counter/add HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}".to_vec()),
        ("a chunk of no length", b"POST /v1/counter/add HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n".to_vec()),
        ("a chunk of 2^64", b"POST /v1/counter/add HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n".to_vec()),
    ];
    for (what, bytes) in cases {
        match wire::exchange(&address, &bytes).await {
            Ok(answer) => assert!((400..600).contains(&answer.status), "{what}: {answer:?}"),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{what}: {e}"),
        }
    }
    check_serves(&cluster).await;
}

#[tokio::test]
async fn what_is_too_large_is_told_so() {
    let cluster = Cluster::start(1).await;
    let address = cluster.server("S1").listen.address();
    let large = vec![b' '; (8 << 20) + 1];
    let answer =
        wire::exchange(&address, &add(&large)).await.expect("an answer to a body that says its length");
    check_problem("a length over 8 MiB", &answer, 413, "too_large");
    // Only claimed: the answer does not wait for it.
    let claim = b"POST /v1/counter/add HTTP/1.1\r\nhost: q\r\ncontent-length: 99999999999999\r\n\r\n";
    let answer = wire::exchange(&address, claim).await.expect("an answer to a claim");
    check_problem("a claim of 100 TB", &answer, 413, "too_large");
    // In chunks, of which nobody says when they end.
    let head = b"POST /v1/counter/add HTTP/1.1\r\nhost: q\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [b"10000\r\n", vec![b' '; 1 << 16].as_slice(), b"\r\n"].concat();
    let request = [head.to_vec(), chunk.repeat(160), b"0\r\n\r\n".to_vec()].concat();
    let answer = wire::exchange(&address, &request).await.expect("an answer to chunks");
    check_problem("10 MiB in chunks", &answer, 413, "too_large");
    check_serves(&cluster).await;
}

/// Many large bodies of which each lacks its last byte: they wait for their time limit, and not in memory.
#[tokio::test]
async fn bodies_that_never_end_do_not_fill_the_memory() {
    let cluster = Cluster::start(1).await;
    check_serves(&cluster).await;
    let address = cluster.server("S1").listen.address();
    let before = wire::memory(cluster.server("S1").pid());
    let length = 6 << 20;
    let head = format!(
        "POST /v1/counter/add HTTP/1.1\r\nhost: q\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let (address, head) = (address.clone(), head.clone());
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            connection.send(head.as_bytes()).await?;
            let _ = connection.send(&vec![b' '; length - 1]).await;
            connection.answer().await
        });
    }
    // Others are served meanwhile.
    check_serves(&cluster).await;
    let (mut late, mut busy) = (0, 0);
    while let Some(answer) = clients.join_next().await {
        match answer.expect("a client") {
            Ok(answer) if answer.status == 408 => {
                check_problem("half a body", &answer, 408, "bad_request");
                late += 1;
            }
            Ok(answer) => {
                check_problem("more bodies than the server takes", &answer, 429, "overloaded");
                busy += 1;
            }
            // What was sent after the answer may break the connection under it.
            Err(_) => busy += 1,
        }
    }
    assert!(late > 0 && busy > 0, "{late} waited for, {busy} turned away");
    let peak = wire::memory(cluster.server("S1").pid()).peak - before.now;
    assert!(peak < 500 << 20, "the server grew by {} MiB", peak >> 20);
    check_serves(&cluster).await;
}

/// Connections that say nothing, or half of something: they hold up neither other clients nor the server's end.
#[tokio::test]
async fn half_open_connections_hold_up_nobody() {
    let cluster = Cluster::start(1).await;
    check_serves(&cluster).await;
    let server = cluster.server("S1");
    let before = wire::memory(server.pid());
    let parts: [&[u8]; 4] =
        [b"", b"GET /healthz HT", b"POST /v1/counter/add HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nhost:"];
    let mut open = Vec::new();
    // More than the server takes, if the system allows it to this process and to the server.
    for n in 0..wire::file_limit().saturating_sub(300).min(6_000) {
        let mut connection = Connection::open(&server.listen.address()).await.expect("the kernel takes it");
        connection.send(parts[n % parts.len()]).await.expect("sent");
        open.push(connection);
    }
    let asked = Instant::now();
    check_serves(&cluster).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "others waited for {:?}", asked.elapsed());
    let grown = wire::memory(server.pid()).now.saturating_sub(before.now);
    assert!(grown < 200 << 20, "{} connections took {} MiB", open.len(), grown >> 20);
    let stopping = Instant::now();
    assert_eq!(cluster.terminate("S1").await.code(), Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(8), "it took {:?} to stop", stopping.elapsed());
}

/// A client that asks and takes no answer keeps its place, and the memory of its answers, for a while only.
#[tokio::test]
async fn who_takes_no_answer_is_hung_up_on() {
    let cluster = Cluster::start(1).await;
    let url = format!("{}/v1/register/set", cluster.url("S1"));
    for name in 0..8 {
        let text = json!({"name": format!("r{name}"), "text": "x".repeat(250_000)});
        cluster.http.post(&url, &text).await.expect("a reply");
    }
    let mut deaf =
        Connection::open(&cluster.server("S1").listen.address()).await.expect("the kernel takes it");
    for _ in 0..64 {
        deaf.send(b"GET /v1/register/list HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    }
    // Its end shows in that nothing can be sent any more: what there is to read is not read.
    cluster
        .until("the connection is ended", async || match deaf.send(b"\r\n").await {
            Ok(()) => Err("it is open".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    check_serves(&cluster).await;
}

/// A server that may open few files takes fewer connections, and can still open the files that it needs.
#[tokio::test]
async fn few_files_are_no_reason_to_stop() {
    let mut cluster = Cluster::start(1).await;
    assert_eq!(cluster.terminate("S1").await.code(), Some(0));
    cluster.server_mut("S1").file_limit = Some(400);
    cluster.restart("S1").await;
    let server = cluster.server("S1");
    let mut open = Vec::new();
    for n in 0..wire::file_limit().saturating_sub(100).min(800) {
        let address = if n % 2 == 0 { server.listen.address() } else { server.peer.address() };
        open.push(Connection::open(&address).await.expect("the kernel takes it"));
    }
    check_serves(&cluster).await;
    // A snapshot opens files.
    let snapshot = cluster.http.post(&format!("{}/v1/cluster/snapshot", cluster.url("S1")), &json!({})).await;
    assert_eq!(snapshot.expect("an answer").status, 200);
    drop(open);
    check_serves(&cluster).await;
}
