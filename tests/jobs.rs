//! Jobs on real processes: workers that come, go, hang and are killed while servers are killed too, and a ring that is resized
//! whoever dies in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate::client::{Client, NewJob, Position, RingView, WINDOW};
use quorate::services::jobs::{JobRow, Phase, State};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::cli::{Run, quorate};

mod support;

/// In the long test; the ring's keys are a few of them.
const JOBS: usize = 10_000;
const KEYS: usize = 40;
const WORKERS: usize = 8;
/// A command that goes on until its worker is gone, however that ended.
const STAY: [&str; 3] = ["sh", "-c", "while kill -0 $PPID; do sleep 0.1; done"];

/// `quorate jobs work`, killed at the end.
struct Worker(Child);

impl Worker {
    fn start(cluster: &Cluster, queue: &str, name: &str, lease: &str, command: &[&str]) -> Self {
        let servers = cluster.urls().join(",");
        let mut worker = Command::new(env!("CARGO_BIN_EXE_quorate"));
        worker.args(["jobs", "work", "--queue", queue, "--name", name, "--lease", lease, "--quiet"]);
        worker.args(["--servers", &servers, "--"]).args(command);
        Self(worker.stderr(Stdio::null()).spawn().expect("quorate can be run"))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a signal to a child of ours");
    }

    fn kill9(&mut self) {
        self.0.kill().expect("SIGKILL to a child of ours");
        self.0.wait().expect("the end of a child of ours");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn jobs(cluster: &Cluster, words: &[&str]) -> Run {
    let servers = cluster.urls().join(",");
    quorate([&["jobs"], words, &["--timeout", "20s", "--servers", &servers]].concat()).await
}

fn client(cluster: &Cluster) -> Client {
    cluster.client().build().expect("a client")
}

async fn ring(
    cluster: &Cluster,
    client: &Client,
    queue: &str,
    what: &str,
    wanted: impl Fn(&RingView) -> bool,
) -> RingView {
    cluster
        .until(what, async || {
            let ring = client.jobs().ring(queue).await.map_err(|error| error.to_string())?.data;
            if wanted(&ring) { Ok(ring) } else { Err(format!("{ring:?}")) }
        })
        .await
}

/// Half of them have a key.
fn work(number: usize) -> NewJob {
    NewJob {
        queue: "work".to_owned(),
        payload: number.to_string(),
        key: number.is_multiple_of(2).then(|| format!("key {}", number / 2 % KEYS)),
        // Workers are killed: that costs attempts.
        attempts: Some(100),
        ..NewJob::default()
    }
}

/// Notes which jobs are done, in order, until all are.
async fn done_in_order(client: Client, from: u64, count: usize) -> Vec<u64> {
    let mut watch = client.watch("jobs", &["work"], Some(Position::after(from)));
    let mut done = Vec::new();
    while done.len() < count {
        // No server may answer for a moment.
        let Ok(event) = watch.next().await else { continue };
        if event.data["state"] == "done" {
            done.push(event.data["job"].as_u64().expect("a number"));
        }
    }
    done
}

#[tokio::test]
async fn ten_thousand_jobs_are_each_done_once_whoever_dies() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster);
    let start = |n: usize| Worker::start(&cluster, "work", &format!("W{n}"), "2s", &["cat"]);
    let mut workers: BTreeMap<usize, Worker> = (0..WORKERS / 2).map(|n| (n, start(n))).collect();
    let from =
        client.command::<Value>("counter", "add", &json!({"amount": 1})).await.unwrap().data["revision"]
            .as_u64()
            .unwrap();
    let watched = tokio::spawn(done_in_order(self::client(&cluster), from, JOBS));
    for batch in (0..JOBS).map(work).collect::<Vec<_>>().chunks(WINDOW) {
        client.jobs().submit_all(batch).await.expect("they are submitted");
    }
    workers.extend((WORKERS / 2..WORKERS).map(|n| (n, start(n))));

