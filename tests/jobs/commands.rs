//! The command line: what a worker's command does and says, and what is told of jobs.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use quorate::client::NewJob;
use quorate::services::jobs::State;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::cli::{Run, quorate, quorate_command, run_with_stdin};
use crate::{Worker, client, jobs};

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

    // A terminal that is closed says so twice, and its job is done all the same.
    drop(worker);
    let worker = Worker::start(&cluster, "q", "W1", "2s", &["sh", "-c", "sleep 1; cat"]);
    cluster
        .until("it runs again", async || match state(id).await {
            Ok((State::Running, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    worker.signal(Signal::HUP);
    cluster
        .until("it is done", async || {
            worker.signal(Signal::HUP);
            match state(id).await {
                Ok((State::Done, 1)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    let id = submit().await;

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

/// `quorate jobs work` on the queue "q" until it is empty.
async fn work(cluster: &Cluster, flags: &[&str], command: &[&str]) -> Run {
    let flags = [&["work", "--queue", "q", "--name", "W1", "--until-empty"], flags].concat();
    let servers = cluster.urls().join(",");
    quorate([&["jobs", "--servers", &servers], flags.as_slice(), &["--"], command].concat()).await
}

/// Submits to the queue "q"; gives the job's number.
async fn submit(cluster: &Cluster, flags: &[&str], payload: &str) -> String {
    let words = [&["submit", "--queue", "q"], flags, &[payload]].concat();
    jobs(cluster, &words).await.expect(0).stdout.trim().to_owned()
}

#[tokio::test]
async fn what_a_command_says_is_what_is_recorded() {
    let cluster = Cluster::start(1).await;
    assert_eq!(submit(&cluster, &["--key", "k"], "ada").await, "1");
    let told =
        work(&cluster, &[], &["sh", "-c", "echo $QUORATE_JOB $QUORATE_KEY $QUORATE_ATTEMPT; cat"]).await;
    assert!(told.expect(0).stderr.contains("1 job done"));
    assert_eq!(jobs(&cluster, &["result", "1"]).await.expect(0).stdout, "1 k 1\nada\n");

    // Failures: their cause is recorded, and in the end it is a dead letter, and the worker has not done it all.
    assert_eq!(submit(&cluster, &["--attempts", "2", "--backoff", "10ms"], "x").await, "2");
    let told = work(&cluster, &[], &["sh", "-c", "echo no route >&2; exit 7"]).await.expect(1);
    assert!(told.stderr.contains("0 jobs done, and 1 dead"), "{told:?}");
    let refused = jobs(&cluster, &["result", "2"]).await.expect(1);
    assert!(refused.stderr.contains("it is dead: exit status: 7: no route"), "{refused:?}");
    let dead = jobs(&cluster, &["dead", "--json"]).await.expect(0).json();
    assert_eq!((&dead["jobs"][0]["id"], &dead["jobs"][0]["attempts"]), (&json!(2), &json!(2)));
    assert_eq!(jobs(&cluster, &["retry", "--dead", "q"]).await.expect(0).stdout, "1\n");
    work(&cluster, &[], &["cat"]).await.expect(0);
    assert_eq!(jobs(&cluster, &["result", "2"]).await.expect(0).stdout, "x\n");
    // What it failed by before is told, and not as what it is now.
    assert!(!jobs(&cluster, &["list", "--queue", "q"]).await.expect(0).stdout.contains("no route"));
    assert!(jobs(&cluster, &["status", "2"]).await.expect(0).stdout.contains("had failed exit status: 7"));

    // What is of no use is not tried again.
    let id = submit(&cluster, &[], "x").await;
    work(&cluster, &["--dead-on", "65,66"], &["sh", "-c", "exit 66"]).await.expect(1);
    let dead = jobs(&cluster, &["status", &id, "--json"]).await.expect(0).json();
    assert_eq!((&dead["state"], &dead["attempts"]), (&json!("dead"), &json!(1)), "{dead}");

    // What is left behind in another session, with the pipes open, holds nobody up.
    let id = submit(&cluster, &["--attempts", "1"], "x").await;
    work(&cluster, &["--job-timeout", "15s"], &["sh", "-c", "setsid sleep 30 & echo done"]).await.expect(0);
    assert_eq!(jobs(&cluster, &["result", &id]).await.expect(0).stdout, "done\n");

    // How far it is.
    let id = submit(&cluster, &[], "x").await;
    let script = "echo begun >$QUORATE_PROGRESS; echo half >>$QUORATE_PROGRESS; while kill -0 $PPID; do sleep 0.1; done";
    let worker = Worker::start(&cluster, "q", "W1", "2s", &["sh", "-c", script]);
    cluster
        .until("its progress is told", async || {
            let told = jobs(&cluster, &["status", &id, "--json"]).await.expect(0).json();
            if told["progress"] == "half" { Ok(()) } else { Err(told.to_string()) }
        })
        .await;
    jobs(&cluster, &["cancel", &id]).await.expect(0);
    drop(worker);

    // Too much, not text, too long, no such command.
    for (command, cause) in [
        (vec!["head", "-c", "70000", "/dev/zero"], "its output takes more than 65536 bytes"),
        (vec!["printf", "\\377"], "its output is not UTF-8"),
    ] {
        let id = submit(&cluster, &["--attempts", "1"], "x").await;
        work(&cluster, &[], &command).await.expect(1);
        let refused = jobs(&cluster, &["result", &id]).await.expect(1);
        assert!(refused.stderr.contains(cause), "{refused:?}");
    }
    let id = submit(&cluster, &["--attempts", "1"], "x").await;
    let refused = work(&cluster, &[], &["no-such-command"]).await.expect(2);
    assert!(refused.stderr.contains("no-such-command cannot be run"), "{refused:?}");
    work(&cluster, &["--job-timeout", "200ms"], &["sleep", "600"]).await.expect(1);
    let refused = jobs(&cluster, &["result", &id]).await.expect(1);
    assert!(refused.stderr.contains("not done within 200ms"), "{refused:?}");
}

/// What comes slowly is submitted as it comes.
#[tokio::test]
async fn lines_are_submitted_as_they_come() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let servers = cluster.urls().join(",");
    let mut command = quorate_command();
    command.args(["jobs", "submit", "--queue", "q", "--lines", "--servers", &servers]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("quorate can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    for count in 1..=3 {
        writeln!(stdin, "line {count}").expect("it reads");
        cluster
            .until("it is submitted", async || {
                let queue = client.jobs().queue("q").await.map_err(|error| error.to_string())?;
                match queue.map_or(0, |queue| queue.jobs.ready) {
                    ready if ready == count => Ok(()),
                    ready => Err(format!("{ready} of {count} are there")),
                }
            })
            .await;
    }
    stdin.write_all(b"\xff\nline 5\n").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"1\n2\n3\n"[..]));
}

#[tokio::test]
async fn what_is_asked_is_answered_with_a_code() {
    let cluster = Cluster::start(1).await;
    // Whether a job has ended is not known to have an answer yet.
    let id = submit(&cluster, &[], "x").await;
    for words in [vec!["result", &id], vec!["result", &id, "--wait", "10ms"]] {
        let open = jobs(&cluster, &words).await.expect(3);
        assert!(open.stderr.contains("has not ended, it is ready"), "{open:?}");
    }
    let open = jobs(&cluster, &["submit", "--queue", "q", "--wait", "10ms", "y"]).await.expect(3);
    assert!(open.stderr.contains("job 2 has not ended, it is ready"), "{open:?}");
    assert_eq!(jobs(&cluster, &["cancel", "2"]).await.expect(0).stdout, "cancelled\n");
    let cancelled = jobs(&cluster, &["result", "2", "--wait", "10s"]).await.expect(1);
    assert!(cancelled.stderr.contains("has no result, it is cancelled"), "{cancelled:?}");

    // A slip of the pen is no empty queue.
    for words in [
        &["list", "--queue", "p"][..],
        &["dead", "--queue", "p"],
        &["retry", "--dead", "p"],
        &["ring", "--queue", "p"],
    ] {
        let refused = jobs(&cluster, words).await.expect(1);
        assert!(refused.stderr.contains("there is no queue p"), "{refused:?}");
        assert_eq!(refused.stdout, "");
    }
    jobs(&cluster, &["result", "999"]).await.expect(1);
    jobs(&cluster, &["cancel", "2"]).await.expect(1);
    let refused = jobs(&cluster, &["submit", "--queue", "a:b", "x"]).await.expect(1);
    assert!(refused.stderr.contains("bad_name"), "{refused:?}");
    let refused = jobs(&cluster, &["submit", "--attempts", "-1", "x"]).await.expect(2);
    assert!(refused.stderr.contains("-1 is not in 1..=1000"), "{refused:?}");

    // A program reads each answer as JSON.
    let lines = |run: Run| -> Vec<Value> {
        run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let told = lines(work(&cluster, &["--json"], &["cat"]).await.expect(0));
    let events: Vec<_> = told.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(events, ["joined", "begun", "ended"], "{told:?}");
    assert_eq!((&told[2]["job"], &told[2]["state"]), (&json!(1), &json!("done")));
    let retried = jobs(&cluster, &["retry", "--dead", "q", "--json"]).await.expect(0).json();
    assert_eq!(retried, json!({"jobs": 0}));
    let mut command = quorate_command();
    let servers = cluster.urls().join(",");
    command.args(["jobs", "submit", "--queue", "q", "--lines", "--json", "--servers", &servers]);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let typed = dir.path().join("lines");
    fs::write(&typed, format!("a\n{}\nb\n", "x".repeat(70_000))).expect("a file");
    command.stdin(fs::File::open(&typed).expect("the file"));
    let told = lines(run_with_stdin(command).await.expect(1));
    let codes: Vec<_> = told.iter().map(|line| (&line["id"], &line["refused"]["refusal"])).collect();
    assert_eq!(
        codes,
        [(&json!(3), &Value::Null), (&Value::Null, &json!("too_large")), (&json!(4), &Value::Null)]
    );
}
