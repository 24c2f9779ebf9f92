//! The membership by hand, on real processes: join, promote, demote, remove, transfer, move.

mod support;

use serde_json::{Value, json};
use support::Cluster;
use support::cli::{Run, quorate};
use support::http::Reply;
use support::process::Port;

/// `quorate cluster …`, through the server `via` alone.
async fn cluster_command(cluster: &Cluster, via: &str, words: &[&str]) -> Run {
    let url = cluster.url(via);
    quorate([&["cluster"], words, &["--servers", &url]].concat()).await
}

async fn change(cluster: &Cluster, via: &str, body: Value) -> Reply {
    let url = format!("{}/v1/cluster/members", cluster.url(via));
    cluster.http.post(&url, &body).await.unwrap_or_else(|e| panic!("{body}: {e:?}"))
}

/// `GET /v1/cluster`, as the server `via` sees it.
async fn overview(cluster: &Cluster, via: &str) -> Result<Value, String> {
    cluster.http.json(&format!("{}/v1/cluster", cluster.url(via))).await
}

fn server<'a>(overview: &'a Value, name: &str) -> Result<&'a Value, String> {
    let servers = overview["servers"].as_array().ok_or_else(|| overview.to_string())?;
    let mut named = servers.iter().filter(|server| server["name"] == name);
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(format!("there is not one {name} in {overview}")),
    }
}

fn sorted(names: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names
}

/// Starts the server and waits until it is a learner that the cluster sees.
async fn join(cluster: &Cluster, name: &str, via: &str) {
    cluster.start_server(name);
    cluster
        .until(&format!("{name} is a ready learner"), async || {
            let overview = overview(cluster, via).await?;
            let server = server(&overview, name)?;
            match server["role"] == "learner" && server["ready"] == true {
                true => Ok(()),
                false => Err(server.to_string()),
            }
        })
        .await;
}

/// Waits until the cluster sees the server as down.
async fn seen_down(cluster: &Cluster, name: &str, via: &str) {
    cluster
        .until(&format!("{name} is seen to be down"), async || {
            let overview = overview(cluster, via).await?;
            let server = server(&overview, name)?;
            if server["state"] == "away" { Ok(()) } else { Err(server.to_string()) }
        })
        .await;
}

