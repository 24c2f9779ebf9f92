//! The command line's contract: what stdout carries, and what the exit code says.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::cli::{Run, quorate, with_environment};
use support::process::Port;
use support::{Cluster, Setup};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const UNKNOWN: i32 = 3;

/// `quorate client …` against all servers.
async fn client(cluster: &Cluster, words: &[&str]) -> Run {
    let servers = cluster.urls().join(",");
    quorate([&["client", "--servers", &servers], words].concat()).await
}

async fn cluster_command(cluster: &Cluster, words: &[&str]) -> Run {
    let servers = cluster.urls().join(",");
    quorate([&["cluster", "--servers", &servers], words].concat()).await
}

/// Fails unless the command is done, prints just this, and says nothing on stderr.
async fn prints(cluster: &Cluster, words: &[&str], value: &str) {
    let run = client(cluster, words).await;
    let expected = Run { code: DONE, stdout: format!("{value}\n"), stderr: String::new() };
    assert_eq!(run, expected, "quorate client {}", words.join(" "));
}

/// Fails unless the command ends with `code`, prints nothing, and says why on stderr.
async fn fails(cluster: &Cluster, words: &[&str], code: i32, texts: &[&str]) {
    let run = client(cluster, words).await.expect(code);
    assert_eq!(run.stdout, "", "quorate client {}", words.join(" "));
    for text in texts {
        assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
    }
}

#[tokio::test]
async fn counters() {
    let cluster = Cluster::start(1).await;
    prints(&cluster, &["get"], "0").await;
    prints(&cluster, &["add", "5"], "5").await;
    prints(&cluster, &["add", "-7"], "-2").await;
    prints(&cluster, &["minus", "3"], "-5").await;
    prints(&cluster, &["minus", "-10"], "5").await;
    prints(&cluster, &["set", "-100"], "-100").await;
    prints(&cluster, &["cas", "-100", "-1"], "-1").await;
    prints(&cluster, &["add", "1", "--counter", "hits"], "1").await;
    prints(&cluster, &["--counter", "hits", "get"], "1").await;
    prints(&cluster, &["get", "--read", "stale", "--max-age", "1s"], "-1").await;
    prints(&cluster, &["get", "--read", "lease"], "-1").await;
    prints(&cluster, &["list"], "default\t-1\nhits\t1").await;
    prints(&cluster, &["list", "--prefix", "h"], "hits\t1").await;
    prints(&cluster, &["delete"], "0").await;
    prints(&cluster, &["add", "9223372036854775807"], "9223372036854775807").await;

    // Refused, for certain, and the cause.
    fails(&cluster, &["add", "1"], FAILED, &["overflow"]).await;
    fails(&cluster, &["cas", "3", "4"], FAILED, &["compare_failed", "9223372036854775807"]).await;
    fails(&cluster, &["add", "1", "--counter", ""], FAILED, &["name is empty"]).await;
    prints(&cluster, &["get"], "9223372036854775807").await;
}

#[tokio::test]
async fn registers() {
    let cluster = Cluster::start(1).await;
    let absent = client(&cluster, &["register", "get"]).await.expect(DONE);
    assert_eq!(absent.stdout, "\n");
    assert!(absent.stderr.contains("absent"), "{absent:?}");
    prints(&cluster, &["register", "cas", "--absent", "hello"], "hello").await;
    prints(&cluster, &["register", "append", " world"], "hello world").await;
    prints(&cluster, &["register", "cas", "hello world", "-5"], "-5").await;
    prints(&cluster, &["register", "get"], "-5").await;
    prints(&cluster, &["register", "set", "--dashes"], "--dashes").await;
    prints(&cluster, &["register", "set", "ü ☃ \"'\\", "--name", "odd"], "ü ☃ \"'\\").await;
    prints(&cluster, &["register", "list"], "default\t--dashes\nodd\tü ☃ \"'\\").await;
    prints(&cluster, &["register", "delete"], "").await;
    fails(&cluster, &["register", "cas", "a", "b"], FAILED, &["compare_failed", "cas --absent NEW"]).await;
    prints(&cluster, &["register", "cas", "--absent", "-a", "--name", "dash"], "-a").await;
    prints(&cluster, &["register", "cas", "-a", "--name", "dash", "-b"], "-b").await;
    fails(&cluster, &["register", "cas", "--absent", "a", "--name", "odd"], FAILED, &["compare_failed"])
        .await;
    fails(&cluster, &["register", "cas", "a"], USAGE, &["OLD and NEW"]).await;
}

