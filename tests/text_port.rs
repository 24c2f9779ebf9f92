//! The text port, the transcript, and requests to all servers at once: what an operator and a person with `nc` see.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::cli::quorate;
use support::{Cluster, PATIENCE, Setup};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn cluster() -> Cluster {
    let flags = ["--transcript", "--text-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
    Cluster::with(Setup { flags, ..Setup::default() }).await
}

/// A person with `nc`.
struct Nc(BufReader<TcpStream>);

impl Nc {
    /// To the text port of a server, which is said in its log.
    async fn to(cluster: &Cluster, name: &str) -> Self {
        let log = cluster.server(name).log();
        let line = log.lines().rfind(|line| line.contains("serving text")).expect("it is said");
        let port = line.rsplit("127.0.0.1:").next().and_then(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u16>().ok()
        });
        let stream = TcpStream::connect(("127.0.0.1", port.expect("a port"))).await.expect("it listens");
        Self(BufReader::new(stream))
    }

    async fn say(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\n").as_bytes()).await.expect("it takes a line");
        let mut answer = String::new();
        timeout(PATIENCE, self.0.read_line(&mut answer)).await.expect("it answers").expect("a line");
        answer.trim_end().to_owned()
    }
}

/// Waits for a line in a server's output.
async fn line_of(cluster: &Cluster, name: &str, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = cluster.server(name).log();
        if let Some(line) = log.lines().find(|line| wanted(line)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{name} did not print it:\n{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn nc_is_a_client_and_the_same_number_is_applied_once_at_any_server() {
    let cluster = cluster().await;
    let mut nc = Nc::to(&cluster, "S1").await;
    assert_eq!(nc.say("<C1, S1, 8, add 5, request>").await, "<C1, S1, 8, 5, reply>");
    assert_eq!(nc.say("<C1, S1, 8, add 5, request>").await, "<C1, S1, 8, 5, reply>");
    assert_eq!(nc.say("<C1, S1, 9, minus 2, request>").await, "<C1, S1, 9, 3, reply>");
    assert_eq!(nc.say("<C2, S1, 9, minus 2, request>").await, "<C2, S1, 9, 1, reply>");
    let commas = nc.say("<C1, S1, 10, a, b, request>, request>").await;
    assert_eq!(commas, "<C1, S1, 10, a, b, request>, reply>");
    assert_eq!(nc.say("<LFD1, S1, 3, heartbeat>").await, "<LFD1, S1, 3, heartbeat>");

    let primary = cluster.primary().await;
    cluster.kill9(&primary);
    let other = cluster.primary().await;
    let mut nc = Nc::to(&cluster, &other).await;
    let again = |what: &str, kind: &str| format!("<C1, {other}, 9, {what}, {kind}>");
    assert_eq!(nc.say(&again("minus 2", "request")).await, again("3", "reply"), "after a failover");
    let text = format!("<C1, {other}, 11, a, b, request>");
    assert_eq!(nc.say(&text).await, format!("<C1, {other}, 11, a, b, reply>"));
    let held = cluster.http.json(&format!("{}/v1/counter/get", cluster.url(&other))).await.expect("a value");
    assert_eq!(held["value"], 1);
    let held = cluster.http.json(&format!("{}/v1/register/get", cluster.url(&other))).await.expect("a text");
    assert_eq!(held["text"], "a, b");
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_and_changes_nothing() {
    let cluster = cluster().await;
    let mut nc = Nc::to(&cluster, "S2").await;
    assert_eq!(nc.say("<C1, S2, 5000, add 5, request>").await, "<C1, S2, 5000, 5, reply>");
    let max = i64::MAX;
    for (line, why) in [
        ("<C1, S2, 3976, add 1, request>".to_owned(), "below the highest"),
        ("<C1, S2, 5000, add 6, request>".to_owned(), "another command"),
        ("<C1, S3, 5001, add 1, request>".to_owned(), "this server is S2"),
        ("<LFD1, S3, 5001, heartbeat>".to_owned(), "this server is S2"),
        ("<C1, S2, 0, add 1, request>".to_owned(), "a number is from 1"),
        ("<C1, S2, one, add 1, request>".to_owned(), "a number is from 1"),
        ("<, S2, 1, add 1, request>".to_owned(), "name"),
        (format!("<C1, S2, 5002, add {max}, request>"), "leaves the range"),
        ("hello".to_owned(), "<client, S2, number, body, request>"),
        (format!("<C1, S2, 5003, {}, request>", "x".repeat(5_000)), "4096 bytes"),
    ] {
        let answer = nc.say(&line).await;
        assert!(answer.ends_with(", refused>") && answer.contains(why), "{line:.40}: {answer}");
    }
    // The last 1,024 numbers, 5002 the last of them, can still be used.
    assert_eq!(nc.say("<C1, S2, 3979, add 1, request>").await, "<C1, S2, 3979, 6, reply>");
    assert_eq!(nc.say("<C1, S2, 5004, add 1, request>").await, "<C1, S2, 5004, 7, reply>");
    nc.0.write_all(b"\xff\xfe\n").await.expect("it takes bytes");
    assert!(nc.say("").await.contains("not UTF-8"), "and an empty line is not answered");
}

#[tokio::test]
async fn the_transcript_tells_of_requests_states_roles_and_checkpoints() {
    let cluster = cluster().await;
    let primary = cluster.primary().await;
    let settings = format!("{}/v1/cluster/settings", cluster.url(&primary));
    let set = cluster.http.post(&settings, &json!({ "checkpoint-interval": "1" })).await.expect("an answer");
    assert_eq!(set.status, 200);
    let mut nc = Nc::to(&cluster, &primary).await;
    nc.say(&format!("<C1, {primary}, 7, add 7, request>")).await;
    nc.say(&format!("<C1, {primary}, 8, add 5, request>")).await;
    let request = format!("processing <C1, {primary}, 8, add 5, request>");
    for line in [
        format!("my_state_{primary} = 7 before {request}"),
        format!("my_state_{primary} = 12 after {request}"),
    ] {
        line_of(&cluster, &primary, |said| said == line).await;
    }
    line_of(&cluster, &primary, |line| line.ends_with(&format!("[active] [primary] {primary}"))).await;
    let backup = cluster.backup().await;
    line_of(&cluster, &backup, |line| line == format!("{backup} is ready")).await;
    let sent = line_of(&cluster, &primary, |line| {
        line.contains("[checkpoint 1] [")
            && line.ends_with(&format!("{primary} sending checkpoint to {backup}"))
    })
    .await;
    let received = line_of(&cluster, &backup, |line| {
        line.contains("[checkpoint 1] [")
            && line.ends_with(&format!("{backup} receives checkpoint from {primary}"))
    })
    .await;
    let hash = |line: &str| line.split(['[', ']']).nth(5).map(str::to_owned);
    assert_eq!(hash(&sent), hash(&received));
    assert_eq!(hash(&sent).expect("a hash").len(), 32);
}

#[tokio::test]
async fn a_command_to_all_servers_is_applied_once_and_the_first_reply_wins() {
    let cluster = cluster().await;
    let servers = cluster.urls().join(",");
    let all = ["client", "--servers", &servers, "--fanout", "all", "--session", "C1"];
    let run =
        |more: &[&'static str]| quorate(all.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>());
    let told = run(&["--verbose", "--transcript", "add", "5"]).await.expect(0);
    let lines: Vec<&str> = told.stdout.lines().collect();
    for name in cluster.names() {
        assert!(
            lines.iter().any(|line| line.ends_with(&format!("Sent <C1, {name}, 1, request>"))),
            "{told:?}"
        );
    }
    assert_eq!(lines.iter().filter(|line| line.contains("Received <C1, ")).count(), 1, "{told:?}");
    assert_eq!(lines.last(), Some(&"5"));
    assert_eq!(told.stderr.matches("to request 1 discarded").count(), 2, "{told:?}");
    // One that hangs holds nobody up.
    let backup = cluster.backup().await;
    cluster.pause(&backup);
    assert_eq!(run(&["add", "2"]).await.expect(0).stdout, "7\n");
    cluster.resume(&backup);
    assert_eq!(run(&["get"]).await.expect(0).stdout, "7\n");
    let off =
        quorate(["client", "--servers", &servers, "--fanout", "all", "--session", "off", "add", "1"]).await;
    off.expect(2);
}
