//! Who may start where: names that are taken, directories that do not fit, addresses that are of no use.

mod support;

use std::time::{Duration, Instant};

use support::cli::{Run, quorate};
use support::process::Server;
use support::{Cluster, PATIENCE};

#[tokio::test]
async fn a_live_name_is_not_given_twice() {
    let cluster = Cluster::start(3).await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let twin = Server::new("S2", elsewhere.path());
    let join = cluster.server("S1").peer.address();
    let run = serve(&twin, &["--join", &join]).await.expect(1);
    assert!(run.stderr.contains("refuses to let S2 join") && run.stderr.contains("another name"), "{run:?}");
    // And a name that is none never gets that far.
    let bad = Server::new("no/name", elsewhere.path());
    let run = serve(&bad, &["--join", &join]).await.expect(2);
    assert!(run.stderr.contains("not a server's name"), "{run:?}");
    let url = cluster.url("S3");
    let seen = cluster.http.json(&format!("{url}/v1/cluster")).await.expect("the cluster");
    assert_eq!(seen["servers"].as_array().map(Vec::len), Some(3), "{seen}");
    quorate(["client", "add", "1", "--servers", &cluster.url("S2")]).await.expect(0);
}

/// Runs a server that ends by itself.
async fn serve(server: &Server, words: &[&str]) -> Run {
    let words = words.iter().map(ToString::to_string);
    let arguments = ["server".to_owned()].into_iter().chain(server.identity()).chain(words);
    let began = Instant::now();
    let run = quorate(arguments).await;
    assert!(began.elapsed() < PATIENCE / 2, "it took {:?} to say so: {run:?}", began.elapsed());
    run
}

/// Fails unless the server ends with exit code 1, and stderr has all of `texts`.
async fn refuses(server: &Server, words: &[&str], texts: &[&str]) {
    let run = serve(server, words).await.expect(1);
    for text in texts {
        assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
    }
    assert_eq!(run.stdout, "", "logs and errors go to stderr");
}

#[tokio::test]
async fn a_directory_that_does_not_fit_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::new("S1", dir.path());
    let path = server.data.display().to_string();
    // Nothing there, and nobody to join.
    refuses(&server, &[], &["is empty", "--join HOST:PORT", "quorate cluster init --name S1"]).await;
    assert!(!server.data.join("identity.json").exists(), "a server never makes a cluster");
    // Something there that is not a server's.
    std::fs::create_dir_all(&server.data).expect("the directory");
    std::fs::write(server.data.join("thesis.tex"), "precious").expect("a file");
    refuses(&server, &["--join", "127.0.0.1:1"], &["not empty"]).await;
    let init = || [&["cluster".to_owned(), "init".to_owned()][..], &server.identity()].concat();
    let run = quorate(init()).await.expect(1);
    assert!(run.stderr.contains("not empty"), "{run:?}");
    assert_eq!(std::fs::read(server.data.join("thesis.tex")).expect("still there"), b"precious");
    std::fs::remove_file(server.data.join("thesis.tex")).expect("removed");
    // Made once, and once only.
    let run = quorate(init()).await.expect(0);
    assert!(run.stderr.contains("first server of a new cluster"), "{run:?}");
    let identity = std::fs::read(server.data.join("identity.json")).expect("an identity");
    let run = quorate(init()).await.expect(1);
    assert!(run.stderr.contains(&path) && run.stderr.contains("not empty"), "{run:?}");
    assert_eq!(std::fs::read(server.data.join("identity.json")).expect("an identity"), identity);
    // Another server's.
    let mut other = Server::new("S2", dir.path());
    other.data = server.data.clone();
    refuses(&other, &[], &["belongs to server S1", "--name S1"]).await;
    // In use.
    server.start("", &[]);
    wait_alive(&server).await;
    let mut twin = Server::new("S1", dir.path());
    twin.data = server.data.clone();
    refuses(&twin, &[], &["in use by another process"]).await;
    // A port in use.
    let mut neighbour = Server::new("S3", dir.path());
    std::mem::swap(&mut neighbour.listen, &mut twin.listen);
    let listener = std::net::TcpListener::bind(neighbour.listen.address()).expect("our own port");
    refuses(&neighbour, &["--join", "127.0.0.1:1"], &["cannot listen on", &neighbour.listen.address()]).await;
    drop(listener);
    assert!(server.ended().is_none(), "the server itself goes on");
    server.kill9();
    // Parts of it lost.
    for part in ["log", "state"] {
        let (there, away) = (server.data.join(part), dir.path().join("away"));
        std::fs::rename(&there, &away).expect("moved away");
        refuses(&server, &["--join", "127.0.0.1:1"], &["part of the directory is lost", part, "rejoin"])
            .await;
        std::fs::rename(&away, &there).expect("moved back");
    }
    // A changed identity.
    let text = String::from_utf8(identity.clone()).expect("JSON").replace("\"node_id\": 1", "\"node_id\": 2");
    assert_ne!(text.as_bytes(), identity, "{text}");
    std::fs::write(server.data.join("identity.json"), text).expect("an identity");
    refuses(&server, &[], &["identity.json is damaged", "rejoin"]).await;
    std::fs::write(server.data.join("identity.json"), identity).expect("an identity");
    // All that changed nothing.
    server.start("", &[]);
    wait_alive(&server).await;
}

