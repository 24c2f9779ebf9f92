//! Servers that were removed: they are told, serve nothing, and come back only when they are asked to.

use std::time::{Duration, Instant};

use quorate_cluster::error::{Attempt, Code, NodeError};
use quorate_cluster::message::{MemberOp, MembersRequest};
use quorate_cluster::node::ReadLevel;

use crate::support::client::Client;
use crate::support::{Cluster, Options, eventually, tally, throughout, within};

async fn told(cluster: &Cluster, name: &str) {
    let told = eventually("it is told that it was removed", async || cluster.node(name).is_removed());
    if tokio::time::timeout(Duration::from_secs(20), told).await.is_err() {
        let all: Vec<_> = cluster.names().iter().map(|name| cluster.status(name)).collect();
        panic!("{name} is not told that it was removed: {all:#?}");
    }
}

/// Whatever is asked of it is answered with the cause, and with who to ask instead.
async fn check_serves_nothing(cluster: &Cluster, name: &str) {
    let node = cluster.node(name);
    let url = format!("http://{}", cluster.primary_among(&cluster.others(name)).await);
    let removed = |what: &str, error: NodeError| {
        assert_eq!((error.code, error.attempt), (Code::NotReady, Attempt::NotApplied), "{what}: {error:?}");
        assert_eq!(error.primary.as_deref(), Some(&*url), "{what}");
        for part in ["was removed from the cluster", &url, &format!("promote {name}"), "--join"] {
            assert!(error.detail.contains(part), "{what} does not say {part:?}: {error}");
        }
    };
    let begun = Instant::now();
    for level in [ReadLevel::Linearizable, ReadLevel::Lease, ReadLevel::Stale { max_age: None }] {
        removed("a read", node.read_point(level, within(10_000)).await.unwrap_err());
    }
    removed("a command", node.propose(tally::add("hits"), within(10_000)).await.unwrap_err());
    removed("the wait for a primary", node.await_primary(Duration::from_secs(10)).await.unwrap_err());
    removed("the cluster's status", node.cluster_status().await.unwrap_err());
    removed("the log", node.log_page(1, 10).await.unwrap_err());
    let request = MembersRequest::new(MemberOp::Promote, name.to_owned());
    removed("a change", node.change_members(request, within(10_000)).await.unwrap_err());
    removed("readiness", node.check_ready().unwrap_err());
    assert!(begun.elapsed() < Duration::from_secs(5), "at once, not when the time is up");
    let status = cluster.status(name);
    assert_eq!((status.ready, status.leader), (false, None), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_server_is_told_also_after_a_restart_and_can_be_taken_back_as_it_is() {
    let mut cluster = Cluster::start_three().await;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    client.add().await;
    let name = cluster.others(&cluster.primary().await).pop().unwrap();
    let node_id = cluster.status(&name).node_id;
    cluster.change(MemberOp::Remove, &name).await;
    told(&cluster, &name).await;
    check_serves_nothing(&cluster, &name).await;
    // Its view of the cluster is as old as before the restart; and a new address is no way in.
    cluster.kill(&name).await;
    cluster.move_server(&name);
    cluster.start(&name).await;
    told(&cluster, &name).await;
    check_serves_nothing(&cluster, &name).await;
    let node = cluster.node(&name);
    throughout("it stays outside", Duration::from_secs(1), || node.is_removed()).await;
    let other = cluster.others(&name).remove(0);
    let members = cluster.node(&other).cluster_status().await.unwrap().members;
    assert!(members.iter().all(|member| member.info.name != name), "{members:?}");
    drop(node);

    let reply = cluster.change(MemberOp::Promote, &name).await;
    assert_eq!((reply.voters.len(), reply.learners.len()), (3, 0), "{reply:?}");
    eventually("it is ready again", async || cluster.node(&name).ready()).await;
    assert!(!cluster.node(&name).is_removed());
    assert_eq!(cluster.status(&name).node_id, node_id);
    client.add().await;
    cluster.converge().await;
    assert_eq!(tally::held(&cluster.node(&name), "hits"), 2);
    cluster.finish().await;
}

/// It does not first have to miss the primary, which takes three of the longest election time-outs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_server_that_can_be_reached_is_told_at_once() {
    let options = Options::patient();
    let missed_after = options.timing.election.1 * 3;
    let cluster = Cluster::start_with(options).await;
    let name = cluster.others(&cluster.primary().await).pop().unwrap();
    cluster.change(MemberOp::Remove, &name).await;
    let begun = Instant::now();
    told(&cluster, &name).await;
    assert!(begun.elapsed() < missed_after / 2, "it took {:?}", begun.elapsed());
    check_serves_nothing(&cluster, &name).await;
    let node = cluster.node(&name);
    throughout("it stays told", missed_after, || node.is_removed()).await;
    drop(node);
    cluster.kill(&name).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_be_taken_back_the_moment_it_was_removed() {
    let cluster = Cluster::start_three().await;
    let name = cluster.others(&cluster.primary().await).pop().unwrap();
    cluster.change(MemberOp::Remove, &name).await;
    let reply = cluster.change(MemberOp::Promote, &name).await;
    assert_eq!((reply.voters.len(), reply.learners.len()), (3, 0), "{reply:?}");
    eventually("it is ready again", async || cluster.node(&name).ready()).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_removed_behind_its_back_is_told_when_it_is_back() {
    let cluster = Cluster::start_three().await;
    let old = cluster.primary().await;
    cluster.net.isolate(&old);
    let others = cluster.others(&old);
    let new = cluster.node(&cluster.primary_among(&others).await);
    let request = MembersRequest::new(MemberOp::Remove, old.clone());
    eventually("it is removed", async || new.change_members(request.clone(), within(5000)).await.is_ok())
        .await;
    cluster.net.heal();
    told(&cluster, &old).await;
    check_serves_nothing(&cluster, &old).await;
    cluster.kill(&old).await;
    cluster.finish().await;
}

/// What it knows last will never be committed: no later membership need come for it to be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_server_whose_way_back_was_not_committed_is_told_again() {
    let cluster = Cluster::start_with(Options { servers: 4, ..Options::default() }).await;
    let old = cluster.primary().await;
    let name = cluster.others(&old).pop().unwrap();
    cluster.change(MemberOp::Remove, &name).await;
    told(&cluster, &name).await;
    cluster.net.isolate(&old);
    cluster.net.isolate(&name);
    cluster.net.heal_between(&old, &name);
    let back = MembersRequest::new(MemberOp::Promote, name.clone());
    let node = cluster.node(&old);
    let change = tokio::spawn(async move { node.change_members(back, within(10_000)).await });
    eventually("it hears of its way back", async || !cluster.node(&name).is_removed()).await;
    let majority: Vec<_> = cluster.others(&old).into_iter().filter(|other| *other != name).collect();
    cluster.primary_among(&majority).await;
    cluster.net.heal();
    told(&cluster, &name).await;
    let error = change.await.unwrap().unwrap_err();
    assert_eq!(error.attempt, Attempt::Unknown, "{error:?}");
    check_serves_nothing(&cluster, &name).await;
    cluster.kill(&name).await;
    cluster.finish().await;
}

/// To be without a primary is not to be removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_cut_off_takes_itself_for_a_member() {
    let cluster = Cluster::start_with(Options::default()).await;
    let name = cluster.others(&cluster.primary().await).pop().unwrap();
    cluster.net.isolate(&name);
    let node = cluster.node(&name);
    eventually("it knows no primary", async || node.primary_name().is_none()).await;
    throughout("it is a member", Duration::from_secs(2), || !node.is_removed()).await;
    let error = node.check_ready().unwrap_err();
    assert_eq!(error.code, Code::NoPrimary, "{error:?}");
    drop(node);
    cluster.finish().await;
}

/// What a server that has just started cannot know it does not wait for: another one may have a primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_not_caught_up_and_hears_nobody_says_so_at_once() {
    let cluster = Cluster::start_three().await;
    let name = cluster.others(&cluster.primary().await).pop().unwrap();
    cluster.kill(&name).await;
    cluster.net.isolate(&name);
    cluster.start(&name).await;
    let begun = Instant::now();
    let error = cluster.node(&name).await_primary(Duration::from_secs(10)).await.unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::NotReady, Attempt::NotApplied), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(error.detail.contains("has heard of no primary"), "{error}");
    cluster.finish().await;
}
