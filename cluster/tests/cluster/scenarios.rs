//! Random scenarios: cuts, heals, kills and clock jumps under load, then all invariants.
//!
//! `QUORATE_SEEDS=17,18` or `QUORATE_SEEDS=100..200` runs other seeds than CI's. A failure names its seed.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use quorate_cluster::message::{MemberOp, MembersRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::client::{Attempts, Load};
use crate::support::{Cluster, Options, within};

/// How long a scenario makes trouble.
const TROUBLE: Duration = Duration::from_secs(5);

fn seeds() -> Vec<u64> {
    let Ok(text) = std::env::var("QUORATE_SEEDS") else { return (1..=5).collect() };
    let number = |text: &str| text.trim().parse().expect("QUORATE_SEEDS is 1,2,3 or 1..9");
    match text.split_once("..") {
        Some((from, to)) => (number(from)..number(to)).collect(),
        None => text.split(',').map(number).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_invariants_hold() {
    for seed in seeds() {
        let begun = Instant::now();
        match AssertUnwindSafe(Scenario::run(seed)).catch_unwind().await {
            Ok(summary) => println!("seed {seed}: {summary} in {:?}", begun.elapsed()),
            // The cause was printed when it panicked.
            Err(_) => panic!("seed {seed} failed; again: QUORATE_SEEDS={seed} cargo test … scenarios"),
        }
    }
}

struct Scenario {
    cluster: Cluster,
    random: SmallRng,
    down: Vec<String>,
}

impl Scenario {
    async fn run(seed: u64) -> String {
        let mut random = SmallRng::seed_from_u64(seed);
        let servers = if random.random_bool(0.25) { 5 } else { 3 };
        let log_keep = if random.random_bool(0.5) { 50 } else { 10_000 };
        let cluster = Cluster::start_with(Options { servers, log_keep, ..Options::default() }).await;
        let mut scenario = Self { cluster, random, down: Vec::new() };

        let load = Load::start(&scenario.cluster.nodes, 3).await;
        let mut attempts = Attempts::default();
        let end = Instant::now() + TROUBLE;
        let mut events = 0;
        while Instant::now() < end {
            scenario.event().await;
            events += 1;
            let pause = scenario.random.random_range(20..400);
            scenario.attempt(&mut attempts, pause).await;
        }
        scenario.cluster.net.heal();
        for name in std::mem::take(&mut scenario.down) {
            scenario.cluster.start(&name).await;
        }
        let summary = load.stop().await;
        scenario.cluster.converge().await;
        summary.check(&scenario.cluster.nodes);
        attempts.check(&scenario.cluster.nodes);
        scenario.check_log().await;
        assert!(summary.adds > 0, "nothing was done");
        scenario.cluster.finish().await;
        format!("{events} events, {} adds, {:?}", summary.adds, summary.reads)
    }

    /// One thing that goes wrong, or right again.
    async fn event(&mut self) {
        let names = self.cluster.names();
        let (a, b) = (self.pick(&names), self.pick(&names));
        let net = &self.cluster.net;
        match self.random.random_range(0..12) {
            0 => net.heal(),
            1 => net.heal_between(&a, &b),
            2 => net.isolate(&a),
            3 => net.cut(&a, &b),
            4 => net.refuse(&a, &b),
            5 => net.reset(&a, &b),
            6 => net.delay(&a, &b, Duration::from_millis(self.random.random_range(1..40))),
            7 => net.limit(&a, &b, 500_000),
            8 | 9 => self.kill_or_start(a).await,
            10 => {
                let hours = self.random.random_range(-3..=3);
                self.cluster
                    .clock(&a)
                    .set_offset(hours * 3_600_000 + self.random.random_range(-5_000..5_000));
            }
            _ => {
                let Some(node) = self.cluster.nodes.get(&b) else { return };
                let request = MembersRequest::new(MemberOp::Transfer, a);
                // Where it arrives is looked at by the watch.
                let _ = node.change_members(request, within(300)).await;
            }
        }
    }

    /// Up to all servers may be down at once; most often the one that was killed comes back.
    async fn kill_or_start(&mut self, name: String) {
        if let Some(position) = self.down.iter().position(|down| *down == name) {
            self.down.remove(position);
            self.cluster.start(&name).await;
        } else if self.down.is_empty() || self.random.random_bool(0.3) {
            self.cluster.kill(&name).await;
            self.down.push(name);
        } else {
            let name = self.down.remove(0);
            self.cluster.start(&name).await;
        }
    }

    /// Passes the time with requests that nobody retries.
    async fn attempt(&mut self, attempts: &mut Attempts, pause: u64) {
        let until = within(pause);
        while Instant::now() < until {
            let name = self.pick(&self.cluster.names());
            if let Some(node) = self.cluster.nodes.get(&name) {
                attempts.add(&node, within(self.random.random_range(5..200))).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn check_log(&self) {
        for node in self.cluster.nodes.all() {
            let deltas = node.log_page(1, 100_000).await.unwrap().deltas;
            for pair in deltas.windows(2) {
                assert_eq!(pair[0].revision + 1, pair[1].revision);
                assert!(pair[0].time <= pair[1].time, "logged time goes back on {}: {pair:?}", node.name());
            }
        }
    }

    fn pick(&mut self, names: &[String]) -> String {
        names[self.random.random_range(0..names.len())].clone()
    }
}
