//! What the command line tells a person who asks in vain, or the wrong one.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::Cluster;
use support::cli::{Run, quorate};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
/// Less than a client tries by default; machines under load have some of it for themselves.
const SOON: Duration = Duration::from_secs(4);

fn says(run: &Run, texts: &[&str]) {
    assert_eq!(run.stdout, "");
    for text in texts {
        assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
    }
}

#[tokio::test]
async fn a_misspelt_level_is_no_level() {
    for (level, word) in [("inof", "inof"), ("info,quorate=debug,wran", "wran")] {
        let words = ["server", "--name", "S1", "--data", "nowhere", "--log-level", level];
        let ports = ["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"];
        let run = quorate([&words[..], &ports].concat()).await.expect(USAGE);
        says(&run, &[word, "debug", "TARGET=LEVEL"]);
    }
}

#[tokio::test]
async fn nobody_joins_through_itself() {
    let port = support::process::Port::reserve();
    let peer = port.address();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let data = dir.path().join("d3").display().to_string();
    let words = ["server", "--name", "S3", "--data", &data, "--listen", "127.0.0.1:0"];
    let run = quorate([&words[..], &["--peer-listen", &peer, "--join", &peer]].concat()).await.expect(FAILED);
    // Its log is on stderr as well.
    says(&run, &["--join names only itself", &peer, "quorate cluster init --name S3"]);
}

#[tokio::test]
async fn a_peer_port_is_taken_for_one() {
    let cluster = Cluster::start(1).await;
    let peer = cluster.server("S1").peer.address();
    let commands = [
        &["client", "get"][..],
        &["client", "add", "1"],
        &["client", "watch"],
        &["cluster", "status"],
        &["bench"],
    ];
    for words in commands {
        let begun = Instant::now();
        let run = quorate([words, &["--servers", &peer]].concat()).await.expect(FAILED);
        says(&run, &[&peer, "this is a peer port", "--listen"]);
        assert!(begun.elapsed() < SOON, "{words:?} took {:?}", begun.elapsed());
    }
    // One wrong address among others is not the end.
    let servers = format!("{peer},{}", cluster.url("S1"));
    for (words, value) in
        [(&["add", "1"][..], "1\n"), (&["watch", "--from", "0", "--count", "1"], "default\t1\n")]
    {
        let run = quorate([&["client"], words, &["--servers", &servers]].concat()).await.expect(DONE);
        assert!(run.stdout.ends_with(value), "{run:?}");
    }
}

/// It will never become a server, so nobody is kept waiting for that.
#[tokio::test]
async fn what_speaks_no_http_is_told_at_once() {
    let ssh = stranger("SSH-2.0-OpenSSH_9.6\r\n");
    for words in
        [&["client", "get"][..], &["client", "add", "1"], &["client", "watch"], &["cluster", "status"]]
    {
        let begun = Instant::now();
        let run = quorate([words, &["--servers", &ssh]].concat()).await.expect(FAILED);
        says(&run, &[&ssh, "not HTTP", "next: give --servers the HTTP address of a server"]);
        assert!(begun.elapsed() < SOON, "{words:?} took {:?}", begun.elapsed());
    }
    says(&quorate(["bench", "--servers", &ssh]).await.expect(FAILED), &[&ssh, "no HTTP"]);
}

/// `quorate client console` with `lines` on its stdin.
async fn console(lines: &str, servers: &str) -> Run {
    use std::io::Seek as _;
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(lines.as_bytes()).expect("lines");
    file.rewind().expect("its beginning");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["client", "console", "--servers", servers, "--timeout", "1500ms"]).stdin(file);
    // No history of a script is kept.
    command.env_remove("HOME").env_remove("XDG_STATE_HOME");
    support::cli::run_with_stdin(command).await
}

#[tokio::test]
async fn a_piped_console_names_the_line_that_failed_and_goes_on_only_where_that_makes_sense() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let run = console("add 5\n\ncas 3 4\nadd x\nadd 1\n", &url).await.expect(FAILED);
    assert_eq!(run.stdout, "5\n6\n", "{run:?}");
    for text in ["line 3, `cas 3 4`: refused", "line 4, `add x`: error: invalid value"] {
        assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
    }
    let run = console("ad 5\nadd 1\n", &url).await.expect(USAGE);
    assert_eq!(run.stdout, "7\n", "{run:?}");
    let run = console("help\nquit\nadd 1\n", &url).await.expect(DONE);
    assert!(run.stdout.is_empty() && !run.stderr.contains("line 1"), "{run:?}");

    let nobody = support::process::Port::reserve().address();
    for servers in [nobody, cluster.server("S1").peer.address()] {
        let begun = Instant::now();
        let run = console("\nadd 1\nget\nget\nget\nget\n", &servers).await.expect(FAILED);
        says(&run, &["line 2, `add 1`: ", &servers, "the lines after it are not run"]);
        assert!(!run.stderr.contains("line 3") && begun.elapsed() < SOON, "{run:?}");
    }
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