/// `--json` prints the HTTP body, of a refusal too.
#[tokio::test]
async fn json_is_the_http_body() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let added = client(&cluster, &["add", "5", "--json"]).await.expect(DONE).json();
    let keys: BTreeSet<&str> = added.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["previous", "revision", "value"]));
    assert_eq!((&added["previous"], &added["value"]), (&json!(0), &json!(5)));
    let direct = cluster.http.ok(&format!("{url}/v1/counter/get")).await.expect("the counter");
    let session_closed = json!({"revision": 0});
    let mut got = client(&cluster, &["get", "--json"]).await.expect(DONE).json();
    let mut direct: Value = serde_json::from_str(&direct).expect("JSON");
    // Other commands' sessions take revisions.
    (got["revision"], direct["revision"]) = (session_closed.clone(), session_closed);
    assert_eq!(got, direct);
    let refused = client(&cluster, &["cas", "1", "2", "--json"]).await.expect(FAILED);
    let problem = refused.json();
    assert_eq!((&problem["code"], &problem["current"]), (&json!("refused"), &json!(5)), "{problem}");
    assert_eq!(problem["outcome"], "not_applied", "{problem}");
    assert!(!refused.stderr.is_empty(), "a person is told too");
    let list = client(&cluster, &["list", "--json"]).await.expect(DONE).json();
    assert_eq!(list["counters"], json!([{"name": "default", "value": 5}]));
}

#[tokio::test]
async fn mistakes_in_the_command_line_are_usage() {
    let cases: [&[&str]; 19] = [
        &[],
        &["explode"],
        &["client"],
        &["client", "explode"],
        &["client", "add"],
        &["client", "add", "five"],
        &["client", "add", "1.5"],
        &["client", "add", "9223372036854775808"],
        &["client", "add", "1", "2"],
        &["client", "add", "1", "--colour", "red"],
        &["client", "add", "1", "--timeout", "soon"],
        &["client", "get", "--read", "tomorrow"],
        &["client", "get", "--servers", "not a url"],
        &["client", "get", "--servers", "http://127.0.0.1:1/foo"],
        &["bench", "--servers", "127.0.0.1:1/foo"],
        &["client", "list", "--limit", "1001"],
        &["client", "get", "--config", "/nonexistent/quorate.toml"],
        &["server", "--name", "S1"],
        &["bench", "--op", "get", "--batch", "5"],
    ];
    for words in cases {
        let run = quorate(words).await.expect(USAGE);
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{words:?}: {run:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_a_failure_for_certain() {
    let port = Port::reserve();
    let url = format!("http://{}", port.address());
    for words in [
        &["client", "add", "1"][..],
        &["client", "get"],
        &["cluster", "status"],
        &["cluster", "promote", "S1"],
    ] {
        let run = quorate([words, &["--servers", &url, "--timeout", "300ms"]].concat()).await.expect(FAILED);
        assert_eq!(run.stdout, "", "{words:?}");
        // The cause, what was tried, and what to do next.
        for text in [&port.address()[..], "refused", "scripts/cluster.sh up"] {
            assert!(run.stderr.contains(text), "no {text:?} in {run:?}");
        }
    }
}

/// A server that takes a command and falls silent: whether it was applied, nobody can say.
#[tokio::test]
async fn a_lost_answer_is_unknown() {
    let mut cluster = Cluster::start(1).await;
    let named = ["add", "1", "--session", "mine"];
    client(&cluster, &named).await.expect(DONE);
    cluster.pause("S1");
    let lost =
        client(&cluster, &["add", "1", "--session", "off", "--timeout", "700ms"]).await.expect(UNKNOWN);
    assert_eq!(lost.stdout, "");
    assert!(lost.stderr.contains("outcome unknown") && lost.stderr.contains("read the state"), "{lost:?}");
    // A read changes nothing, whatever became of it.
    client(&cluster, &["get", "--timeout", "700ms"]).await.expect(FAILED);
    let url = cluster.url("S1");
    let change = ["cluster", "set", "mode", "active", "--servers", &url, "--timeout", "700ms"];
    quorate(change).await.expect(UNKNOWN);
    cluster.resume("S1");
    cluster.wait_ready("S1").await;
    let value = client(&cluster, &["get"]).await.expect(DONE).stdout;
    assert!(["1\n", "2\n"].contains(&value.as_str()), "{value}");
    cluster.server_mut("S1").kill9();
}

#[tokio::test]
async fn settings_come_from_flags_environment_and_file() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url("S1");
    let nowhere = "http://127.0.0.1:9";
    let run =
        with_environment(["client", "add", "1", "--counter", "env"], &[("QUORATE_SERVERS", &url)]).await;
    assert_eq!(run.expect(DONE).stdout, "1\n");
    let flag = ["client", "--servers", &url, "get", "--counter", "env"];
    assert_eq!(with_environment(flag, &[("QUORATE_SERVERS", nowhere)]).await.expect(DONE).stdout, "1\n");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("quorate.toml");
    std::fs::write(&file, format!("servers = [\"{url}\"]\ncounter = \"env\"\n")).expect("a file");
    let file = file.display().to_string();
    let run = quorate(["client", "get", "--config", &file]).await;
    assert_eq!(run.expect(DONE).stdout, "1\n", "the file alone");
    let run = with_environment(["client", "get", "--config", &file], &[("QUORATE_COUNTER", "other")]).await;
    assert_eq!(run.expect(DONE).stdout, "0\n", "the environment wins over the file");
}

#[tokio::test]
async fn a_log_of_several_pages_is_shown_whole() {
    let cluster = Cluster::start(1).await;
    let url = format!("{}/v1/register/set", cluster.url("S1"));
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        cluster.http.post(&url, &json!({"name": name, "text": "x".repeat(240_000)})).await.expect("a reply");
    }
    let revisions = |run: Run| -> Vec<u64> {
        let page = run.json();
        let deltas = page["deltas"].as_array().expect("deltas");
        deltas.iter().map(|delta| delta["revision"].as_u64().expect("a revision")).collect()
    };
    let log = cluster_command(&cluster, &["log", "--from", "1", "--json"]).await;
    let all = revisions(log.expect(DONE));
    assert!(all.len() >= 10 && all.iter().copied().eq(1..=all.len() as u64), "{all:?}");
    let limit = (all.len() - 1).to_string();
    let run = cluster_command(&cluster, &["log", "--from", "1", "--limit", &limit, "--json"]).await;
    assert!(run.stderr.contains(&format!("--from {}", all.len())), "{}", run.stderr);
    assert_eq!(revisions(run), all[..all.len() - 1]);
}

/// The path from here, where the servers of a test run too.
fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().expect("the working directory");
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    up.join(path.strip_prefix("/").expect("an absolute path"))
}

