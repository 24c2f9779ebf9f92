//! Passive mode: the primary alone serves. And a switch of the mode under load, which loses and doubles nothing.

mod support;

use serde_json::json;
use support::Cluster;
use support::load::Load;

const CLIENTS: usize = 6;
const COUNTERS: [&str; 2] = ["hits", "stock"];
const SWING: u64 = 300;

async fn set_mode(cluster: &Cluster, mode: &str) {
    let primary = cluster.primary().await;
    let url = format!("{}/v1/cluster/settings", cluster.url(&primary));
    let set = cluster.http.post(&url, &json!({ "mode": mode })).await.expect("an answer");
    assert_eq!((set.status, &set.json()["settings"]["mode"]), (200, &json!(mode)));
}

/// Waits until what `name` says to a stale read shows that it knows the mode.
async fn until_it_serves(cluster: &Cluster, name: &str, serves: bool) {
    let url = format!("{}/v1/counter/get?read=stale", cluster.url(name));
    cluster
        .until(&format!("{name} serves: {serves}"), async || {
            let reply = cluster.http.get(&url).await.map_err(|e| format!("{e:?}"))?;
            if (reply.status == 200) == serves { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
}

#[tokio::test]
async fn a_backup_sends_its_clients_to_the_primary() {
    let cluster = Cluster::start(3).await;
    let (primary, backup) = (cluster.primary().await, cluster.backup().await);
    let url = cluster.url(&backup);
    let session = cluster.http.session(&url, 60_000).await;
    set_mode(&cluster, "passive").await;
    until_it_serves(&cluster, &backup, false).await;

    let posts = [
        ("/v1/counter/add", json!({"amount": 1})),
        ("/v1/batch", json!([{"counter": {"add": {"amount": 1}}}])),
        ("/v1/sessions", json!({})),
        (&format!("/v1/sessions/{session}/keepalive"), json!({})),
    ];
    for (path, body) in posts {
        let reply = cluster.http.post(&format!("{url}{path}"), &body).await.expect("an answer");
        let said = reply.json();
        assert_eq!((reply.status, reply.code().as_str()), (421, "not_primary"), "{path}: {said}");
        assert_eq!(said["primary"], cluster.url(&primary), "{path}");
        assert_eq!(said["outcome"], "not_applied", "{path}");
    }
    for path in ["/v1/counter/get", "/v1/counter/get?read=stale", "/v1/counter/list", "/v1/watch"] {
        let reply = cluster.http.get(&format!("{url}{path}")).await.expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (421, "not_primary"), "{path}");
    }
    for path in ["/v1/status", "/v1/cluster", "/v1/log", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(cluster.http.get(&format!("{url}{path}")).await.expect("an answer").status, 200, "{path}");
    }
    let cluster_says = cluster.http.json(&format!("{url}/v1/cluster")).await.expect("the cluster");
    assert_eq!(cluster_says["mode"], "passive");

    // A client that knows the backup alone is sent on.
    let client = quorate::client::Client::builder().servers([&url]).build().expect("a client");
    assert_eq!(client.counter("hits").add(5).await.expect("an add").data.value, 5);

    // A server that starts knows the mode before it answers anybody.
    cluster.kill9(&backup);
    cluster.restart(&backup).await;
    let reply = cluster.http.get(&format!("{url}/v1/counter/get?read=stale")).await.expect("an answer");
    assert_eq!(reply.status, 421);
    set_mode(&cluster, "active").await;
    until_it_serves(&cluster, &backup, true).await;
}

#[tokio::test]
async fn clients_find_the_new_primary_and_a_switch_loses_and_doubles_nothing() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for mode in ["passive", "active", "passive"] {
        load.progress(&cluster, SWING).await;
        set_mode(&cluster, mode).await;
        load.progress(&cluster, SWING).await;
        let primary = cluster.primary().await;
        cluster.kill9(&primary);
        load.progress(&cluster, SWING).await;
        cluster.restart(&primary).await;
        assert_ne!(cluster.primary().await, primary, "the old one is a backup now");
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}