/// One wrong address among others is not the end.
#[tokio::test]
async fn a_strange_web_server_does_not_keep_the_others_from_being_asked() {
    let cluster = Cluster::start(1).await;
    let page = stranger("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let servers = format!("{page},{}", cluster.url("S1"));
    for words in [&["client", "add", "1"][..], &["client", "get"]] {
        let run = quorate([words, &["--servers", &servers]].concat()).await.expect(DONE);
        assert_eq!(run.stdout, "1\n", "{run:?}");
    }
}

/// Who reads an exit code of 1 may do it again.
#[tokio::test]
async fn what_was_done_and_cannot_be_shown_is_not_called_failed() {
    let cluster = Cluster::start(1).await;
    let command = |word: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        std::process::Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args([&["client"], word, &["--servers", &cluster.url("S1")]].concat())
            .stdout(full)
            .output()
            .expect("it runs")
    };
    let added = command(&["add", "1"]);
    assert_eq!(added.status.code(), Some(3), "{added:?}");
    assert!(String::from_utf8_lossy(&added.stderr).contains("it was done"), "{added:?}");
    assert_eq!(command(&["get"]).status.code(), Some(FAILED));
}

#[tokio::test]
async fn a_timing_that_cannot_work_is_usage_and_touches_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("S8").display().to_string();
    for timing in [["--heartbeat", "500ms"], ["--heartbeat", "0ms"], ["--election-timeout", "10ms"]] {
        let words = ["server", "--name", "S8", "--data", &data, "--listen", "127.0.0.1:0"];
        let rest = ["--peer-listen", "127.0.0.1:0", "--join", "127.0.0.1:1"];
        let run = quorate([&words[..], &rest, &timing].concat()).await.expect(USAGE);
        says(&run, &["--heartbeat", "--election-timeout"]);
    }
    assert!(!dir.path().join("S8").exists());
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
    ] {
        let began = Instant::now();
        let run = quorate([&["cluster"], words, &["--servers", &servers]].concat()).await.expect(FAILED);
        says(&run, &["not applied", "no primary is known", "cluster status"]);
        assert!(began.elapsed() < limit, "{words:?} took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_flag_that_would_change_nothing_is_usage() {
    let cases: [(&[&str], &str); 12] = [
        (&["register", "set", "x", "--counter", "c"], "--counter"),
        (&["list", "--counter", "c"], "--counter"),
        (&["loop", "--counter", "c"], "--counter"),
        (&["add", "1", "--read", "stale"], "--read"),
        (&["register", "append", "x", "--read", "lease"], "--read"),
        (&["watch", "--read", "lease"], "--read"),
        (&["set", "1", "--max-age", "1s"], "--max-age"),
        (&["get", "--max-age", "1s"], "--read stale"),
        (&["get", "--read", "lease", "--max-age", "1s"], "--read stale"),
        (&["register", "list", "--name", "x"], "--name"),
        (&["watch", "hits", "--counter", "hits"], "--counter"),
        (&["watch", "--counter", "hits", "--service", "register"], "--counter"),
    ];
    let init = ["cluster", "init", "--name", "S1", "--data", "/nonexistent/d", "--servers", "127.0.0.1:1"];
    says(&quorate(init).await.expect(USAGE), &["--servers"]);
    for (words, text) in cases {
        let run = quorate([&["client"], words].concat()).await.expect(USAGE);
        says(&run, &[text]);
    }
}

/// A word at the wrong place is told where it belongs.
#[tokio::test]
async fn what_is_asked_at_the_wrong_address_is_told_the_right_one() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let detail = |reply: support::http::Reply, status: u16| {
        assert_eq!(reply.status, status, "{reply:?}");
        reply.json()["detail"].as_str().expect("a detail").to_owned()
    };
    for name in ["add", "delete"] {
        let reply = cluster.http.get(&format!("{url}/v1/counter/{name}")).await.expect("a reply");
        let text = detail(reply, 404);
        assert!(text.contains(&format!("{name} is a command")) && text.contains("POST"), "{text}");
    }
    let text = detail(cluster.http.get(&format!("{url}/v1/counter/explain")).await.expect("a reply"), 404);
    assert!(text.contains("explain") && !text.contains("is a command"), "{text}");
    let members = async |op: &str| {
        let body = serde_json::json!({"op": op, "name": "S1"});
        cluster.http.post(&format!("{url}/v1/cluster/members"), &body).await.expect("a reply")
    };
    let text = detail(members("transfer").await, 400);
    assert!(text.contains("/v1/cluster/transfer"), "{text}");
    let text = detail(members("dance").await, 400);
    assert!(text.contains("dance") && text.contains("promote, demote, remove"), "{text}");
}

#[tokio::test]
async fn a_dash_is_no_reason_for_a_tip_that_does_not_help() {
    for words in [&["add", "-x"][..], &["add", "1", "-x"], &["list", "--colour"]] {
        let run = quorate([&["client"], words].concat()).await.expect(USAGE);
        assert!(run.stderr.contains("unexpected argument") && !run.stderr.contains("'-- "), "{run:?}");
    }
    let run = quorate(["client", "get", "--countr", "a"]).await.expect(USAGE);
    assert!(run.stderr.contains("'--counter'"), "a tip that helps stays: {run:?}");
}

