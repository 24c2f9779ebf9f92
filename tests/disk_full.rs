//! A disk that fills up: writes stop in time, with a clear error or on another server; reads go on; room brings
//! everything back by itself.
//!
//! The tests on a small disk need root and loop devices, and say so loudly where they cannot run.

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};
use support::http::Reply;
use support::load::Load;
use support::mount::Mount;
use support::{Cluster, Setup};

const MIB: u64 = 1 << 20;
/// Large enough for a server's files, which are small in these tests, and for what is filled in.
const DISK: u64 = 192 * MIB;
const RESERVE: u64 = 64 * MIB;

/// A small disk, unless this machine cannot have one.
fn small_disk(test: &str) -> Option<Mount> {
    match Mount::new(DISK) {
        Ok(mount) => Some(mount),
        Err(why) => {
            // Not by a macro, whose output the test runner keeps to itself when a test passes.
            let _ = writeln!(
                std::io::stderr(),
                "\n*** SKIPPED {test}: no small disk here: {why} (it needs root, loop devices, mkfs.ext4) ***\n"
            );
            None
        }
    }
}

/// A cluster whose S1 lives on `mount`.
async fn cluster_on(mount: &Mount, servers: usize) -> Cluster {
    let places = BTreeMap::from([("S1".to_owned(), mount.path())]);
    let flags = vec!["--disk-reserve".to_owned(), RESERVE.to_string()];
    Cluster::with(Setup { servers, flags, places, ..Setup::default() }).await
}

async fn add(cluster: &Cluster, name: &str) -> Reply {
    let url = format!("{}/v1/counter/add", cluster.url(name));
    cluster.http.post(&url, &json!({"name": "disk", "amount": 1})).await.expect("an answer")
}

async fn get(cluster: &Cluster, name: &str, read: &str) -> Result<i64, String> {
    let url = format!("{}/v1/counter/get?name=disk&read={read}", cluster.url(name));
    let body = cluster.http.json(&url).await?;
    body["value"].as_i64().ok_or_else(|| body.to_string())
}

