//! Changes of the membership that meet each other, or are left half done.

use std::time::Duration;

use quorate_cluster::error::{Attempt, Code};
use quorate_cluster::message::{MemberOp, MembersRequest};
use quorate_cluster::node::{Node, Timing};

use crate::members::change;
use crate::support::{Cluster, Options, eventually, within};

/// Each decides on the voters that it saw: one must not undo the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_changes_at_once_are_both_made() {
    let mut cluster = Cluster::single(Options::patient()).await;
    for name in ["S2", "S3"] {
        cluster.join(name).await;
    }
    let node = cluster.node("S1");
    let both = async |op: MemberOp| {
        let one = async |name: &str| {
            let request = MembersRequest::new(op, name.to_owned());
            node.change_members(request, within(20_000)).await.unwrap()
        };
        // Each asks one of them first. So the one that asks S3 has looked before the other is done, and goes on after.
        cluster.net.delay("S1", "S3", Duration::from_millis(200));
        tokio::join!(one("S2"), one("S3"));
        cluster.net.heal();
        let members = node.cluster_status().await.unwrap().members;
        members
            .iter()
            .filter(|member| member.voter)
            .map(|member| member.info.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(both(MemberOp::Promote).await, ["S1", "S2", "S3"]);
    assert_eq!(both(MemberOp::Demote).await, ["S1"]);
    drop(node);
    cluster.finish().await;
}

/// Asks the primary for a change, and returns when the first of its two steps is with the other servers. The primary
/// hears nothing of that, and nobody waits for the change any more.
async fn begin(cluster: &Cluster, primary: &str, op: MemberOp, name: &str) {
    // There and back, it is time enough to cut the answers off before the second step begins.
    let way = Duration::from_millis(150);
    let others = cluster.others(primary);
    for other in &others {
        cluster.net.delay(primary, other, way);
        cluster.net.delay(other, primary, way);
    }
    let backup = others.iter().find(|other| *other != name).unwrap();
    let before = cluster.status(primary).last_log;
    let node = cluster.node(primary);
    let membership = node.cluster_status().await.unwrap().membership;
    let first_step = async {
        eventually("the first step begins", async || cluster.status(primary).last_log > before).await;
        others.iter().for_each(|other| cluster.net.cut(other, primary));
        eventually("the first step arrives", async || cluster.status(backup).last_log > before).await;
    };
    tokio::select! {
        done = change(&node, op, name, &membership) => panic!("done already: {done:?}"),
        () = first_step => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_client_goes_away_is_not_left_half_done() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let name = cluster.others(&primary).remove(1);
    begin(&cluster, &primary, MemberOp::Demote, &name).await;
    cluster.net.heal();
    let node = cluster.node(&primary);
    eventually("both steps are made", async || {
        let status = node.cluster_status().await.unwrap();
        !status.joint && status.members.iter().all(|member| member.voter == (member.info.name != name))
    })
    .await;
    cluster.finish().await;
}

/// Kills the primary between the two steps of a change, and starts it again. Gives the primary, which knows of it.
async fn leave_half_done(cluster: &Cluster, op: MemberOp, name: &str) -> Node {
    let primary = cluster.primary().await;
    begin(cluster, &primary, op, name).await;
    cluster.net.isolate(&primary);
    cluster.kill(&primary).await;
    cluster.net.heal();
    cluster.start(&primary).await;
    let node = cluster.node(&cluster.primary().await);
    assert!(node.cluster_status().await.unwrap().joint, "the new primary has finished it by itself");
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_left_half_done_is_finished_by_the_next_one() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let name = cluster.others(&cluster.primary().await).remove(1);
    let node = leave_half_done(&cluster, MemberOp::Demote, &name).await;
    let error = change(&node, MemberOp::Demote, &name, "1-1").await.unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::Changed, Attempt::NotApplied), "{error:?}");
    let joint = node.cluster_status().await.unwrap().membership;
    let reply = change(&node, MemberOp::Demote, &name, &joint).await.unwrap();
    assert_eq!((reply.voters.len(), &reply.learners), (2, &vec![name.clone()]), "{reply:?}");

    // It may as well be taken back.
    drop(node);
    cluster.change(MemberOp::Promote, &name).await;
    let name = cluster.others(&cluster.primary().await).remove(1);
    let node = leave_half_done(&cluster, MemberOp::Remove, &name).await;
    let joint = node.cluster_status().await.unwrap().membership;
    let reply = change(&node, MemberOp::Promote, &name, &joint).await.unwrap();
    assert_eq!((reply.voters.len(), reply.learners.len()), (3, 0), "{reply:?}");
    eventually("all is settled", async || node.cluster_status().await.unwrap().settled).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_server_replaces_the_old_one_though_that_was_left_half_done() {
    let ms = Duration::from_millis;
    // Patient, but who is dead must be known to be before the new one gives up joining.
    let timing = Timing { heartbeat: ms(100), election: (ms(600), ms(1000)) };
    let mut cluster = Cluster::start_with(Options { timing, ..Options::default() }).await;
    let wiped = cluster.others(&cluster.primary().await).remove(1);
    let old = cluster.status(&wiped).node_id;
    cluster.kill(&wiped).await;
    cluster.wipe(&wiped);
    cluster.start(&wiped).await;
    eventually("it has caught up, as a learner", async || cluster.node(&wiped).ready()).await;
    leave_half_done(&cluster, MemberOp::Promote, &wiped).await;
    let reply = cluster.change(MemberOp::Promote, &wiped).await;
    assert_eq!((reply.voters.len(), reply.learners.len()), (3, 0), "{reply:?}");
    let members = cluster.node(&cluster.primary().await).cluster_status().await.unwrap().members;
    assert!(members.iter().all(|member| member.node_id != old && member.voter), "{members:?}");
    cluster.finish().await;
}
