//! Membership by hand: join, move, wipe, promote, demote, remove, transfer; each with its compare-and-set.

use std::sync::Arc;
use std::time::Duration;

use quorate_cluster::error::{Attempt, Code, NodeError};
use quorate_cluster::message::{JoinRequest, MemberOp, MembersReply, MembersRequest, Request};
use quorate_cluster::node::{Node, parse_cluster_id};
use quorate_cluster::transport::TcpDial;
use quorate_cluster::transport::frame::Route;
use quorate_cluster::transport::lane::{CallError, Lane};

use crate::support::client::{Client, Load};
use crate::support::{Cluster, Options, PATIENCE, eventually, tally, throughout, within};

pub(crate) async fn change(
    node: &Node,
    op: MemberOp,
    name: &str,
    if_membership: &str,
) -> Result<MembersReply, NodeError> {
    let if_membership = Some(if_membership.to_owned());
    let request = MembersRequest { if_membership, ..MembersRequest::new(op, name) };
    node.change_members(request, within(10_000)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request_without_an_election_by_time_out() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let load = Load::start(&cluster.nodes, 2).await;
    for target in ["S2", "S3", "S1"] {
        // The primary's: a backup may not have heard of the term yet.
        let term = cluster.status(&cluster.primary().await).term;
        let reply = cluster.change(MemberOp::Transfer, target).await;
        assert_eq!(reply.primary.as_deref(), Some(target));
        assert_eq!(cluster.primary().await, target);
        assert_eq!(cluster.status(target).term, term + 1);
    }
    // Without a name, to whoever can take it.
    cluster.change(MemberOp::Transfer, "").await;
    assert_ne!(cluster.primary().await, "S1");
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_decided_on_an_old_membership_is_refused() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let backup = cluster.others(&primary).remove(0);
    let node = cluster.node(&backup);
    let old = node.cluster_status().await.unwrap().membership;
    let new = change(&node, MemberOp::Demote, &backup, &old).await.unwrap();
    assert_ne!(new.membership, old);
    assert_eq!((new.voters.len(), &new.learners), (2, &vec![backup.clone()]));
    for op in [MemberOp::Promote, MemberOp::Demote, MemberOp::Remove, MemberOp::Transfer] {
        let error = change(&node, op, &backup, &old).await.unwrap_err();
        assert_eq!((error.code, error.attempt), (Code::Changed, Attempt::NotApplied), "{op:?}: {error:?}");
        assert!(error.detail.contains(&new.membership), "it says what is there now: {error}");
    }
    let error = change(&node, MemberOp::Promote, &backup, "soon").await.unwrap_err();
    assert_eq!(error.code, Code::BadRequest, "{error:?}");
    // Of two that saw the same membership, one at most does something.
    let (a, b) = futures_util::future::join(
        change(&node, MemberOp::Promote, &backup, &new.membership),
        change(&node, MemberOp::Remove, &backup, &new.membership),
    )
    .await;
    assert!(a.is_ok() ^ b.is_ok(), "{a:?} {b:?}");
    let error = a.and(b).unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::Changed, Attempt::NotApplied), "{error:?}");
    if !cluster.node(&primary).cluster_status().await.unwrap().members.iter().any(|m| m.info.name == backup) {
        cluster.kill(&backup).await;
    }
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_takes_a_voters_place_in_one_change() {
    let mut cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let old = cluster.others(&primary).remove(0);
    cluster.join("S4").await;
    cluster.kill(&old).await;
    let node = cluster.node(&primary);
    let seen = node.cluster_status().await.unwrap().membership;
    let request = |by| MembersRequest {
        op: MemberOp::Replace,
        name: old.clone(),
        if_membership: Some(seen.clone()),
        node: None,
        by,
        if_settings: None,
    };
    let error = node.change_members(request(None), within(10_000)).await.unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::BadRequest, Attempt::NotApplied), "{error:?}");
    let by = cluster.status("S4").node_id;
    let reply = node.change_members(request(Some(by)), within(10_000)).await.unwrap();
    assert!(reply.voters.len() == 3 && reply.voters.contains(&"S4".to_owned()), "{reply:?}");
    assert!(!reply.voters.contains(&old) && reply.learners.is_empty(), "{reply:?}");
    let error = node.change_members(request(Some(by)), within(10_000)).await.unwrap_err();
    assert_eq!(error.code, Code::Changed, "{error:?}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_on_another_address_is_known_under_it() {
    let mut cluster = Cluster::start_three().await;
    let moved = cluster.others(&cluster.primary().await).remove(0);
    let node_id = cluster.status(&moved).node_id;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    client.add().await;
    cluster.kill(&moved).await;
    client.add().await;
    cluster.move_server(&moved);
    cluster.start(&moved).await;
    let address = cluster.address(&moved);
    eventually("all know the new address", async || {
        let mut known = true;
        for node in cluster.nodes.all() {
            let members = node.cluster_status().await.unwrap().members;
            known &= members.iter().any(|m| m.node_id == node_id && m.info.peer == address && m.voter);
        }
        known
    })
    .await;
    client.add().await;
    cluster.converge().await;
    assert_eq!(tally::held(&cluster.node(&moved), "hits"), 3);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_server_comes_back_under_a_new_node_id_and_replaces_the_old_one() {
    let mut cluster = Cluster::start_three().await;
    let wiped = cluster.others(&cluster.primary().await).remove(0);
    let old = cluster.status(&wiped).node_id;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    client.add().await;
    cluster.kill(&wiped).await;
    cluster.wipe(&wiped);
    cluster.start(&wiped).await;
    eventually("it has caught up, as a learner", async || cluster.node(&wiped).ready()).await;
    let new = cluster.status(&wiped).node_id;
    assert!(new > old);
    assert!(!cluster.node(&wiped).is_voter());
    let reply = cluster.change(MemberOp::Promote, &wiped).await;
    assert_eq!((reply.voters.len(), reply.learners.len()), (3, 0), "{reply:?}");
    cluster.converge().await;
    let members = cluster.node(&wiped).cluster_status().await.unwrap().members;
    assert!(members.iter().all(|member| member.node_id != old && member.voter), "{members:?}");
    assert_eq!(tally::held(&cluster.node(&wiped), "hits"), 1);
    client.add().await;
    cluster.finish().await;
}

/// Invariant 8, on the primary's own contacts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_leaves_fewer_live_voters_than_a_quorum() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let mut others = cluster.others(&primary);
    let (dead, live) = (others.remove(0), others.remove(0));
    cluster.kill(&dead).await;
    let node = cluster.node(&primary);
    let membership = node.cluster_status().await.unwrap().membership;
    eventually("the primary knows that it is dead", async || {
        let refused = change(&node, MemberOp::Demote, &live, "1-1").await.unwrap_err();
        assert_eq!(refused.code, Code::Changed);
        node.cluster_status().await.unwrap().members.iter().any(|m| m.info.name == dead && m.status.is_none())
    })
    .await;
    let deadline = within(10_000);
    let error = loop {
        // Alive is who was heard within the last seconds.
        match change(&node, MemberOp::Transfer, &dead, &membership).await {
            Err(e) if e.code == Code::Refused => break e,
            other => assert!(std::time::Instant::now() < deadline, "{other:?}"),
        }
    };
    assert!(error.detail.contains("not a voter that is alive"), "{error}");
    for op in [MemberOp::Demote, MemberOp::Remove] {
        let error = change(&node, op, &live, &membership).await.unwrap_err();
        assert_eq!((error.code, error.attempt), (Code::Refused, Attempt::NotApplied), "{error:?}");
        assert!(error.detail.contains("the cluster would stop"), "{error}");
    }
    // To remove the dead one does no harm; it is two of two then.
    let reply = cluster.change(MemberOp::Remove, &dead).await;
    assert_eq!(reply.voters.len(), 2, "{reply:?}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_removed_hands_over_first() {
    let cluster = Cluster::start_three().await;
    let load = Load::start(&cluster.nodes, 2).await;
    let primary = cluster.primary().await;
    let reply = cluster.change(MemberOp::Remove, &primary).await;
    assert!(!reply.voters.contains(&primary) && reply.voters.len() == 2, "{reply:?}");
    let others = cluster.others(&primary);
    let new = cluster.primary_among(&others).await;
    assert_ne!(new, primary);
    // It was removed, and does not come back by itself.
    let members = || cluster.status(&new).term;
    let term = members();
    throughout("it disturbs nobody", Duration::from_secs(2), || members() == term).await;
    cluster.kill(&primary).await;
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_anothers_name_or_address_or_lacks_a_service_does_not_join() {
    let cluster = Cluster::start_three().await;
    let route = Route { cluster: [0; 16], from: 0, to: 0 };
    let before = cluster.node("S1").cluster_status().await.unwrap().membership;
    let free = || "127.0.0.1:1".to_owned();
    for (name, address, service, cause) in [
        ("S3", free(), "tally", "live member already"),
        ("S9", cluster.address("S3"), "tally", "live member already"),
        ("S9", free(), "chat", "lacks services that this cluster runs: tally"),
    ] {
        let mut info = cluster.info("S3");
        (info.name, info.peer) = (name.to_owned(), address);
        // Any server may be asked.
        for asked in cluster.names() {
            let lane = Lane::new(Arc::new(TcpDial), cluster.address(&asked), route);
            let request =
                Request::Join(JoinRequest { info: info.clone(), services: vec![service.to_owned()] });
            match lane.call(&request, Duration::from_secs(5)).await {
                Err(CallError::Peer(e)) if e.code == Code::Refused => {
                    assert!(e.detail.contains(cause), "{e}");
                }
                other => panic!("{name} through {asked}: {other:?}"),
            }
        }
    }
    assert_eq!(cluster.node("S1").cluster_status().await.unwrap().membership, before);
    cluster.finish().await;
}

/// A server of one cluster listens where a server of another is expected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_whose_addresses_are_mixed_up_do_each_other_no_harm() {
    let ours = Cluster::start_three().await;
    let primary = ours.primary().await;
    let gone = ours.others(&primary).remove(0);
    ours.kill(&gone).await;
    let theirs = Cluster::single_on(ours.listener(&gone), Options::default()).await;
    ours.net.place(&gone, &ours.address(&gone));

    // What our primary sends there is refused, with the cause.
    let id = parse_cluster_id(ours.node(&primary).cluster_id()).unwrap();
    let node_id = ours.status(&primary).node_id;
    for (cluster, to, cause) in
        [(id, 1, "two clusters' addresses are mixed up"), (id, 3, "two clusters' addresses are mixed up")]
    {
        let route = Route { cluster, from: node_id, to };
        let lane = Lane::new(Arc::new(TcpDial), theirs.address("S1"), route);
        let error = lane.call(&Request::Status, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(&error, CallError::Peer(e) if e.code == Code::Misdirected), "{error:?}");
        assert!(error.to_string().contains(cause), "{error}");
    }
    let (term, membership) =
        (theirs.status("S1").term, theirs.node("S1").cluster_status().await.unwrap().membership);
    let mut client = Client::open(&ours.nodes, "hits").await;
    let mut other = Client::open(&theirs.nodes, "hits").await;
    for _ in 0..50 {
        client.add().await;
        other.add().await;
    }
    assert_eq!(theirs.status("S1").term, term);
    assert_eq!(theirs.node("S1").cluster_status().await.unwrap().membership, membership);
    theirs.finish().await;
    ours.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_address_that_is_another_clusters_by_now_keeps_no_server_from_its_own() {
    let mut clusters = [Cluster::single(Options::default()).await, Cluster::single(Options::default()).await];
    // Peers are asked in this order.
    clusters.sort_by_key(|cluster| cluster.address("S1"));
    let [theirs, mut ours] = clusters;
    ours.join_misled("S2", &theirs.address("S1")).await;
    let reply = ours.change(MemberOp::Promote, "S2").await;
    assert_eq!(reply.voters, ["S1", "S2"]);
    assert_eq!(theirs.node("S1").cluster_status().await.unwrap().members.len(), 1);
    theirs.finish().await;
    ours.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_finds_nothing_but_another_cluster_says_so_and_ends() {
    let mut ours = Cluster::start_with(Options { servers: 2, ..Options::default() }).await;
    ours.kill("S1").await;
    ours.kill("S2").await;
    let theirs = Cluster::single_on(ours.listener("S1"), Options::default()).await;
    ours.move_server("S2");
    ours.start("S2").await;
    ours.net.place("S1", &ours.address("S1"));
    let cause = tokio::time::timeout(PATIENCE, ours.node("S2").failed()).await.unwrap();
    assert!(cause.contains("two clusters' addresses are mixed up"), "{cause}");
    assert!(cause.contains(&ours.address("S1")), "{cause}");
    theirs.finish().await;
    // It is as it was.
    ours.kill("S2").await;
    ours.start("S1").await;
    ours.start("S2").await;
    ours.finish().await;
}
