//! The peer port, asked by strangers.

use std::time::Duration;

use bytes::BytesMut;
use quorate_cluster::error::NodeError;
use quorate_cluster::message::{MemberOp, MembersRequest, Reply, Request};
use quorate_cluster::node::parse_cluster_id;
use quorate_cluster::transport::frame::{FrameReader, Kind, MAX_FRAME, Route};
use quorate_storage::codec;
use tokio::time::timeout;

use super::support::Cluster;
use super::support::wire::{self, Connection};
use super::{check_serves, frame, get};

/// What the peer port answers to `bytes`: a reply, or the connection's end.
async fn ask_peer(address: &str, bytes: &[u8]) -> Option<Result<Reply, NodeError>> {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the peer port");
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await;
    let answer = timeout(Duration::from_secs(15), FrameReader::new(stream).next()).await;
    let frame = answer.expect("the peer port neither answers nor hangs up").ok().flatten()?;
    assert_eq!(frame.kind, Kind::Reply);
    Some(codec::decode(&frame.content).expect("a reply that decodes"))
}

#[tokio::test]
async fn the_peer_port_believes_nobody() {
    let cluster = Cluster::start(3).await;
    let primary = cluster.primary().await;
    let status = cluster.status(&primary).await.expect("its status");
    let peer = cluster.server(&primary).peer.address();
    let id = parse_cluster_id(status["cluster_id"].as_str().expect("an id")).expect("a cluster id");
    let node = status["node_id"].as_u64().expect("a node id");
    let route = Route { cluster: id, from: 77, to: node };
    let question = || codec::encode(&Request::Status);
    let good = frame(route, Kind::Request, question());
    assert!(matches!(ask_peer(&peer, &good).await, Some(Ok(Reply::Status(_)))), "a good request is answered");

    // Not a frame: the connection ends.
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes.to_vec()
    };
    let length = |length: u32| [&length.to_le_bytes()[..], &good[4..]].concat();
    let ends: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", (0..=255).cycle().take(10_000).collect()),
        ("zeros", vec![0; 10_000]),
        ("HTTP", get("/healthz")),
        ("a length of 4 GiB", length(u32::MAX)),
        ("a length over the largest", length(MAX_FRAME as u32 + 1)),
        ("a length under the header's", length(10)),
        ("another version", flipped(8)),
        ("a flipped checksum", flipped(5)),
        ("a flipped id", flipped(12)),
        ("a flipped cluster", flipped(20)),
        ("a flipped content", flipped(good.len() - 1)),
        ("half a frame", good[..30].to_vec()),
        ("a large frame of a stranger", stranger(MAX_FRAME - 100)),
    ];
    for (what, bytes) in ends {
        assert!(ask_peer(&peer, &bytes).await.is_none(), "{what} was answered");
    }

    // A frame that is not for this server, or not a request: refused, with the cause.
    let stranger = Route { cluster: [7; 16], ..route };
    let nobody = Route { cluster: [0; 16], from: 0, to: 0 };
    let remove = Request::Members(MembersRequest::new(MemberOp::Remove, "S3".to_owned()));
    let mut over = question();
    over.push(0);
    let refusals: Vec<(&str, BytesMut, &str)> = vec![
        ("another cluster's", frame(stranger, Kind::Request, question()), "clusters"),
        ("nobody's", frame(nobody, Kind::Request, question()), "cluster"),
        ("a change by nobody", frame(nobody, Kind::Request, codec::encode(&remove)), "cluster"),
        ("another node's", frame(Route { to: node + 70, ..route }, Kind::Request, question()), "node"),
        (
            "an ordered one of another node",
            frame(Route { to: 0, ..route }, Kind::Ordered, codec::encode(&remove)),
            "node",
        ),
        ("no content", frame(route, Kind::Request, Vec::new()), "malformed"),
        ("content of another version", frame(route, Kind::Request, vec![9, 9, 9]), "malformed"),
        ("an unknown request", frame(route, Kind::Request, vec![1, 200]), "malformed"),
        (
            "a hostile length within",
            frame(route, Kind::Request, vec![1, 6, 253, 0, 0, 0, 0, 0, 0, 0, 16]),
            "malformed",
        ),
        ("more than a request", frame(route, Kind::Request, over), "malformed"),
    ];
    for (what, bytes, expected) in refusals {
        match ask_peer(&peer, &bytes).await {
            Some(Err(e)) => assert!(e.detail.contains(expected), "{what}: {e:?}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let after = cluster.status(&primary).await.expect("its status");
    assert_eq!(after["term"], status["term"], "strangers moved the primary");
    check_serves(&cluster).await;
    cluster.equal_hashes().await;
}

/// A frame of a cluster that nobody knows, whole.
fn stranger(bytes: usize) -> Vec<u8> {
    let route = Route { cluster: [7; 16], from: 1, to: 1 };
    frame(route, Kind::Request, vec![0; bytes]).to_vec()
}

/// Strangers that hold the peer port: no growth, and a server that restarts still finds its cluster.
#[tokio::test]
async fn strangers_on_the_peer_port_keep_no_server_out() {
    let cluster = Cluster::start(3).await;
    let backup = cluster.backup().await;
    let primary = cluster.primary().await;
    let before = wire::memory(cluster.server(&primary).pid());
    let large = stranger(MAX_FRAME - 100);
    let mut open = Vec::new();
    for name in cluster.names() {
        let address = cluster.server(&name).peer.address();
        for n in 0..600 {
            let mut connection = Connection::open(&address).await.expect("the kernel takes it");
            let part: &[u8] = match n % 8 {
                0 => &large[..16 << 20],
                1 => &large[..40],
                _ => b"",
            };
            // The server may hang up before it has all.
            let _ = timeout(Duration::from_millis(200), connection.send(part)).await;
            open.push(connection);
        }
    }
    cluster.kill9(&backup);
    cluster.restart(&backup).await;
    check_serves(&cluster).await;
    let grown = wire::memory(cluster.server(&primary).pid()).peak - before.now;
    assert!(grown < 200 << 20, "strangers took {} MiB", grown >> 20);
}
