//! Partitions of real machines, as far as network namespaces are some: of the global detector, and of the primary.
//!
//! Needs root and `ip`; skipped loudly otherwise. `QUORATE_ROUNDS=20` cuts the primary off so often, and prints median and
//! worst of the times from the cut to the view, to the next acknowledged add, and until all is settled.

mod support;

use std::time::{Duration, Instant};

use support::adder::Adder;
use support::netns::{self, Net};
use support::watched::Watched;

const SERVERS: usize = 3;
const THREE: [&str; 3] = ["S1", "S2", "S3"];
/// The machine of the global detector; the witness has one of its own too.
const GFD: u8 = 9;
const MACHINES: u8 = 9;

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped must say so")]
fn partitions_lose_nothing_and_remove_nobody_who_works() {
    if let Err(why) = netns::enter("in_namespaces") {
        eprintln!("SKIPPED: partitions in network namespaces: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run in namespaces of its own, by the other test"]
async fn in_namespaces() {
    assert!(netns::is_inside(), "run the other test of this file");
    let net = Net::new(MACHINES);
    let mut watched = Watched::start_on(&net, SERVERS, GFD).await;
    watched.add_witness_on(&net, SERVERS as u8 + 1).await;
    watched.set("stabilization", "1s").await;
    watched.rm.start();
    watched.until_voters(&THREE).await;
    let adder = Adder::start(watched.servers[..SERVERS].iter().map(|server| server.url()).collect());

    the_view_alone_removes_nobody(&net, &watched).await;

    let rounds = std::env::var("QUORATE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut times = Vec::new();
    for _ in 0..rounds {
        times.push(cut_the_primary_off(&net, &watched, &adder).await);
    }
    adder.finish().await;
    report(&times);
}

/// The global detector hears of no server; the servers hear of each other.
async fn the_view_alone_removes_nobody(net: &Net, watched: &Watched) {
    let before = watched.until_voters(&THREE).await;
    for machine in 1..=SERVERS as u8 {
        net.mute(GFD, machine, true);
    }
    for n in 0..SERVERS {
        watched.until_state(n, "dead").await;
    }
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let now = watched.until("the cluster is seen", async || watched.cluster().await).await;
        assert_eq!(now["membership"]["log_id"], before["membership"]["log_id"], "the membership was changed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for machine in 1..=SERVERS as u8 {
        net.mute(GFD, machine, false);
    }
    for n in 0..SERVERS {
        watched.until_state(n, "alive").await;
    }
    let after = watched.until_voters(&THREE).await;
    assert_eq!(after["membership"]["log_id"], before["membership"]["log_id"]);
}

/// Gives milliseconds from the cut to the view, to the next add, and until another has its place and all is settled.
async fn cut_the_primary_off(net: &Net, watched: &Watched, adder: &Adder) -> [u64; 3] {
    let before = watched.until_voters(&THREE).await;
    let primary = before["primary"].as_str().expect("a primary").to_owned();
    let n = THREE.iter().position(|name| *name == primary).expect("one of the three");
    let since = |at: Instant| at.elapsed().as_millis() as u64;
    net.link(n as u8 + 1, false);
    let cut = Instant::now();
    // An answer may have been on its way.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let added = adder.added();
    let seen = async {
        watched.until_state(n, "dead").await;
        since(cut)
    };
    let add = async {
        watched
            .until("an add is acknowledged", async || {
                if adder.added() > added { Ok(()) } else { Err("none yet".to_owned()) }
            })
            .await;
        since(cut)
    };
    let (view, add) = tokio::join!(seen, add);
    let mut left: Vec<&str> = THREE.iter().copied().filter(|name| *name != primary).collect();
    left.push("W");
    let without = watched.until_voters(&left).await;
    let settled = since(cut);
    net.link(n as u8 + 1, true);
    let after = watched.until_voters(&THREE).await;
    let term = |cluster: &serde_json::Value| cluster["term"].as_u64().expect("a term");
    assert!(term(&after) <= term(&without) + 1, "who comes back disturbs nobody: {without} and {after}");
    [view, add, settled]
}

#[allow(clippy::print_stdout, reason = "the figures are what it was run for")]
fn report(times: &[[u64; 3]]) {
    let column = |place: usize| {
        let mut column: Vec<u64> = times.iter().map(|times| times[place]).collect();
        column.sort_unstable();
        format!("{} / {}", column[(column.len() - 1) / 2], column[column.len() - 1])
    };
    let ([view, add, settled], rounds) = ([column(0), column(1), column(2)], times.len());
    println!(
        "ms from the cut to the view {view}, to the next add {add}, settled {settled} (median / worst of {rounds})"
    );
}
