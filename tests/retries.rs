//! Retries that are forced: a request is carried out, its reply is lost on the way, and the client asks again. It is
//! applied once and gets the same reply, through any server, after whatever happened in between.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use quorate::client::Group;
use serde_json::json;
use support::http::{Numbered, Reply};
use support::load::Load;
use support::{Cluster, Setup};

/// Longer than any of these tests.
const TTL: u64 = 600_000;
const NAME: &str = "hits";

async fn proxied(flags: &[&str]) -> Cluster {
    let flags = flags.iter().map(ToString::to_string).collect();
    Cluster::with(Setup { proxied: true, flags, ..Setup::default() }).await
}

/// Sends a request to `server` and loses its reply, which is returned: so it was carried out, and the client does not
/// know.
async fn lose_reply(cluster: &Cluster, server: &str, request: &Numbered) -> Reply {
    let proxy = cluster.proxy(server);
    let lost = proxy.lose_next();
    let seen = cluster.http.numbered(&proxy.url(), request).await;
    assert!(seen.is_err(), "the reply was to be lost: {seen:?}");
    lost.await.expect("the server replied")
}

/// Sends a request to `server` until it has an answer that stands.
async fn send(cluster: &Cluster, server: &str, request: &Numbered) -> Reply {
    let url = cluster.url(server);
    cluster
        .until(&format!("{server} answers {request:?}"), async || {
            match cluster.http.numbered(&url, request).await? {
                reply if reply.is_passing() => Err(format!("{reply:?}")),
                reply => Ok(reply),
            }
        })
        .await
}

/// The retry gets the reply that was lost, through each server that runs.
async fn assert_same_reply(cluster: &Cluster, request: &Numbered, lost: &Reply) {
    for server in cluster.running() {
        assert_eq!(&send(cluster, &server, request).await, lost, "the retry through {server}");
    }
}

async fn assert_value(cluster: &Cluster, expected: i64) {
    for server in cluster.running() {
        let url = format!("{}/v1/counter/get?name={NAME}", cluster.url(&server));
        let value = cluster.until("the counter can be read", async || cluster.http.json(&url).await).await;
        assert_eq!(value["value"], expected, "{value} from {server}");
    }
}

#[tokio::test]
async fn across_a_failover() {
    let cluster = proxied(&[]).await;
    let primary = cluster.primary().await;
    let session = cluster.http.session(&cluster.url(&primary), TTL).await;
    let first = Numbered::add(session, 1, NAME, 5);
    let lost = lose_reply(&cluster, &primary, &first).await;
    assert_eq!((lost.status, lost.json()["value"].as_i64()), (200, Some(5)));

    cluster.kill9(&primary);
    assert_same_reply(&cluster, &first, &lost).await;
    cluster.restart(&primary).await;
    assert_same_reply(&cluster, &first, &lost).await;

    // The same number does not get through with another body; and once acknowledged, not at all.
    let backup = cluster.backup().await;
    let other = send(&cluster, &backup, &Numbered::add(session, 1, NAME, 6)).await;
    assert_eq!((other.status, other.code().as_str()), (409, "sequence_reused"), "{other:?}");
    let next = Numbered { acked: 1, ..Numbered::add(session, 2, NAME, 7) };
    assert_eq!(send(&cluster, &backup, &next).await.json()["value"], 12);
    let late = send(&cluster, &primary, &first).await;
    assert_eq!((late.status, late.code().as_str()), (409, "sequence_acked"), "{late:?}");
    assert_value(&cluster, 12).await;
    cluster.equal_hashes().await;
}