    // One thing after the other, while they work: so many are done before the next one.
    let names = cluster.names();
    let done = async |wanted: u64| {
        cluster
            .until("they work on", async || {
                let queues = client.jobs().queues().await.map_err(|error| error.to_string())?;
                let done = queues[0].jobs.done;
                if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted} are done")) }
            })
            .await;
    };
    for (step, n) in (1..).zip(0..9) {
        done(step * JOBS as u64 / 12).await;
        let worker = n % WORKERS;
        match n % 3 {
            0 => {
                // A worker dies; another one comes with its name.
                workers.remove(&worker).expect("a worker").kill9();
                workers.insert(worker, start(worker));
            }
            1 => {
                // One hangs for longer than its lease; one leaves.
                workers[&worker].signal(Signal::STOP);
                ring(&cluster, &client, "work", "who hangs is evicted", |ring| {
                    ring.workers.iter().all(|member| member.name != format!("W{worker}"))
                })
                .await;
                workers[&worker].signal(Signal::CONT);
                workers[&((worker + 1) % WORKERS)].signal(Signal::TERM);
            }
            _ => {
                // The primary dies, and comes back.
                let primary = cluster.primary().await;
                cluster.kill9(&primary);
                cluster.restart(&primary).await;
                workers.insert(worker, start(worker));
            }
        }
    }
    for name in &names {
        cluster.kill9(name);
        cluster.restart(name).await;
    }
    let order = tokio::time::timeout(Duration::from_secs(120), watched).await.expect("all are done").unwrap();
    drop(workers);
    check_record(&client, &order).await;
    cluster.equal_hashes().await;
}

/// Each job is done, once; and those of a key in the order of their submission.
async fn check_record(client: &Client, order: &[u64]) {
    let mut rows: Vec<JobRow> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |job| job.id);
        let page = client.jobs().list(Some("work"), None, after, 1_000).await.expect("a page").data;
        rows.extend(page.jobs);
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(rows.len(), JOBS);
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    assert!(sorted.iter().eq(rows.iter().map(|job| &job.id)), "each is completed once");
    let mut keys: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let by_id: BTreeMap<u64, JobRow> = rows.into_iter().map(|job| (job.id, job)).collect();
    for id in order {
        let job = &by_id[id];
        assert_eq!(job.state, State::Done, "{job:?}");
        if let Some(key) = &job.key {
            let before = keys.insert(key.clone(), (job.id, job.token)).unwrap_or_default();
            assert!(before < (job.id, job.token) && before.1 < job.token, "{job:?} after {before:?}");
        }
    }
    assert_eq!(keys.len(), KEYS);
    let attempts: u32 = by_id.values().map(|job| job.attempts).sum();
    assert!(attempts as usize > JOBS, "nobody was lost in the middle of a job: the test shows nothing");
}

#[tokio::test]
async fn a_dead_workers_job_goes_to_another_one() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster);
    let mut first = Worker::start(&cluster, "q", "W1", "2s", &STAY);
    let id = jobs(&cluster, &["submit", "--queue", "q", "x"]).await.expect(0).stdout.trim().to_owned();
    let job = async || client.jobs().result(id.parse().unwrap()).await.expect("the job").data.job;
    cluster
        .until("the first worker has it", async || {
            let job = job().await;
            if job.state == State::Running { Ok(()) } else { Err(format!("{job:?}")) }
        })
        .await;
    let _second = Worker::start(&cluster, "q", "W2", "2s", &["cat"]);
    ring(&cluster, &client, "q", "two workers", |ring| {
        ring.workers.len() == 2 && ring.phase == Phase::Normal
    })
    .await;
    first.kill9();
    let killed = ring(&cluster, &client, "q", "the ring", |_| true).await.now_ms;
    let result = jobs(&cluster, &["result", &id, "--wait", "30s"]).await.expect(0);
    assert_eq!(result.stdout, "x\n");
    let job = job().await;
    assert_eq!((job.worker.as_deref(), job.attempts), (Some("W2"), 2), "{job:?}");
    // The lease and a second is what is promised, and measured by `scripts/soak/jobs.sh`; this machine may be busy with tests.
    let took = job.claimed_ms.unwrap().saturating_sub(killed);
    assert!(took < 2_000 + 1_000 + 3_000, "it took {took} ms");
    cluster.equal_hashes().await;
}

