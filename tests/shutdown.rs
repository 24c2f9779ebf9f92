//! SIGTERM, and servers without a primary.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::load::Load;
use support::{Cluster, Setup};

/// Much shorter than any retry with a pause for an election would allow, on a busy machine as well.
const SOON: Duration = Duration::from_secs(4);

/// Three servers that no stall of a busy machine brings to an election: the only new terms are transfers.
async fn patient_cluster() -> Cluster {
    let flags = vec!["--election-timeout".to_owned(), "2s".to_owned()];
    Cluster::with(Setup { flags, ..Setup::default() }).await
}

/// The revision up to which the server's tables were on disk when it started: it replays what lies behind.
async fn flushed_at_start(cluster: &Cluster, name: &str) -> u64 {
    let status = cluster.status(name).await.expect("its status");
    status["flushed"].as_u64().expect("a revision")
}

#[tokio::test]
async fn the_primary_hands_over_and_no_client_notices() {
    let cluster = patient_cluster().await;
    let load = Load::start(8, &["hits", "stock"], &cluster.client());
    for _ in 0..3 {
        load.progress(&cluster, 200).await;
        let primary = cluster.primary().await;
        let term = cluster.status(&primary).await.expect("its status")["term"].as_u64().expect("a term");
        let began = Instant::now();
        assert_eq!(cluster.terminate(&primary).await.code(), Some(0));
        assert!(began.elapsed() < SOON, "it took {:?} to stop", began.elapsed());
        let log = cluster.server(&primary).log();
        assert!(log.contains("leadership handed over"), "{}", cluster.server(&primary).tail());
        load.progress(&cluster, 200).await;
        let next = cluster.primary().await;
        let now = cluster.status(&next).await.expect("its status")["term"].as_u64().expect("a term");
        assert_eq!(now, term + 1, "one transfer, no elections that failed");
        cluster.restart(&primary).await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// A client without a session cannot retry what it does not know: an orderly stop leaves it nothing unknown either.
#[tokio::test]
async fn an_orderly_stop_answers_what_it_has_taken() {
    let cluster = patient_cluster().await;
    let primary = cluster.primary().await;
    let url = format!("{}/v1/counter/add", cluster.url(&primary));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (http, url) = (cluster.http.clone(), url.clone());
        clients.spawn(async move {
            let mut added = 0_i64;
            loop {
                match http.post(&url, &json!({"name": "orderly", "amount": 1})).await {
                    Ok(reply) if reply.status == 200 => added += 1,
                    Ok(reply) => {
                        let problem = reply.json();
                        assert_eq!(problem["outcome"], "not_applied", "{problem}");
                        return added;
                    }
                    Err(e) if !e.sent => return added,
                    Err(e) => panic!("a request was left without an answer: {e:?}"),
                }
            }
        });
    }
    cluster
        .until("the load has begun", async || {
            let revision = cluster.status(&primary).await?["revision"].as_u64().unwrap_or(0);
            if revision > 300 { Ok(()) } else { Err(format!("revision {revision}")) }
        })
        .await;
    assert_eq!(cluster.terminate(&primary).await.code(), Some(0));
    let mut sum = 0;
    while let Some(added) = clients.join_next().await {
        sum += added.expect("a client");
    }
    let next = cluster.primary().await;
    let value = cluster.http.json(&format!("{}/v1/counter/get?name=orderly", cluster.url(&next))).await;
    assert_eq!(value.expect("the counter")["value"], sum, "as many as were acknowledged");
}

#[tokio::test]
async fn what_was_applied_is_flushed() {
    let cluster = Cluster::start(1).await;
    let url = format!("{}/v1/counter/add", cluster.url("S1"));
    for n in 0..200 {
        let reply =
            cluster.http.post(&url, &json!({"name": format!("c{n}"), "amount": n})).await.expect("an answer");
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let before = cluster.status("S1").await.expect("its status");
    assert_eq!(cluster.terminate("S1").await.code(), Some(0));
    cluster.start_server("S1");
    cluster.wait_ready("S1").await;
    let flushed = flushed_at_start(&cluster, "S1").await;
    assert_eq!(flushed, before["revision"].as_u64().expect("a revision"), "nothing is left to replay");
    let after = cluster.status("S1").await.expect("its status");
    assert_eq!(after["state_hash"], before["state_hash"]);
}

/// Watches and slow clients end with the server instead of keeping it.
#[tokio::test]
async fn open_watches_do_not_keep_a_server() {
    let cluster = Cluster::start(1).await;
    let mut watch =
        cluster.http.stream(&format!("{}/v1/watch", cluster.url("S1")), None).await.expect("a watch");
    let began = Instant::now();
    assert_eq!(cluster.terminate("S1").await.code(), Some(0));
    assert!(began.elapsed() < SOON, "it took {:?} to stop", began.elapsed());
    while let Ok(Some(_)) = watch.chunk().await {}
}

/// While it joins, there is nothing to hand over and nothing to wait for.
#[tokio::test]
async fn a_server_that_cannot_join_yet_stops_at_once() {
    let mut cluster = Cluster::start(1).await;
    cluster.kill9("S1");
    cluster.add("S2");
    cluster.start_server("S2");
    cluster
        .until("S2 tries to join", async || {
            let log = cluster.server("S2").log();
            if log.contains("cannot join yet") { Ok(()) } else { Err(log) }
        })
        .await;
    assert_eq!(cluster.terminate("S2").await.code(), Some(0));
}

#[tokio::test]
async fn a_missing_primary_is_no_reason_to_restart_a_server() {
    let cluster = Cluster::with(Setup::default()).await;
    let stays = cluster.backup().await;
    for name in cluster.names().iter().filter(|name| **name != stays) {
        cluster.kill9(name);
    }
    let url = cluster.url(&stays);
    let problem = cluster
        .until("it is not ready", async || {
            cluster.http.ok(&format!("{url}/healthz")).await?;
            let reply = cluster.http.get(&format!("{url}/readyz")).await?;
            if reply.status == 503 { Ok(reply.json()) } else { Err(format!("{reply:?}")) }
        })
        .await;
    assert_eq!(problem["code"], "not_ready", "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("primary")), "{problem}");
    // Its own pages and stale reads go on; what needs a majority says what is missing.
    let status = cluster.status(&stays).await.expect("its status");
    assert_eq!((&status["ready"], &status["primary"]), (&json!(false), &json!(null)), "{status}");
    cluster.http.ok(&format!("{url}/metrics")).await.expect("metrics");
    cluster.http.ok(&format!("{url}/v1/counter/get?read=stale")).await.expect("a stale read");
    let overview = cluster.http.json(&format!("{url}/v1/cluster")).await.expect("the cluster");
    assert_eq!((&overview["primary"], &overview["settled"]), (&json!(null), &json!(false)), "{overview}");
    let write =
        cluster.http.post(&format!("{url}/v1/counter/add"), &json!({"amount": 1})).await.expect("an answer");
    assert_eq!((write.status, write.code().as_str()), (503, "no_primary"), "{write:?}");
    assert_eq!(write.json()["outcome"], "not_applied", "{write:?}");
    let read = cluster.http.get(&format!("{url}/v1/counter/get")).await.expect("an answer");
    assert_eq!((read.status, read.code().as_str()), (503, "no_primary"), "{read:?}");
    cluster.http.ok(&format!("{url}/healthz")).await.expect("it is alive all the same");
    // And it stops in order, with nobody to hand anything to.
    assert_eq!(cluster.terminate(&stays).await.code(), Some(0));
}

/// What happens twenty times a second is not told twenty times a second.
#[tokio::test]
async fn the_log_tells_once_that_a_server_is_away_and_once_that_it_is_back() {
    // A member is away after some of these times.
    let flags = vec!["--election-timeout".to_owned(), "600ms".to_owned()];
    let cluster = Cluster::with(Setup { flags, ..Setup::default() }).await;
    let primary = cluster.primary().await;
    let away = cluster.backup().await;
    let told = |what: &str| {
        let log = cluster.server(&primary).log();
        log.lines().filter(|line| line.contains(what) && line.contains(&format!("name={away}"))).count()
    };
    let until_told = async |what: &str, times: usize| {
        let until = format!("{primary} says of {away} {times} times: {what}");
        let probe = async || if told(what) == times { Ok(()) } else { Err(cluster.server(&primary).tail()) };
        cluster.until(&until, probe).await;
    };
    assert_eq!((told("a member is away"), told("a member is back")), (0, 0), "nobody was away");
    cluster.kill9(&away);
    until_told("a member is away", 1).await;
    cluster.restart(&away).await;
    until_told("a member is back", 1).await;
    // At its address another one answers, who is not a member.
    cluster.wipe(&away);
    until_told("a member is away", 2).await;
    cluster.start_server(&away);
    cluster.wait_ready(&away).await;
    assert_eq!(told("a member is away"), 2, "once is enough");
    for name in cluster.names() {
        assert_eq!(cluster.terminate(&name).await.code(), Some(0));
        let log = cluster.server(&name).log();
        assert!(!log.contains("heartbeat") && !log.contains("ERROR"), "{}", cluster.server(&name).tail());
        assert!(log.lines().count() < 60, "{log}");
    }
}