async fn writes_work(cluster: &Cluster, via: &str) {
    let url = format!("{}/v1/counter/add", cluster.url(via));
    cluster
        .until("writes work", async || {
            let reply = cluster.http.post(&url, &json!({"amount": 1})).await?;
            if reply.status == 200 { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
}

fn check_problem(reply: &Reply, status: u16, code: &str, text: &str) {
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{reply:?}");
    let problem = reply.json();
    assert_eq!(problem["outcome"], "not_applied", "{problem}");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| detail.contains(text)),
        "no {text:?} in {problem}"
    );
}

#[tokio::test]
async fn a_server_comes_and_goes() {
    let mut cluster = Cluster::start(3).await;
    cluster.add("S4");
    join(&cluster, "S4", "S2").await;
    let backup = cluster.backup().await;

    // Any server may be asked; the compare-and-set counts everywhere.
    let old = change(&cluster, &backup, json!({"op": "promote", "name": "S4", "if_membership": "0-0"})).await;
    check_problem(&old, 412, "changed", "has changed");
    let seen = overview(&cluster, &backup).await.expect("the cluster")["membership"].clone();
    assert_eq!((sorted(&seen["voters"]), sorted(&seen["learners"])), (vec!["S1", "S2", "S3"], vec!["S4"]));
    let log_id = seen["log_id"].as_str().expect("a log id").to_owned();
    let promoted =
        cluster_command(&cluster, &backup, &["promote", "S4", "--if-membership", &log_id]).await.expect(0);
    assert_eq!(promoted.stdout, "S4 is a voter\n");
    let late =
        cluster_command(&cluster, &backup, &["demote", "S4", "--if-membership", &log_id]).await.expect(1);
    assert!(late.stderr.contains("changed") && late.stdout.is_empty(), "{late:?}");
    let members = cluster_command(&cluster, "S4", &["members"]).await.expect(0).stdout;
    assert!(["S1", "S2", "S3", "S4"].iter().all(|name| members.contains(name)), "{members}");

    // The primary itself is made to go: leadership moves first.
    let moved = cluster_command(&cluster, "S1", &["transfer", "S4"]).await.expect(0);
    assert_eq!(moved.stdout, "S4\n");
    assert_eq!(cluster.primary().await, "S4");
    let demoted = cluster_command(&cluster, "S4", &["demote", "S4", "--json"]).await.expect(0).json();
    assert_eq!(
        (sorted(&demoted["voters"]), sorted(&demoted["learners"])),
        (vec!["S1", "S2", "S3"], vec!["S4"])
    );
    assert_ne!(cluster.primary().await, "S4");
    writes_work(&cluster, "S4").await;
    cluster_command(&cluster, "S2", &["promote", "S4"]).await.expect(0);
    cluster_command(&cluster, "S2", &["transfer", "S4"]).await.expect(0);
    let removed = cluster_command(&cluster, "S2", &["remove", "S4"]).await.expect(0);
    assert_eq!((&*removed.stdout, &*removed.stderr), ("S4 is removed\n", ""), "three voters are enough");
    let seen = overview(&cluster, "S1").await.expect("the cluster")["membership"].clone();
    assert_eq!((sorted(&seen["voters"]), sorted(&seen["learners"])), (vec!["S1", "S2", "S3"], vec![]));
    writes_work(&cluster, "S1").await;

    // The removed one is told, also after a restart, and harms nobody.
    let term = cluster.status("S1").await.expect("its status")["term"].clone();
    told(&cluster, "S4").await;
    cluster.kill9("S4");
    cluster.start_server("S4");
    told(&cluster, "S4").await;
    assert_eq!(
        cluster.status("S1").await.expect("its status")["term"],
        term,
        "the removed server made an election"
    );
    let gone = change(&cluster, "S3", json!({"op": "promote", "name": "S9"})).await;
    check_problem(&gone, 404, "not_found", "there are:");
    let nobody = cluster_command(&cluster, "S3", &["transfer", "S4"]).await.expect(1);
    assert!(nobody.stderr.contains("S4"), "{nobody:?}");

    // It is taken back as it is.
    let node_id = cluster.status("S4").await.expect("its status")["node_id"].clone();
    cluster_command(&cluster, "S3", &["promote", "S4"]).await.expect(0);
    cluster
        .until("S4 is a ready voter again", async || {
            let status = cluster.status("S4").await?;
            let back = status["ready"] == true && status["role"] == "backup";
            if back { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    assert_eq!(cluster.status("S4").await.expect("its status")["node_id"], node_id);
    writes_work(&cluster, "S4").await;
}

/// Waits until a removed server knows that it is one; then it says so, and serves nothing.
async fn told(cluster: &Cluster, name: &str) {
    let url = cluster.url(name);
    cluster
        .until(&format!("{name} knows that it was removed"), async || {
            let status = cluster.status(name).await?;
            if status["role"] == "removed" { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    cluster.http.ok(&format!("{url}/healthz")).await.expect("alive");
    for path in ["/readyz", "/v1/cluster", "/v1/log", "/v1/counter/get", "/v1/counter/get?read=stale"] {
        let reply = cluster.http.get(&format!("{url}{path}")).await.expect("an answer");
        check_problem(&reply, 503, "not_ready", "was removed from the cluster");
    }
    let reply = cluster.http.post(&format!("{url}/v1/counter/add"), &json!({"amount": 1})).await;
    let reply = reply.expect("an answer");
    check_problem(&reply, 503, "not_ready", "--join");
    assert!(reply.json()["primary"].as_str().is_some_and(|primary| *primary != url), "{reply:?}");
    // The command line goes where it is sent.
    let members = cluster_command(cluster, name, &["members"]).await.expect(0).stdout;
    assert!(members.contains("S1") && !members.contains(name), "{members}");
}

#[tokio::test]
async fn quorum_is_not_given_away() {
    let mut cluster = Cluster::start(3).await;
    cluster.add("S4");
    let primary = cluster.primary().await;
    join(&cluster, "S4", &primary).await;
    // A learner that is down is not made a voter, though it had everything.
    cluster.kill9("S4");
    seen_down(&cluster, "S4", &primary).await;
    let down = cluster_command(&cluster, &primary, &["promote", "S4"]).await.expect(1);
    assert!(down.stderr.contains("S4") && down.stderr.contains("running"), "{down:?}");
    cluster_command(&cluster, &primary, &["remove", "S4"]).await.expect(0);

    let others: Vec<String> =
        cluster.names().into_iter().filter(|name| *name != primary && name != "S4").collect();
    let [away, stays] = &others[..] else { panic!("three voters: {others:?}") };
    cluster.kill9(away);
    seen_down(&cluster, away, &primary).await;
    // Of two voters one would be down.
    for op in ["demote", "remove"] {
        // The primary takes a server for alive a moment longer than it answers.
        cluster
            .until(&format!("to {op} {stays} is refused"), async || {
                let reply = change(&cluster, &primary, json!({"op": op, "name": stays})).await;
                assert_ne!(reply.status, 200, "{reply:?}");
                check_problem(&reply, 409, "refused", "Bring servers back first");
                Ok(())
            })
            .await;
    }
    writes_work(&cluster, stays).await;
    // The one that is down may go; then one of two; the last one stays.
    let two = cluster_command(&cluster, stays, &["remove", away]).await.expect(0);
    assert!(two.stderr.contains("warning: two voters are left"), "{two:?}");
    let one = cluster_command(&cluster, &primary, &["remove", &primary]).await.expect(0);
    assert!(one.stderr.contains("warning: one voter is left"), "{one:?}");
    assert_eq!(cluster.primary().await, *stays);
    let last = change(&cluster, stays, json!({"op": "remove", "name": stays})).await;
    check_problem(&last, 409, "refused", "only voter");
    writes_work(&cluster, stays).await;
}

#[tokio::test]
async fn a_wiped_server_replaces_its_old_self_in_one_change() {
    let cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let name = cluster.backup().await;
    writes_work(&cluster, &name).await;
    let old = cluster.status(&name).await.expect("its status")["node_id"].as_u64().expect("a node id");
    cluster.wipe(&name);
    cluster.start_server(&name);
    let joined = cluster
        .until(&format!("{name} has joined again"), async || {
            let overview = overview(&cluster, &primary).await?;
            match overview["membership"]["learners"] == json!([name]) {
                true => Ok(overview),
                false => Err(overview["membership"].to_string()),
            }
        })
        .await;
    // Old and new side by side: the old one votes, and is away.
    assert_eq!(sorted(&joined["membership"]["voters"]), ["S1", "S2", "S3"]);
    assert_eq!(joined["servers"].as_array().map(Vec::len), Some(4), "{joined}");
    let index = |membership: &Value| -> u64 {
        let log_id = membership["log_id"].as_str().expect("a log id");
        log_id.split_once('-').and_then(|(_, index)| index.parse().ok()).expect("term-index")
    };
    let before = index(&joined["membership"]);
    cluster_command(&cluster, &name, &["promote", &name]).await.expect(0);
    let after = overview(&cluster, &primary).await.expect("the cluster");
    assert_eq!(sorted(&after["membership"]["voters"]), ["S1", "S2", "S3"]);
    assert_eq!(after["membership"]["learners"], json!([]));
    // The joint step and the new membership, nothing between.
    assert_eq!(index(&after["membership"]) - before, 2, "{after}");
    let new = server(&after, &name).expect("one server of that name")["node_id"].as_u64().expect("a node id");
    assert!(new > 3 && new != old, "node {new} after {old}");
    cluster.wait_ready(&name).await;
    writes_work(&cluster, &name).await;
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn a_server_that_moves_is_known_under_its_new_address() {
    let mut cluster = Cluster::start(3).await;
    let before = overview(&cluster, "S1").await.expect("the cluster");
    for name in [cluster.backup().await, cluster.primary().await] {
        move_away(&mut cluster, &[&name]).await;
        let after = overview(&cluster, &name).await.expect("the cluster");
        let id = |overview: &Value| server(overview, &name).expect("the server")["node_id"].clone();
        assert_eq!(id(&after), id(&before), "{name} is who it was");
    }
    cluster.equal_hashes().await;
}

/// Who stays has no majority until the others have found it.
#[tokio::test]
async fn most_servers_may_move_at_once() {
    let mut cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let backups: Vec<String> = cluster.names().into_iter().filter(|name| *name != primary).collect();
    move_away(&mut cluster, &[&backups[0], &backups[1]]).await;
    // The primary with a backup: the one that stays has to be found by both.
    let primary = cluster.primary().await;
    let backup = cluster.backup().await;
    move_away(&mut cluster, &[&primary, &backup]).await;
    cluster.equal_hashes().await;
}

/// Kills the servers, starts them elsewhere, and waits until everybody knows where.
async fn move_away(cluster: &mut Cluster, names: &[&str]) {
    for name in names {
        cluster.kill9(name);
        let moved = cluster.server_mut(name);
        (moved.listen, moved.peer) = (Port::reserve(), Port::reserve());
    }
    for name in names {
        cluster.start_server(name);
    }
    for name in names {
        let (url, peer) = (cluster.url(name), cluster.server(name).peer.address());
        for via in cluster.names() {
            cluster
                .until(&format!("{via} knows where {name} is"), async || {
                    let overview = overview(cluster, &via).await?;
                    let found = server(&overview, name)?;
                    let right = found["url"] == url && found["peer"] == peer && found["ready"] == true;
                    if right { Ok(()) } else { Err(found.to_string()) }
                })
                .await;
        }
        writes_work(cluster, name).await;
    }
}

/// A server of another cluster, at an address of this one: neither cluster takes anything from the other.
#[tokio::test]
async fn another_clusters_server_is_not_taken_for_ours() {
    let cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let name = cluster.backup().await;
    writes_work(&cluster, &name).await;
    let ours = cluster.status(&name).await.expect("its status");
    cluster.wipe(&name);
    cluster.server(&name).init();
    cluster.start_server(&name);
    cluster
        .until("the stranger is up", async || {
            let status = cluster.status(&name).await?;
            if status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    let status = cluster.status(&name).await.expect("its status");
    assert_ne!(status["cluster_id"], ours["cluster_id"]);
    writes_work(&cluster, &primary).await;
    let seen = overview(&cluster, &primary).await.expect("the cluster");
    assert_eq!(
        server(&seen, &name).expect("our server")["state"],
        "away",
        "a stranger's status was believed"
    );
    let status = cluster.status(&name).await.expect("its status");
    assert_eq!(status["revision"], 0, "the stranger took our entries: {status}");
    // Whoever is the primary by now, and comes to ask the stranger.
    cluster
        .until("a primary's log says why", async || {
            let others = cluster.names().into_iter().filter(|other| *other != name);
            let told = others
                .map(|other| cluster.server(&other).log())
                .any(|log| log.contains("two clusters' addresses are mixed up"));
            if told { Ok(()) } else { Err("no log does".to_owned()) }
        })
        .await;
}
