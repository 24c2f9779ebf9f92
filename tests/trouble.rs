//! Servers, detectors and managers die and stall at any moment, again and again: service goes on, nothing is lost, and in the
//! end all is as it was.

mod support;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use support::adder::Adder;
use support::watched::Watched;

const THREE: [&str; 3] = ["S1", "S2", "S3"];
const ROUNDS: usize = 6;

/// A pause that is short enough to be jitter, or long enough to be a death.
async fn stall(watched: &Watched, n: usize, random: &mut StdRng) {
    watched.signal(n, "STOP");
    tokio::time::sleep(Duration::from_millis(random.random_range(100..2_500))).await;
    watched.signal(n, "CONT");
}

/// Its detector and the managers see to its return.
async fn kill(watched: &Watched, n: usize, wipe: bool) {
    if wipe {
        // Launched again at once, it would run on files that are being removed.
        assert_eq!(watched.say(n, "hold", json!({})).await.status, 200);
    }
    watched.signal(n, "KILL");
    if wipe {
        watched
            .until(
                "it is down",
                async || if watched.pids(n).is_empty() { Ok(()) } else { Err("it runs".to_owned()) },
            )
            .await;
        std::fs::remove_dir_all(&watched.servers[n].data).expect("its directory");
        watched.release(n).await;
    }
}

fn ids(cluster: &Value) -> Vec<u64> {
    let servers = cluster["servers"].as_array().expect("servers");
    servers.iter().filter_map(|server| server["node_id"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "the test runner shows it with the failure")]
async fn whatever_dies_service_goes_on_and_nothing_is_lost_or_done_twice() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut watched = Watched::start_managed(3, &[]).await;
    watched.second_rm.start();
    let mut before = ids(&watched.until_voters(&THREE).await);
    let adder = Adder::start(watched.servers.iter().map(|server| server.url()).collect());
    for round in 0..ROUNDS {
        let added = adder.added();
        let wiped = round % 3 == 2;
        // The others join through S1, and S1 through nobody.
        let victim = random.random_range(usize::from(wiped)..THREE.len());
        match wiped || random.random() {
            true => kill(&watched, victim, wiped).await,
            false => stall(&watched, victim, &mut random).await,
        }
        // In mid-repair, as likely as not.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
        let role = match random.random_range(0..3) {
            0 => &mut watched.gfd,
            1 => &mut watched.rm,
            _ => &mut watched.second_rm,
        };
        role.kill9();
        role.start();
        let after = ids(&watched.until_voters(&THREE).await);
        if wiped {
            assert!(after.iter().any(|id| id > before.iter().max().expect("three")), "a new node id");
        }
        before.extend(after);
        watched
            .until("adds go on", async || if adder.added() > added { Ok(()) } else { Err("none".to_owned()) })
            .await;
    }
    adder.finish().await;
    watched
        .until("equal revision, equal hash", async || {
            let mut states = Vec::new();
            for server in &watched.servers {
                let status = watched.http.json(&format!("{}/v1/status", server.url())).await?;
                states.push(json!([status["revision"], status["state_hash"]]));
            }
            if states.iter().all(|state| *state == states[0]) { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await;
}