/// Writes a dot into a file again and again, for as long as it lives.
fn dots(file: &Path) -> [String; 3] {
    let script = format!("while kill -0 $PPID; do printf . >>{}; sleep 0.05; done", file.display());
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// Waits until no dot of a command has come for so long that several would have.
async fn until_no_dots(cluster: &Cluster, file: &Path) {
    let mut last = (0, Instant::now());
    cluster
        .until("the command has ended", async || {
            let size = fs::metadata(file).map_err(|error| error.to_string())?.len();
            if size != last.0 {
                last = (size, Instant::now());
            }
            if last.1.elapsed() >= Duration::from_millis(500) { Ok(()) } else { Err(format!("{size} dots")) }
        })
        .await;
}

#[tokio::test]
async fn a_command_ends_with_its_job() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let client = client(&cluster);
    let state = async |id: u64| client.jobs().result(id).await.map(|job| (job.job.state, job.job.attempts));
    let running = async |cluster: &Cluster, id: u64, file: &Path| {
        cluster
            .until("its command runs", async || match (state(id).await, file.exists()) {
                (Ok((State::Running, _)), true) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
    };
    let submit = async || {
        client.jobs().submit(&NewJob { queue: "q".to_owned(), ..NewJob::default() }).await.unwrap().id
    };
    let start = |cluster: &Cluster, file: &Path| {
        let command = dots(file);
        Worker::start(cluster, "q", "W1", "2s", &command.each_ref().map(String::as_str))
    };

    // Cancelled while it runs; and the worker goes on.
    let file = dir.path().join("one");
    let worker = start(&cluster, &file);
    let id = submit().await;
    running(&cluster, id, &file).await;
    jobs(&cluster, &["cancel", &id.to_string()]).await.expect(0);
    until_no_dots(&cluster, &file).await;
    assert_eq!(state(id).await.unwrap().0, State::Cancelled);

    // The second signal gives the job back, and the attempt does not count.
    fs::remove_file(&file).expect("the file");
    let id = submit().await;
    running(&cluster, id, &file).await;
    worker.signal(Signal::TERM);
    worker.signal(Signal::TERM);
    cluster
        .until("the job is back", async || match state(id).await {
            Ok((State::Ready, 0)) => Ok(()),
            Ok((State::Running, _)) => {
                // Two signals at once may be one.
                worker.signal(Signal::TERM);
                Err("it runs".to_owned())
            }
            other => Err(format!("{other:?}")),
        })
        .await;
    until_no_dots(&cluster, &file).await;

    // The cluster is away for longer than the lease.
    let file = dir.path().join("two");
    drop(worker);
    let _worker = start(&cluster, &file);
    running(&cluster, id, &file).await;
    cluster.kill9("S1");
    until_no_dots(&cluster, &file).await;
    cluster.restart("S1").await;
    // Begun anew: by the same worker, if the cluster has not missed it, and then it is the same attempt.
    let before = fs::metadata(&file).expect("the file").len();
    cluster
        .until("it runs again", async || {
            let now = fs::metadata(&file).map_err(|error| error.to_string())?.len();
            if now > before { Ok(()) } else { Err(format!("{now} dots")) }
        })
        .await;
    assert_eq!(state(id).await.unwrap().0, State::Running);
}

/// Joins by hand, acknowledges what comes before `phase`, and is never heard of again.
async fn dies_in(cluster: &Cluster, client: &Client, phase: Phase) {
    let join = async |worker: &str| -> u64 {
        let join = json!({"queue": "q", "worker": worker, "lease_ms": 3_000});
        let joined: Value = client.command("jobs", "join", &join).await.expect("it joins").data;
        joined["member"].as_u64().expect("a number")
    };
    let member = join("ghost").await;
    loop {
        let now = ring(cluster, client, "q", "the ghost is asked, or on the ring", |ring| {
            let own = ring.workers.iter().find(|worker| worker.member == member);
            own.is_some_and(|worker| worker.asked || worker.slots > 0 && ring.phase == Phase::Normal)
        })
        .await;
        match now.phase {
            // Who is on the ring is asked to announce itself when the next one comes.
            Phase::Normal => {
                join("visitor").await;
                return;
            }
            now if now == phase => return,
            _ => {}
        }
        let acknowledge = json!({"member": member, "epoch": now.epoch, "phase": now.phase});
        client.command::<Value>("jobs", "acknowledge", &acknowledge).await.expect("it acknowledges");
    }
}

#[tokio::test]
async fn a_resize_goes_on_whoever_dies_in_whichever_phase() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster);
    let _workers = ["W1", "W2"].map(|name| Worker::start(&cluster, "q", name, "2s", &["cat"]));
    let settled = |ring: &RingView| {
        let names: Vec<&str> = ring.workers.iter().map(|worker| worker.name.as_str()).collect();
        let owned: u32 = ring.workers.iter().map(|worker| worker.slots).sum();
        names == ["W1", "W2"] && ring.phase == Phase::Normal && owned == ring.slots
    };
    let before = ring(&cluster, &client, "q", "two workers", settled).await;
    for phase in [Phase::Announce, Phase::Synchronise, Phase::Resume] {
        dies_in(&cluster, &client, phase).await;
        // The others have done their part, and the primary dies too.
        let waiting = ring(&cluster, &client, "q", "only the ghost is waited for", |ring| {
            let asked = ring.workers.iter().filter(|worker| worker.asked);
            ring.phase == phase && asked.map(|worker| worker.name.as_str()).eq(["ghost"])
        })
        .await;
        let primary = cluster.primary().await;
        cluster.kill9(&primary);
        let after = ring(&cluster, &client, "q", "the state is what it was", |_| true).await;
        if after.phase == phase {
            assert_eq!(after.epoch, waiting.epoch, "the resize has gone on");
        }
        cluster.restart(&primary).await;
        let after = ring(&cluster, &client, "q", "the ring is whole again, without the ghost", settled).await;
        assert!(after.epoch > waiting.epoch, "{after:?}");
        let owns =
            |ring: &RingView| ring.workers.iter().map(|worker| worker.owns.clone()).collect::<Vec<_>>();
        assert_eq!(owns(&after), owns(&before), "nothing has moved in the end");
        // And it works.
        for key in ["a", "b", "c", "d"] {
            let words = ["submit", "--queue", "q", "--key", key, "--wait", "30s", key];
            assert_eq!(jobs(&cluster, &words).await.expect(0).stdout, format!("{key}\n"));
        }
    }
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn what_a_command_says_is_what_is_recorded() {
    let cluster = Cluster::start(1).await;
    let submit = async |flags: &[&str], payload: &str| {
        jobs(&cluster, &[&["submit", "--queue", "q"], flags, &[payload]].concat()).await.expect(0).stdout
    };
    let work = async |command: &[&str]| {
        let words = [&["work", "--queue", "q", "--name", "W1", "--until-empty", "--"], command].concat();
        let servers = cluster.urls().join(",");
        let words = [&["jobs", "--servers", servers.as_str()], words.as_slice()].concat();
        quorate(words).await.expect(0)
    };
    assert_eq!(submit(&["--key", "k"], "ada").await, "1\n");
    let told = work(&["sh", "-c", "echo $QUORATE_JOB $QUORATE_KEY $QUORATE_ATTEMPT; cat"]).await;
    assert!(told.stderr.contains("1 jobs done"), "{told:?}");
    assert_eq!(jobs(&cluster, &["result", "1"]).await.expect(0).stdout, "1 k 1\nada\n");

    // Failures: their cause is recorded, and in the end it is a dead letter.
    assert_eq!(submit(&["--attempts", "2", "--backoff", "10ms"], "x").await, "2\n");
    work(&["sh", "-c", "echo no route >&2; exit 7"]).await;
    let refused = jobs(&cluster, &["result", "2"]).await.expect(1);
    assert!(refused.stderr.contains("it is dead: exit status: 7: no route"), "{refused:?}");
    let dead = jobs(&cluster, &["dead", "--json"]).await.expect(0).json();
    assert_eq!((&dead["jobs"][0]["id"], &dead["jobs"][0]["attempts"]), (&json!(2), &json!(2)));
    assert_eq!(jobs(&cluster, &["retry", "--dead", "q"]).await.expect(0).stdout, "1\n");
    work(&["cat"]).await;
    assert_eq!(jobs(&cluster, &["result", "2"]).await.expect(0).stdout, "x\n");

    // Too much, not text, too long, no such command.
    for (command, cause) in [
        (vec!["head", "-c", "70000", "/dev/zero"], "its output takes more than 65536 bytes"),
        (vec!["printf", "\\377"], "its output is not UTF-8"),
    ] {
        let id = submit(&["--attempts", "1"], "x").await;
        work(&command).await;
        let refused = jobs(&cluster, &["result", id.trim()]).await.expect(1);
        assert!(refused.stderr.contains(cause), "{refused:?}");
    }
    let id = submit(&["--attempts", "1"], "x").await;
    let servers = cluster.urls().join(",");
    let slip =
        ["jobs", "work", "--queue", "q", "--name", "W1", "--servers", &servers, "--", "no-such-command"];
    let refused = quorate(slip).await.expect(2);
    assert!(refused.stderr.contains("no-such-command cannot be run"), "{refused:?}");
    let words = [
        "jobs",
        "work",
        "--queue",
        "q",
        "--name",
        "W1",
        "--until-empty",
        "--job-timeout",
        "200ms",
        "--servers",
    ];
    quorate([words.as_slice(), &[&servers, "--", "sleep", "600"]].concat()).await.expect(0);
    let refused = jobs(&cluster, &["result", id.trim()]).await.expect(1);
    assert!(refused.stderr.contains("not done within 200ms"), "{refused:?}");

    // Refusals have their codes.
    jobs(&cluster, &["result", "999"]).await.expect(1);
    jobs(&cluster, &["cancel", "1"]).await.expect(1);
    let many = jobs(&cluster, &["submit", "--queue", "a:b", "x"]).await.expect(1);
    assert!(many.stderr.contains("bad_name"), "{many:?}");
}
