//! The replication manager on real processes: it keeps the membership, and does no harm.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::watched::{Watched, strings};

const THREE: [&str; 3] = ["S1", "S2", "S3"];

fn node_id(cluster: &Value, name: &str) -> u64 {
    let servers = cluster["servers"].as_array().expect("servers");
    let server = servers.iter().find(|server| server["name"] == name);
    server.and_then(|server| server["node_id"].as_u64()).unwrap_or_else(|| panic!("no {name} in {cluster}"))
}

async fn add(watched: &Watched, n: usize) -> u16 {
    let url = format!("{}/v1/counter/add", watched.servers[n].url());
    watched.http.post(&url, &json!({"amount": 1})).await.map_or(0, |reply| reply.status)
}

/// Asserts that nothing of the membership changes for so long.
async fn nothing_changes(watched: &Watched, time: Duration) {
    let before = watched.until("the cluster is seen", async || watched.cluster().await).await;
    let end = Instant::now() + time;
    let mut looks = 0;
    while Instant::now() < end {
        if let Ok(now) = watched.cluster().await {
            assert_eq!(now["membership"], before["membership"]);
            looks += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(looks > 0, "nobody told how the cluster is");
}

#[tokio::test]
async fn learners_become_voters_and_a_killed_server_comes_back_as_it_was() {
    let watched = Watched::start_managed(3, &[]).await;
    let cluster = watched.until_voters(&THREE).await;
    let view = cluster["view"]["members"].as_array().map(Vec::len);
    assert_eq!(view, Some(3), "the status shows the view: {cluster}");
    for server in [1, 0] {
        let before = watched.member(server).await.expect("in the view");
        watched.signal(server, "KILL");
        watched
            .until("it was launched again", async || {
                let now = watched.member(server).await?;
                let again = now["state"] == "alive" && now["incarnation"] != before["incarnation"];
                again.then_some(()).ok_or(now.to_string())
            })
            .await;
        let now = watched.until_voters(&THREE).await;
        assert_eq!(now["membership"]["log_id"], cluster["membership"]["log_id"], "nobody was removed");
        assert_eq!(add(&watched, server).await, 200);
    }
    let log = watched.rm.log();
    for line in ["RM: 0 members", "RM: 3 members: S1, S2, S3", "RM: 2 members: S1, S3", "S2 is ready"] {
        assert!(log.lines().any(|written| written == line), "{line} is not in\n{log}");
    }
}

#[tokio::test]
async fn a_voter_that_stays_away_is_removed_and_comes_back_as_it_was() {
    let watched = Watched::start_managed(3, &[]).await;
    let before = watched.until_voters(&THREE).await;
    watched.kill_and_hold(2).await;
    let without = watched.until_voters(&["S1", "S2"]).await;
    assert_eq!(strings(&without["membership"]["learners"]), Vec::<String>::new());
    assert_eq!(add(&watched, 0).await, 200);
    watched.release(2).await;
    let after = watched.until_voters(&THREE).await;
    assert_eq!(node_id(&after, "S3"), node_id(&before, "S3"), "its disk is the same");
    // Removed, taken back and promoted, and not again and again.
    let log = watched.rm.log();
    let changes = log.lines().filter(|line| line.contains("changing the membership")).count();
    assert!((5..=8).contains(&changes), "{changes} changes");
}

#[tokio::test]
async fn below_the_floor_nobody_is_removed() {
    let watched = Watched::start_managed(3, &[]).await;
    watched.until_voters(&THREE).await;
    watched.kill_and_hold(2).await;
    watched.until_voters(&["S1", "S2"]).await;
    watched.kill_and_hold(1).await;
    let notes = watched
        .until("the manager says what it waits for", async || {
            let shown = watched.manager().await?;
            let says = strings(&shown["waits"]).iter().any(|wait| wait.contains("primary"));
            if says { Ok(strings(&shown["notes"])) } else { Err(shown.to_string()) }
        })
        .await;
    assert!(notes.iter().any(|note| note.contains("S2 is held down")), "{notes:?}");
    watched.release(1).await;
    watched.until_voters(&["S1", "S2"]).await;
    assert_eq!(add(&watched, 1).await, 200);
}

/// Each loss comes when the repair of the one before has ended: service goes on down to one server and the witness, and
/// back up.
#[tokio::test]
async fn with_a_witness_the_last_server_goes_on_and_all_come_back() {
    let mut watched = Watched::start_managed(3, &[]).await;
    watched.add_witness().await;
    watched.until_voters(&THREE).await;
    watched.kill_and_hold(0).await;
    watched.until_voters(&["S2", "S3", "W"]).await;
    assert_eq!(add(&watched, 1).await, 200);
    watched.kill_and_hold(1).await;
    watched.until_voters(&["S3", "W"]).await;
    assert_eq!(add(&watched, 2).await, 200);
    assert_eq!(add(&watched, 3).await, 421, "the witness serves nobody");
    watched.release(0).await;
    watched.until_voters(&["S1", "S3", "W"]).await;
    watched.release(1).await;
    let cluster = watched.until_voters(&THREE).await;
    assert_eq!(strings(&cluster["membership"]["learners"]), ["W"], "the witness has stepped back");
    let url = format!("{}/v1/counter/get", watched.servers[0].url());
    assert_eq!(watched.http.json(&url).await.expect("the counter")["value"], 2);
}

#[tokio::test]
async fn a_spare_takes_the_place_of_a_dead_voter_in_one_change() {
    let watched = Watched::start_managed(4, &[]).await;
    let before = watched
        .until("three of four vote", async || {
            let cluster = watched.cluster().await?;
            let grown = strings(&cluster["membership"]["voters"]).len() == 3 && cluster["settled"] == true;
            if grown { Ok(cluster) } else { Err(cluster.to_string()) }
        })
        .await;
    let voters = strings(&before["membership"]["voters"]);
    let primary = before["primary"].as_str().expect("a primary");
    let gone = voters.iter().find(|name| *name != primary).expect("a backup that votes");
    let n = watched.servers.iter().position(|server| server.name == *gone).expect("one of ours");
    watched.kill_and_hold(n).await;
    let mut wanted: Vec<&str> = ["S1", "S2", "S3", "S4"].into_iter().filter(|name| name != gone).collect();
    wanted.sort_unstable();
    watched.until_voters(&wanted).await;
    let shown = watched.manager().await.expect("the manager");
    let last = shown["last"].as_str().unwrap_or_default();
    assert!(last.starts_with(&format!("done: replace {gone}")), "{shown}");
}

#[tokio::test]
async fn a_wiped_server_comes_back_under_a_new_node_id() {
    let watched = Watched::start_managed(3, &[]).await;
    let before = watched.until_voters(&THREE).await;
    watched.kill_and_hold(1).await;
    std::fs::remove_dir_all(&watched.servers[1].data).expect("its directory");
    watched.release(1).await;
    let after = watched
        .until("the new S2 votes, and the old one is gone", async || {
            let cluster = watched.cluster().await?;
            let voters = strings(&cluster["membership"]["voters"]);
            let whole = voters.len() == 3
                && cluster["servers"].as_array().is_some_and(|servers| servers.len() == 3)
                && cluster["settled"] == true
                && node_id(&cluster, "S2") != node_id(&before, "S2");
            if whole { Ok(cluster) } else { Err(cluster.to_string()) }
        })
        .await;
    assert!(node_id(&after, "S2") > node_id(&before, "S3"), "{after}");
}

#[tokio::test]
async fn without_the_view_nobody_is_removed_and_a_dry_run_changes_nothing() {
    let mut watched = Watched::start_managed(3, &[]).await;
    watched.until_voters(&THREE).await;
    watched.gfd.kill9();
    watched.signal(2, "KILL");
    nothing_changes(&watched, Duration::from_secs(3)).await;
    watched.rm.kill9();
    watched.rm.words.push("--dry-run".to_owned());
    watched.rm.start();
    watched.gfd.start();
    watched.until_state(2, "dead").await;
    watched
        .until("it says what it would do", async || {
            let shown = watched.manager().await?;
            let next = shown["next"]["change"].as_str().unwrap_or_default().to_owned();
            if next.starts_with("remove S3") { Ok(()) } else { Err(shown.to_string()) }
        })
        .await;
    nothing_changes(&watched, Duration::from_secs(1)).await;
    let explained = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["rm", "explain", "--rm", watched.rm.url().trim_start_matches("http://")])
        .output()
        .expect("quorate can be run");
    let text = String::from_utf8_lossy(&explained.stdout);
    assert!(text.contains("dry run") && text.contains("next: remove S3"), "{text}");
    assert_eq!(explained.status.code(), Some(0));
    assert!(watched.pids(2).is_empty(), "a dry run launches nobody");
}