/// Sets registers `numbers` to as much text as they hold, in one batch.
async fn set_large(cluster: &Cluster, name: &str, numbers: std::ops::Range<usize>) {
    // Of random letters: the tables are compressed.
    let text = || (0..250 << 10).map(|_| rand::random_range('0'..='z')).collect::<String>();
    let set = |n| json!({"register": {"set": {"name": format!("r{n}"), "text": text()}}});
    let body: Value = numbers.map(set).collect();
    let url = format!("{}/v1/batch", cluster.url(name));
    cluster
        .until("registers are set", async || match cluster.http.post(&url, &body).await?.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
}

/// Waits until writes through the server are refused for want of room.
async fn refused(cluster: &Cluster, name: &str) -> Value {
    cluster
        .until(&format!("{name} refuses writes"), async || {
            let reply = add(cluster, name).await;
            if reply.status == 507 { Ok(reply.json()) } else { Err(format!("{reply:?}")) }
        })
        .await
}

/// Waits until writes through the server work, and says what the counter is then.
async fn accepted(cluster: &Cluster, name: &str) -> i64 {
    cluster
        .until(&format!("{name} takes writes"), async || {
            let reply = add(cluster, name).await;
            let value = reply.json()["value"].as_i64();
            value.filter(|_| reply.status == 200).ok_or_else(|| format!("{reply:?}"))
        })
        .await
}

fn check_problem(problem: &Value) {
    assert_eq!(problem["code"], "disk_full", "{problem}");
    assert_eq!(problem["outcome"], "not_applied", "{problem}");
    assert!(problem["retry_after_ms"].is_u64(), "{problem}");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("disk") && detail.contains("reserve"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_alone_refuses_writes_and_recovers() {
    let Some(mount) = small_disk("one_server_alone_refuses_writes_and_recovers") else { return };
    let cluster = cluster_on(&mount, 1).await;
    accepted(&cluster, "S1").await;
    // Just below the reserve; and almost nothing left.
    for left in [RESERVE - 4 * MIB, 2 * MIB] {
        mount.fill(left);
        check_problem(&refused(&cluster, "S1").await);
        let value = get(&cluster, "S1", "linearizable").await.expect("reads go on");
        for read in ["linearizable", "lease", "stale"] {
            assert_eq!(get(&cluster, "S1", read).await, Ok(value), "{read} reads go on");
        }
        let url = cluster.url("S1");
        let session = cluster.http.post(&format!("{url}/v1/sessions"), &json!({})).await.expect("an answer");
        check_problem(&session.json());
        let snapshot = cluster.http.post(&format!("{url}/v1/cluster/snapshot"), &json!({})).await;
        assert_eq!(snapshot.expect("an answer").code(), "disk_full", "a snapshot takes room too");
        assert_eq!(cluster.status("S1").await.expect("its status")["disk_low"], true);
        cluster.http.ok(&format!("{url}/healthz")).await.expect("it is alive");
        mount.empty();
        // What was refused was not done.
        assert_eq!(accepted(&cluster, "S1").await, value + 1);
    }
    let value = get(&cluster, "S1", "linearizable").await.expect("a read");
    // A server that starts on a full disk reads what it has, and refuses writes.
    mount.fill(2 * MIB);
    cluster.kill9("S1");
    cluster.restart("S1").await;
    check_problem(&refused(&cluster, "S1").await);
    assert_eq!(get(&cluster, "S1", "linearizable").await, Ok(value));
    mount.empty();
    assert_eq!(accepted(&cluster, "S1").await, value + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_to_a_server_with_room() {
    let Some(mount) = small_disk("leadership_moves_to_a_server_with_room") else { return };
    let cluster = cluster_on(&mount, 3).await;
    let load = Load::start(4, &["hits", "stock"], &cluster.client());
    // Just below the reserve: a backup goes on. Almost nothing left: it takes no more entries either.
    for left in [RESERVE - 4 * MIB, 2 * MIB] {
        cluster
            .until("S1 is the primary", async || {
                let url = format!("{}/v1/cluster/transfer", cluster.url("S2"));
                let reply = cluster.http.post(&url, &json!({"to": "S1"})).await?;
                if cluster.primary().await == "S1" { Ok(()) } else { Err(format!("{reply:?}")) }
            })
            .await;
        load.progress(&cluster, 100).await;
        mount.fill(left);
        cluster
            .until("leadership moves", async || match cluster.primary().await.as_str() {
                "S1" => Err("S1 still leads".to_owned()),
                _ => Ok(()),
            })
            .await;
        load.progress(&cluster, 300).await;
        // A client that knows S1 alone still writes and reads, while S1 can follow; then it is sent elsewhere.
        cluster.http.ok(&format!("{}/healthz", cluster.url("S1"))).await.expect("it is alive");
        let value = accepted(&cluster, "S2").await;
        if left > RESERVE / 2 {
            assert_eq!(add(&cluster, "S1").await.status, 200, "S1 forwards");
            assert_eq!(get(&cluster, "S1", "linearizable").await, Ok(value + 1));
        }
        get(&cluster, "S1", "stale").await.expect("stale reads go on");
        assert_eq!(cluster.status("S1").await.expect("its status")["disk_low"], true);
        mount.empty();
        let (value, last) = (accepted(&cluster, "S3").await, "S1 has caught up");
        cluster
            .until(last, async || match get(&cluster, "S1", "linearizable").await? {
                read if read >= value => Ok(()),
                read => Err(format!("it reads {read} for {value}")),
            })
            .await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// Needs no small disk: reserves that this one does not have. Even where a backup takes no more commands, a primary
/// is elected, so that reads go on.
#[tokio::test]
async fn without_room_anywhere_every_server_says_so() {
    let cluster = Cluster::start(3).await;
    accepted(&cluster, "S1").await;
    let value = accepted(&cluster, "S2").await;
    let free = quorate_storage::node_disk::free_bytes(&cluster.server("S1").data).expect("what is free");
    for reserve in [free + free / 2, 1 << 60] {
        cluster.kill9_all();
        let flags = ["--disk-reserve".to_owned(), reserve.to_string()];
        for name in cluster.names() {
            cluster.server(&name).start("", &flags);
        }
        cluster.wait_all_ready().await;
        for name in cluster.names() {
            check_problem(&refused(&cluster, &name).await);
            for read in ["linearizable", "stale"] {
                assert_eq!(get(&cluster, &name, read).await, Ok(value), "{name} has what it had");
            }
        }
    }
}

/// Free space is above the reserve, and the snapshot is larger than what lies between: it is neither sent nor written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_larger_than_the_room_waits_for_room() {
    let Some(mount) = small_disk("a_snapshot_larger_than_the_room_waits_for_room") else { return };
    let places = BTreeMap::from([("S1".to_owned(), mount.path())]);
    let flags = ["--disk-reserve", &RESERVE.to_string(), "--log-keep", "10"].map(str::to_owned).to_vec();
    let cluster = Cluster::with(Setup { flags, places, ..Setup::default() }).await;
    cluster.kill9("S1");
    let (registers, value) = (120, accepted(&cluster, "S2").await);
    for n in 0..registers {
        set_large(&cluster, "S2", n..n + 1).await;
    }
    for name in ["S2", "S3"] {
        cluster.until_purged(name, value as u64 + 20).await;
    }
    let room = RESERVE + 20 * MIB;
    mount.fill(room);
    cluster.wipe("S1");
    cluster.start_server("S1");
    // Offered again and again; meanwhile nothing of it fills the disk, and the server is well.
    let refused = || cluster.server("S1").log().matches("no room for a snapshot").count();
    cluster
        .until("S1 refuses the snapshot", async || {
            assert!(mount.free() > RESERVE, "the snapshot takes the reserve");
            match refused() {
                0 | 1 => Err(format!("it was refused {} times", refused())),
                _ => Ok(()),
            }
        })
        .await;
    cluster.http.ok(&format!("{}/healthz", cluster.url("S1"))).await.expect("it is alive");
    assert_eq!(snapshot_files(&cluster), [] as [String; 0]);
    accepted(&cluster, "S2").await;
    mount.empty();
    cluster.settle("S1").await;
    let value = accepted(&cluster, "S1").await;
    // Nor does it write one of its own; writes are taken meanwhile.
    mount.fill(room);
    let url = format!("{}/v1/cluster/snapshot", cluster.url("S1"));
    let answer = cluster.http.post(&url, &json!({})).await.expect("an answer");
    assert_eq!(answer.status, 507, "{answer:?}");
    check_problem(&answer.json());
    assert!(format!("{answer:?}").contains("no room for a snapshot"), "{answer:?}");
    assert_eq!(snapshot_files(&cluster), [] as [String; 0]);
    assert_eq!(accepted(&cluster, "S1").await, value + 1);
    mount.empty();
    cluster
        .until("there is room", async || match cluster.http.post(&url, &json!({})).await? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
        .await;
    cluster.equal_hashes().await;
}

/// Without a reserve that says so in time: the tables lie on a disk of their own, which fills up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_cannot_be_written_end_the_server_and_lose_nothing() {
    let Some(mount) = small_disk("tables_that_cannot_be_written_end_the_server_and_lose_nothing") else {
        return;
    };
    let cluster = Cluster::start(1).await;
    accepted(&cluster, "S1").await;
    cluster.kill9("S1");
    let link = cluster.server("S1").data.join("state");
    let copied = Command::new("cp").arg("-a").args([&link.canonicalize().unwrap(), &mount.path()]).status();
    assert!(copied.unwrap().success());
    let moved = mount.path().join(link.read_link().unwrap());
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(moved, &link).unwrap();
    cluster.restart("S1").await;
    let value = accepted(&cluster, "S1").await;
    mount.fill(0);
    // Together: of one alone, a part might find room.
    set_large(&cluster, "S1", 0..4).await;
    let status = cluster.ended("S1").await;
    assert_eq!(status.code(), Some(1));
    let said = cluster.server("S1").tail();
    assert!(
        said.contains("No space left on device") && said.contains("Nothing that was acknowledged is lost"),
        "{said}"
    );
    mount.empty();
    cluster.start_server("S1");
    cluster.wait_ready("S1").await;
    assert_eq!(accepted(&cluster, "S1").await, value + 1);
    let url = format!("{}/v1/register/get?name=r3", cluster.url("S1"));
    assert_eq!(
        cluster.http.json(&url).await.expect("a register")["text"].as_str().map(str::len),
        Some(250 << 10)
    );
    cluster.kill9("S1");
}

fn snapshot_files(cluster: &Cluster) -> Vec<String> {
    let files = std::fs::read_dir(cluster.server("S1").data.join("snapshots")).into_iter().flatten();
    files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect()
}