#[tokio::test]
async fn the_cluster_is_shown_and_backed_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = relative(dir.path());
    let cluster =
        Cluster::with(Setup { servers: 1, places: [("S1".to_owned(), place)].into(), ..Setup::default() })
            .await;
    client(&cluster, &["add", "41", "--counter", "shown"]).await.expect(DONE);
    let status = cluster_command(&cluster, &["status"]).await.expect(DONE).stdout;
    for text in ["primary", "S1", "settled", &cluster.url("S1"), "revision"] {
        assert!(status.contains(text), "no {text:?} in {status}");
    }
    let json = cluster_command(&cluster, &["status", "--json"]).await.expect(DONE).json();
    assert_eq!((&json["primary"], &json["settled"]), (&json!("S1"), &json!(true)), "{json}");
    let log = cluster_command(&cluster, &["log"]).await.expect(DONE).stdout;
    let line = log.lines().find(|line| line.contains("shown")).unwrap_or_else(|| panic!("no add in {log}"));
    assert!(line.contains("counter") && line.contains("\"amount\":41"), "{line}");
    let logged = cluster_command(&cluster, &["log", "--json"]).await.expect(DONE).json();
    let deltas = logged["deltas"].as_array().expect("deltas");
    let add = deltas.iter().find(|delta| delta["service"] == "counter").expect("the add");
    assert_eq!(add["command"], json!({"add": {"name": "shown", "amount": 41}}));
    for key in ["revision", "time_ms", "session", "sequence"] {
        assert!(add[key].as_u64().is_some_and(|number| number > 0), "{key} in {add}");
    }
    let from = add["revision"].to_string();
    let page = cluster_command(&cluster, &["log", "--from", &from, "--limit", "1", "--json"])
        .await
        .expect(DONE)
        .json();
    assert_eq!(page["deltas"], json!([add]));
    let snapshot = cluster_command(&cluster, &["snapshot"]).await.expect(DONE);
    let file = Path::new(snapshot.stdout.trim_end());
    assert!(file.is_absolute(), "{snapshot:?}");
    assert!(std::fs::metadata(file).is_ok_and(|file| file.len() > 100), "{snapshot:?}");
    assert_eq!(
        cluster_command(&cluster, &["set", "mode", "active"]).await.expect(DONE).stdout,
        "mode = active\n"
    );
    let unknown = cluster_command(&cluster, &["set", "colour", "red"]).await.expect(FAILED);
    assert!(unknown.stderr.contains("colour") && unknown.stderr.contains("mode"), "{unknown:?}");
}

