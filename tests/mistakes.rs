//! What the command line tells a person who asks in vain, or the wrong one.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::Cluster;
use support::cli::{Run, quorate};

const FAILED: i32 = 1;

fn says(run: &Run, texts: &[&str]) {
    assert_eq!(run.stdout, "");
    for text in texts {
        assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
    }
}

#[tokio::test]
async fn a_peer_port_is_taken_for_one() {
    let cluster = Cluster::start(1).await;
    let peer = cluster.server("S1").peer.address();
    let common = ["--servers", &peer, "--timeout", "300ms"];
    let run = quorate([&["client", "get"], &common[..]].concat()).await.expect(FAILED);
    says(&run, &["not answered", &peer, "is this a peer port?", "--listen"]);
    let run = quorate([&["client", "add", "1"], &common[..]].concat()).await.expect(FAILED);
    says(&run, &["not applied", &peer, "is this a peer port?", "--listen"]);
}

/// A web server of something else, at the address that was given.
fn stranger(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            // One read has all of a small request; what the client thinks of the answer is its affair.
            let _ = connection.read(&mut [0; 4096]);
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    address
}

#[tokio::test]
async fn a_strange_web_server_is_taken_for_one() {
    let page =
        stranger("HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<!DOCTYPE html>");
    for words in [&["client", "get"][..], &["client", "watch"], &["cluster", "status"]] {
        let run = quorate([words, &["--servers", &page]].concat()).await.expect(FAILED);
        says(&run, &[&page, "not from a Quorate server"]);
        assert!(!run.stderr.contains("DOCTYPE"), "{run:?}");
    }
    let json = stranger("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
    for words in [
        &["client", "get"][..],
        &["client", "watch", "--from", "1", "--timeout", "300ms"],
        &["cluster", "status"],
    ] {
        let run = quorate([words, &["--servers", &json]].concat()).await.expect(FAILED);
        says(&run, &[&json, "is it a Quorate server"]);
    }
}

/// Nothing was changed, for certain, and it does not take as long as a change may.
#[tokio::test]
async fn a_change_without_a_primary_fails_soon() {
    let cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let backup = cluster.backup().await;
    cluster.kill9(&primary);
    cluster.kill9(&backup);
    let servers = cluster.urls().join(",");
    for (words, limit) in [
        (&["promote", "S2"][..], Duration::from_secs(8)),
        (&["transfer", "--timeout", "1s"], Duration::from_secs(3)),
        (&["set", "mode", "active", "--timeout", "1s"], Duration::from_secs(3)),
    ] {
        let began = Instant::now();
        let run = quorate([&["cluster"], words, &["--servers", &servers]].concat()).await.expect(FAILED);
        says(&run, &["not applied", "no primary is known", "cluster status"]);
        assert!(began.elapsed() < limit, "{words:?} took {:?}", began.elapsed());
    }
}