async fn wait_alive(server: &Server) {
    let http = support::http::Http::new();
    let deadline = Instant::now() + PATIENCE;
    while let Err(e) = http.ok(&format!("{}/readyz", server.url())).await {
        assert!(server.ended().is_none() && Instant::now() < deadline, "{e}\n{}", server.tail());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Whoever asks whether it is alive must not kill it for waiting, nor send it requests.
#[tokio::test]
async fn a_server_that_finds_nobody_to_join_is_alive_and_not_ready() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::new("S2", dir.path());
    server.start("127.0.0.1:1", &[]);
    let (http, url) = (support::http::Http::new(), server.url());
    let deadline = Instant::now() + PATIENCE;
    while let Err(e) = http.ok(&format!("{url}/healthz")).await {
        assert!(server.ended().is_none() && Instant::now() < deadline, "{e}\n{}", server.tail());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let request = |head: &str, body: &str| {
        format!("{head} HTTP/1.1\r\nhost: q\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let heads =
        ["GET /readyz", "GET /v1/status", "GET /v1/cluster", "GET /v1/watch", "GET /metrics", "GET /"];
    let mut requests: Vec<String> = heads.iter().map(|head| request(head, "")).collect();
    requests.push(request("POST /v1/counter/add", r#"{"amount":1}"#));
    for request in requests {
        let answer = support::wire::exchange(&server.listen.address(), request.as_bytes()).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 503, "{request}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
        let problem = answer.json();
        assert_eq!((&problem["code"], &problem["outcome"]), (&"not_ready".into(), &"not_applied".into()));
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("joining")), "{problem}");
    }
    // Connections that say nothing keep nobody out for long, and a signal is heard.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(support::wire::Connection::open(&server.listen.address()).await.expect("a connection"));
    }
    http.ok(&format!("{url}/healthz")).await.expect("still alive");
    server.signal("TERM");
    while server.ended().is_none() {
        assert!(Instant::now() < deadline, "it does not end\n{}", server.tail());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Before anything is written.
#[tokio::test]
async fn a_name_and_addresses_of_no_use_are_usage() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d").display().to_string();
    let (listen, peer) = ("127.0.0.1:8001", "127.0.0.1:9001");
    let cases: [(&str, &str, &str, &[&str], &str); 9] = [
        ("", listen, peer, &[], "not a server's name"),
        ("S/1", listen, peer, &[], "not a server's name"),
        ("S1", "8001", peer, &[], "IP:PORT"),
        ("S1", "127.0.0.1", peer, &[], "IP:PORT"),
        ("S1", listen, "127.0.0.1:8001", &[], "a port of its own"),
        ("S1", "0.0.0.0:8001", peer, &[], "--advertise"),
        ("S1", listen, "0.0.0.0:9001", &[], "--peer-advertise"),
        ("S1", listen, peer, &["--advertise", "http://0.0.0.0:8001"], "nobody can connect"),
        ("S1", listen, peer, &["--peer-advertise", "http://h:9001"], "HOST:PORT"),
    ];
    for (name, listen, peer, more, text) in cases {
        let flags = ["--name", name, "--data", &data, "--listen", listen, "--peer-listen", peer];
        for command in [&["cluster", "init"][..], &["server"]] {
            let run = quorate([command, &flags, more].concat()).await.expect(2);
            assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
        }
    }
    let flags = ["--name", "S1", "--data", &data, "--listen", "127.0.0.1:0", "--peer-listen", peer];
    let run = quorate([&["cluster", "init"], &flags[..]].concat()).await.expect(2);
    assert!(run.stderr.contains("choose a port"), "{run:?}");
    let run = quorate([&["server"], &flags[..], &["--join", "h"]].concat()).await.expect(2);
    assert!(run.stderr.contains("--join"), "{run:?}");
    assert!(!dir.path().join("d").exists(), "something was written");
}