#[tokio::test]
async fn watches_and_loops_print_as_it_happens() {
    let cluster = Cluster::start(1).await;
    for amount in ["1", "2", "3"] {
        client(&cluster, &["add", amount, "--counter", "seen"]).await.expect(DONE);
    }
    let run = client(&cluster, &["watch", "--help"]).await.expect(DONE);
    assert!(run.stdout.contains("--from"), "{run:?}");
    // Output to a reader that went away is no error: `quorate client … | head -1`.
    let url = cluster.url("S1");
    let script = format!(
        "\"{0}\" client --servers {url} watch seen --from 0 | head -n 3",
        env!("CARGO_BIN_EXE_quorate")
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]);
    // The watch ends with its next line after `head` did.
    let adding = async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            client(&cluster, &["add", "1", "--counter", "seen"]).await.expect(DONE);
        }
    };
    let run = tokio::select! {
        run = support::cli::run(command) => run,
        () = adding => unreachable!("it never ends"),
    };
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{run:?}");
    for (line, value) in lines.iter().zip(["1", "3", "6"]) {
        assert!(line.contains("seen") && line.contains(value), "{line}");
    }
}

#[tokio::test]
async fn a_loop_whose_servers_are_all_silent_says_so_and_exits_3() {
    let cluster = Cluster::start(1).await;
    let words = ["loop", "--every", "10ms", "--timeout", "1s"];
    let (ended, ()) = tokio::join!(client(&cluster, &words), async {
        let register = format!("{}/v1/register/get", cluster.url("S1"));
        cluster
            .until("the loop goes on", async || match cluster.http.json(&register).await?["text"].as_str() {
                Some(text) if text != "hello_world1" => Ok(()),
                text => Err(format!("{text:?}")),
            })
            .await;
        cluster.kill9("S1");
    });
    let ended = ended.expect(3);
    assert!(ended.stdout.starts_with("hello_world1\nhello_world2\n"), "{ended:?}");
    assert!(ended.stderr.contains("at hello_world"), "{ended:?}");
}

#[tokio::test]
async fn a_bench_prints_one_object() {
    let cluster = Cluster::start(1).await;
    let servers = cluster.urls().join(",");
    let bench = async |words: &[&str]| {
        let common = ["bench", "--servers", &servers, "--secs", "0.5", "--warmup", "0", "--json"];
        quorate([&common[..], words].concat()).await.expect(DONE)
    };
    let keys =
        ["op", "clients", "batch", "secs", "ops", "ops_per_sec", "p50_us", "p99_us", "p999_us", "errors"]
            .into();
    for words in
        [&["--clients", "4"][..], &["--clients", "2", "--batch", "100"], &["--clients", "4", "--op", "get"]]
    {
        let run = bench(words).await;
        assert_eq!(run.stdout.lines().count(), 1, "{run:?}");
        let report = run.json();
        let found: BTreeSet<&str> =
            report.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(found, keys, "{words:?}");
        assert!(report["ops"].as_u64().is_some_and(|ops| ops > 0), "{report}");
        assert_eq!((&report["errors"], &report["secs"]), (&json!(0), &json!(0.5)), "{report}");
    }
    // `ops` counts adds, not requests.
    let report = bench(&["--clients", "1", "--batch", "100", "--keys", "1"]).await.json();
    assert_eq!(report["ops"].as_u64().expect("a number") % 100, 0, "{report}");
    let sum = client(&cluster, &["list", "--prefix", "bench-", "--json"]).await.expect(DONE).json();
    let sum: i64 =
        sum["counters"].as_array().expect("rows").iter().filter_map(|row| row["value"].as_i64()).sum();
    assert!(sum >= report["ops"].as_i64().expect("a number"), "{sum} is less than {report}");
}

#[tokio::test]
async fn help_version_and_completions_go_to_stdout() {
    let version = quorate(["--version"]).await.expect(DONE).stdout;
    for text in [env!("CARGO_PKG_VERSION"), "commit ", "disk format ", "peer protocol "] {
        assert!(version.contains(text), "no {text:?} in {version}");
    }
    let commands: [&[&str]; 21] = [
        &[],
        &["server"],
        &["client"],
        &["client", "add"],
        &["client", "minus"],
        &["client", "get"],
        &["client", "set"],
        &["client", "cas"],
        &["client", "delete"],
        &["client", "register"],
        &["client", "list"],
        &["client", "watch"],
        &["client", "console"],
        &["client", "loop"],
        &["bench"],
        &["cluster"],
        &["cluster", "init"],
        &["cluster", "status"],
        &["cluster", "promote"],
        &["cluster", "snapshot"],
        &["completions"],
    ];
    for words in commands {
        let help = quorate([words, &["--help"]].concat()).await.expect(DONE);
        assert!(help.stdout.contains("Example"), "`quorate {} --help` has no example", words.join(" "));
        assert_eq!(help.stderr, "", "{words:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = quorate(["completions", shell]).await.expect(DONE).stdout;
        assert!(
            script.contains("quorate") && script.contains("promote"),
            "completions for {shell}: {script}"
        );
    }
    quorate(["completions", "abacus"]).await.expect(USAGE);
}
