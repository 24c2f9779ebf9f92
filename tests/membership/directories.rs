//! Directories that do not fit: refused with the remedy, and left as they are.

use super::*;

/// Runs a server that ends by itself.
pub(super) async fn serve(server: &Server, words: &[&str]) -> Run {
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