#[tokio::test]
async fn a_watch_takes_a_counter_and_tells_of_a_position_ahead() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let client =
        async |words: &[&str]| quorate([&["client", "--servers", &url], words].concat()).await.expect(DONE);
    for counter in ["other", "seen", "other", "seen"] {
        client(&["add", "1", "--counter", counter]).await;
    }
    let run = client(&["watch", "--counter", "seen", "--from", "0", "--count", "2"]).await;
    assert!(run.stdout.lines().count() == 2 && !run.stdout.contains("other"), "{run:?}");
    assert_eq!(run.stderr, "", "nothing lies ahead");
    let revision = client(&["get", "--json"]).await.json()["revision"].as_u64().expect("a revision");
    let ahead = (revision + 1).to_string();
    let words = ["watch", "--from", &ahead, "--count", "1"];
    let (run, ()) = tokio::join!(client(&words), async {
        // Events come until one lies behind the position, and after the watch has looked.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            client(&["add", "1", "--counter", "later"]).await;
        }
    });
    assert!(run.stderr.contains(&format!("--from {ahead} lies ahead")), "{run:?}");
    assert!(run.stdout.contains("later"), "{run:?}");
}

#[tokio::test]
async fn the_log_shows_the_newest_unless_told_where_to_begin() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    for number in 1..=5 {
        let body = serde_json::json!({"name": "n", "value": number});
        cluster.http.post(&format!("{url}/v1/counter/set"), &body).await.expect("a reply");
    }
    let log = async |words: &[&str]| {
        quorate([&["cluster", "log", "--servers", &url], words].concat()).await.expect(DONE)
    };
    let run = log(&["--limit", "2"]).await;
    let lines: Vec<&str> = run.stdout.lines().skip(1).collect();
    assert!(lines.len() == 2 && lines[0].contains(":4}") && lines[1].contains(":5}"), "{run:?}");
    assert_eq!(run.stderr, "there are older ones: --from 2\n");
    let run = log(&["--from", "2", "--limit", "2"]).await;
    assert!(run.stdout.contains(":2}") && run.stdout.contains(":3}"), "{run:?}");
    assert_eq!(run.stderr, "there are older ones: --from 1; newer ones: --from 4\n");
    let run = log(&["--from", "4", "--limit", "2"]).await;
    assert_eq!(run.stderr, "there are older ones: --from 2\n", "nothing is newer than the newest");
    let run = log(&["--from", "9000"]).await;
    assert_eq!(run.stderr, "there are older ones: --from 1\n", "{run:?}");
    let whole = log(&[]).await;
    assert!(whole.stdout.contains(":1}") && whole.stderr.is_empty(), "{whole:?}");
}

/// `quorate bench`, with Ctrl-C after some seconds.
async fn interrupted_bench(secs: &str, words: &[&str]) -> Run {
    let mut command = std::process::Command::new("timeout");
    command
        .args(["--preserve-status", "--signal=INT", secs, env!("CARGO_BIN_EXE_quorate"), "bench"])
        .args(words);
    support::cli::run(command).await
}

#[tokio::test]
async fn an_interrupted_bench_tells_what_it_has_measured() {
    let cluster = Cluster::start(1).await;
    let flags = ["--servers", &cluster.url("S1"), "--clients", "2", "--warmup", "0", "--secs", "50"];
    let run = interrupted_bench("3", &[&flags[..], &["--json"]].concat()).await.expect(DONE);
    let report = run.json();
    let secs = report["secs"].as_f64().expect("seconds");
    assert!(secs > 0.5 && secs < 20.0 && report["ops"].as_u64().is_some_and(|ops| ops > 0), "{report}");
    assert!(run.stderr.contains("interrupted after"), "{run:?}");
    let run = interrupted_bench("2", &flags).await.expect(DONE);
    assert!(run.stdout.contains("ops/s") && run.stderr.contains("interrupted after"), "{run:?}");
}

#[tokio::test]
async fn a_bench_tells_what_it_waits_for_and_what_it_does_not_take() {
    let electing = stranger(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 58\r\nconnection: close\r\n\r\n\
         {\"code\":\"no_primary\",\"detail\":\"-\",\"outcome\":\"not_applied\"}",
    );
    let run = interrupted_bench("2.5", &["--servers", &electing, "--json"]).await.expect(FAILED);
    says(&run, &["waiting up to 15 s to begin: no server knows a primary", &electing, "interrupted before"]);
    let nobody = support::process::Port::reserve().address();
    let begun = Instant::now();
    let run = quorate(["bench", "--servers", &nobody]).await.expect(FAILED);
    says(&run, &["no server can be reached", &nobody, "connection refused", "scripts/cluster.sh up --bare"]);
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    let run = quorate(["bench", "--batch", "2000"]).await.expect(USAGE);
    says(&run, &["expected 1 to 1000", "a session keeps 1,024 replies"]);
    let run = quorate(["bench", "--read", "lease"]).await.expect(USAGE);
    says(&run, &["--read is for --op get"]);
}