/// Through a backup the reply can be lost on both ways: between client and backup, here.
#[tokio::test]
async fn across_a_failover_through_a_backup() {
    let cluster = proxied(&[]).await;
    let (primary, backup) = (cluster.primary().await, cluster.backup().await);
    let session = cluster.http.session(&cluster.url(&backup), TTL).await;
    let request = Numbered::add(session, 1, NAME, 5);
    let lost = lose_reply(&cluster, &backup, &request).await;
    assert_eq!(lost.status, 200, "{lost:?}");
    cluster.kill9(&primary);
    assert_same_reply(&cluster, &request, &lost).await;
    assert_value(&cluster, 5).await;
    cluster.restart(&primary).await;
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn across_a_restart_of_all() {
    let cluster = proxied(&[]).await;
    let primary = cluster.primary().await;
    let session = cluster.http.session(&cluster.url(&primary), TTL).await;
    let add = Numbered::add(session, 1, NAME, 5);
    let added = lose_reply(&cluster, &primary, &add).await;
    // A refusal is a reply like any other: what it said stays said, whatever the counter's value is by then.
    let body = json!({"name": NAME, "expect": 77, "value": 0});
    let compare = Numbered { session, sequence: 2, acked: 0, command: "counter/compare_and_set", body };
    let refused = lose_reply(&cluster, &primary, &compare).await;
    assert_eq!((refused.status, refused.json()["current"].as_i64()), (409, Some(5)), "{refused:?}");
    assert_eq!(send(&cluster, &primary, &Numbered::add(session, 3, NAME, 72)).await.json()["value"], 77);

    // From the log, then from a flush: SIGTERM flushes.
    cluster.kill9_all();
    for restart in ["after kill -9", "after SIGTERM"] {
        for name in cluster.names() {
            cluster.start_server(&name);
        }
        cluster.wait_all_ready().await;
        for (request, lost) in [(&add, &added), (&compare, &refused)] {
            assert_same_reply(&cluster, request, lost).await;
        }
        assert_value(&cluster, 77).await;
        cluster.equal_hashes().await;
        if restart == "after kill -9" {
            for name in cluster.names() {
                let status = cluster.terminate(&name).await;
                assert!(status.success(), "{name} ended with {status}");
            }
        }
    }
}

/// The server that has the state from a snapshot alone, not from the log, knows the reply too.
#[tokio::test]
async fn across_a_snapshot_install() {
    let cluster = proxied(&["--log-keep", "10"]).await;
    let primary = cluster.primary().await;
    let down = cluster.backup().await;
    cluster.kill9(&down);
    let session = cluster.http.session(&cluster.url(&primary), TTL).await;
    let request = Numbered::add(session, 1, NAME, 5);
    let lost = lose_reply(&cluster, &primary, &request).await;
    let revision = lost.json()["revision"].as_u64().expect("a revision");

    let load = Load::start(8, &["filler"], &cluster.client());
    cluster.until_purged(&primary, revision).await;
    load.verify(&cluster).await;
    let before = cluster.snapshots(&down);
    cluster.restart(&down).await;
    assert!(cluster.snapshots(&down) > before, "{down} was to get a snapshot");
    cluster.until_purged(&down, revision).await;
    let transfer = json!({"to": down});
    let url = format!("{}/v1/cluster/transfer", cluster.url(&primary));
    let reply = cluster.http.post(&url, &transfer).await.expect("an answer to a transfer");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(cluster.primary().await, down);

    assert_same_reply(&cluster, &request, &lost).await;
    assert_value(&cluster, 5).await;
    cluster.equal_hashes().await;
}

/// Up to the end of the session the retry gets the reply, after it `session_expired`: never a second application.
#[tokio::test]
async fn across_a_session_expiry() {
    let cluster = proxied(&[]).await;
    let primary = cluster.primary().await;
    let session = cluster.http.session(&cluster.url(&primary), 1_500).await;
    let request = Numbered::add(session, 1, NAME, 5);
    let lost = lose_reply(&cluster, &primary, &request).await;
    assert_eq!(send(&cluster, &primary, &request).await, lost);
    for server in cluster.names() {
        let expired = cluster
            .until("the session has expired", async || {
                let reply = send(&cluster, &server, &request).await;
                if reply == lost { Err("the lost reply again".to_owned()) } else { Ok(reply) }
            })
            .await;
        assert_eq!((expired.status, expired.code().as_str()), (410, "session_expired"), "{expired:?}");
        assert_eq!(expired.json()["outcome"], "unknown", "{expired:?}");
    }
    assert_value(&cluster, 5).await;
    cluster.equal_hashes().await;
}

/// The client sends a request again before the first attempt has come to an end, through all servers at a time: the
/// same delta stands in the log several times, also within one entry.
#[tokio::test]
async fn at_the_same_time() {
    let cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let session = cluster.http.session(&cluster.url(&primary), TTL).await;
    let mut shared_an_entry = false;
    let rounds = 20;
    for sequence in 1..=rounds {
        let before = cluster.status(&primary).await.expect("the primary's status");
        let request = Numbered { acked: sequence - 1, ..Numbered::add(session, sequence, NAME, 5) };
        // Four to the primary: what waits there goes into one entry.
        let servers = [cluster.urls(), vec![cluster.url(&primary); 3]].concat();
        let replies = join_all(servers.iter().map(|url| cluster.http.numbered(url, &request))).await;
        let replies: BTreeSet<String> =
            replies.into_iter().map(|reply| reply.expect("a reply").body).collect();
        assert_eq!(replies.len(), 1, "different replies to sequence {sequence}: {replies:?}");

        let after = cluster.status(&primary).await.expect("the primary's status");
        let number = |status: &serde_json::Value, field: &str| status[field].as_u64().expect("a number");
        let entries = number(&after, "last_log") - number(&before, "last_log");
        let deltas = number(&after, "revision") - number(&before, "revision");
        // All of them reached the log: nothing before it tells a repetition.
        assert_eq!(deltas, servers.len() as u64);
        shared_an_entry |= entries < deltas;
    }
    assert!(shared_an_entry, "in no round two of the requests shared an entry: this test has shown nothing");
    assert_value(&cluster, 5 * rounds as i64).await;

    // With two bodies for one number, one is applied and the other refused.
    let sequence = rounds + 1;
    let url = cluster.url(&primary);
    let bodies = [1, 2].map(|amount| Numbered::add(session, sequence, NAME, amount));
    let replies = join_all(bodies.iter().map(|request| cluster.http.numbered(&url, request))).await;
    let mut statuses: Vec<u16> = replies.into_iter().map(|reply| reply.expect("a reply").status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    cluster.equal_hashes().await;
}

/// The client library on a network that loses each seventh reply, while the primary is killed.
#[tokio::test]
async fn by_the_client_library() {
    let cluster = proxied(&[]).await;
    let load = Load::start(8, &["hits", "stock"], &cluster.client());
    load.progress(&cluster, 100).await;
    for name in cluster.names() {
        cluster.proxy(&name).lose_every(7);
    }
    load.progress(&cluster, 300).await;
    let primary = cluster.primary().await;
    cluster.kill9(&primary);
    load.progress(&cluster, 300).await;
    cluster.restart(&primary).await;
    load.progress(&cluster, 300).await;
    let lost: u64 = cluster.names().iter().map(|name| cluster.proxy(name).heal()).sum();
    assert!(lost > 50, "only {lost} replies were lost");
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// A group is content with as many replies as it wants; what was carried out without them is not called undone.
#[tokio::test]
async fn a_group_with_one_server_away() {
    let cluster = Cluster::start(3).await;
    cluster.kill9(&cluster.backup().await);
    let client = cluster.client().timeout(Duration::from_secs(5)).build().expect("a client");
    let counter = |group| client.group(group).counter(NAME);
    assert_eq!(counter(Group::Majority).add(5).await.expect("two of three").value, 5);
    assert_eq!(counter(Group::First).add(5).await.expect("one of three").value, 10);
    let error = counter(Group::All).add(5).await.expect_err("two of three are not all");
    assert!(error.is_unknown() && error.to_string().contains("only 2 of 3 servers have replied"), "{error}");
    assert_value(&cluster, 15).await;
}
