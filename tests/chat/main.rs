//! The chat, as people use it: `quorate chat` on real processes, while servers and clients are killed. The four scenarios are the
//! classic ones; each ends with every account having been shown every message once, all in one order. And a crowd, whose size
//! `QUORATE_CROWD=100x1000` sets: clients, and messages of each.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::client::{Chat, ChatEvent, Client};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::Cluster;

#[path = "../support/mod.rs"]
mod support;

mod input;

/// A `quorate chat` process that is typed to.
struct Talker<'c> {
    cluster: &'c Cluster,
    name: String,
    dir: TempDir,
    child: Option<Child>,
    /// How often it was started: each run writes what it prints into a file of its own.
    runs: usize,
}

impl<'c> Talker<'c> {
    async fn start(cluster: &'c Cluster, name: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut talker = Self { cluster, name: name.to_owned(), dir, child: None, runs: 0 };
        talker.login().await;
        talker
    }

    fn file(&self, run: usize, what: &str) -> PathBuf {
        self.dir.path().join(format!("{run}.{what}"))
    }

    /// Starts it, until it is logged in. One that was killed is active until its session has expired.
    async fn login(&mut self) {
        let mut child = self.launch();
        let cluster = self.cluster;
        cluster
            .until(&format!("{} is logged in", self.name), async || {
                let noted = fs::read_to_string(self.file(self.runs, "err")).map_err(|e| e.to_string())?;
                if noted.contains("/help lists the commands") {
                    return Ok(());
                }
                if child.try_wait().map_err(|e| e.to_string())?.is_some() {
                    assert!(noted.contains("active_elsewhere"), "{noted}");
                    child = self.launch();
                }
                Err(noted)
            })
            .await;
        self.child = Some(child);
    }

    fn launch(&mut self) -> Child {
        self.runs += 1;
        let file = |what| fs::File::create(self.file(self.runs, what)).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["chat", "--json", "--session-ttl", "2s", "--timeout", "30s", "--name", &self.name]);
        command.arg("--servers").arg(self.cluster.urls().join(","));
        command.arg("--cursor").arg(self.dir.path().join("cursor"));
        command.stdin(Stdio::piped()).stdout(file("out")).stderr(file("err"));
        command.spawn().expect("quorate can be run")
    }

    fn types(&mut self, line: &str) {
        let stdin = self.child.as_mut().and_then(|child| child.stdin.as_mut()).expect("it runs");
        writeln!(stdin, "{line}").expect("it reads");
    }

    fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("SIGKILL to a child of ours");
        child.wait().expect("the end of a child of ours");
    }

    /// Ends its input: it logs out.
    async fn leave(&mut self) {
        let mut child = self.child.take().expect("it runs");
        drop(child.stdin.take());
        self.cluster
            .until(&format!("{} has left", self.name), async || {
                match child.try_wait().map_err(|e| e.to_string())? {
                    Some(status) => {
                        assert!(
                            status.success(),
                            "{status}: {}",
                            fs::read_to_string(self.file(self.runs, "err")).expect("its notes")
                        );
                        Ok(())
                    }
                    None => Err("it runs".to_owned()),
                }
            })
            .await;
    }

    /// What it was shown in all its runs: numbers and texts. What is marked as repeated does not count.
    fn shown(&self) -> Vec<(u64, String)> {
        let mut shown = Vec::new();
        for run in 1..=self.runs {
            let text = fs::read_to_string(self.file(run, "out")).expect("its output");
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                if line["repeated"] == false {
                    let message = &line["message"];
                    let number = message["number"].as_u64().expect("a number");
                    shown.push((number, message["text"].as_str().expect("a text").to_owned()));
                }
            }
        }
        shown
    }

    /// Waits until it was shown so many messages, and checks that each came once and in order.
    async fn until_shown(&self, count: usize) -> Vec<(u64, String)> {
        let what = format!("{} was shown {count} messages", self.name);
        let shown = self
            .cluster
            .until(&what, async || {
                let shown = self.shown();
                if shown.len() >= count { Ok(shown) } else { Err(format!("{shown:?}")) }
            })
            .await;
        assert!(shown.windows(2).all(|pair| pair[0].0 < pair[1].0), "{}: {shown:?}", self.name);
        assert_eq!(shown.len(), count, "{}: {shown:?}", self.name);
        shown
    }
}

impl Drop for Talker<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn everybody_was_shown(talkers: &[&Talker<'_>], count: usize) {
    let first = talkers[0].until_shown(count).await;
    for talker in &talkers[1..] {
        assert_eq!(talker.until_shown(count).await, first, "{}", talker.name);
    }
}

/// Everybody leaves, the dead come back, and all servers have the same state.
async fn the_end<const N: usize>(cluster: &Cluster, talkers: [Talker<'_>; N]) {
    for mut talker in talkers {
        talker.leave().await;
    }
    let names: Vec<String> = cluster.names();
    for name in names.iter().filter(|name| !cluster.running().contains(name)) {
        cluster.restart(name).await;
    }
    cluster.equal_hashes().await;
}

/// Each says so many things.
fn all_say(talkers: &mut [&mut Talker<'_>], what: &str, times: usize) {
    for time in 0..times {
        for talker in talkers.iter_mut() {
            let line = format!("{what} {time} of {}", talker.name);
            talker.types(&line);
        }
    }
}

#[tokio::test]
async fn the_lead_server_dies_and_then_the_next_one() {
    let cluster = Cluster::start(5).await;
    let mut ada = Talker::start(&cluster, "ada").await;
    let mut bob = Talker::start(&cluster, "bob").await;
    let mut cleo = Talker::start(&cluster, "cleo").await;
    all_say(&mut [&mut ada, &mut bob, &mut cleo], "before", 3);
    cluster.kill9(&cluster.primary().await);
    all_say(&mut [&mut ada, &mut bob, &mut cleo], "after one", 3);
    everybody_was_shown(&[&ada, &bob, &cleo], 18).await;
    cluster.kill9(&cluster.primary().await);
    all_say(&mut [&mut ada, &mut bob, &mut cleo], "after two", 3);
    everybody_was_shown(&[&ada, &bob, &cleo], 27).await;
    the_end(&cluster, [ada, bob, cleo]).await;
}

#[tokio::test]
async fn somebody_comes_between_two_deaths() {
    let cluster = Cluster::start(5).await;
    let mut ada = Talker::start(&cluster, "ada").await;
    let mut bob = Talker::start(&cluster, "bob").await;
    all_say(&mut [&mut ada, &mut bob], "early", 2);
    cluster.kill9(&cluster.primary().await);
    everybody_was_shown(&[&ada, &bob], 4).await;
    let mut cleo = Talker::start(&cluster, "cleo").await;
    all_say(&mut [&mut ada, &mut cleo], "between", 2);
    everybody_was_shown(&[&ada, &bob], 8).await;
    cluster.kill9(&cluster.primary().await);
    all_say(&mut [&mut bob, &mut cleo], "late", 2);
    ada.types(">> cleo: between us");
    everybody_was_shown(&[&ada], 13).await;
    bob.until_shown(12).await;
    // What was said before she came is not hers.
    cleo.until_shown(9).await;
    the_end(&cluster, [ada, bob, cleo]).await;
}

#[tokio::test]
async fn a_backup_dies_and_then_the_lead_server() {
    let cluster = Cluster::start(5).await;
    let mut ada = Talker::start(&cluster, "ada").await;
    let mut bob = Talker::start(&cluster, "bob").await;
    all_say(&mut [&mut ada, &mut bob], "before", 3);
    cluster.kill9(&cluster.backup().await);
    all_say(&mut [&mut ada, &mut bob], "without a backup", 3);
    cluster.kill9(&cluster.primary().await);
    all_say(&mut [&mut ada, &mut bob], "without the lead", 3);
    everybody_was_shown(&[&ada, &bob], 18).await;
    the_end(&cluster, [ada, bob]).await;
}

#[tokio::test]
async fn a_client_dies_and_is_given_all_that_it_missed() {
    let cluster = Cluster::start(3).await;
    let mut ada = Talker::start(&cluster, "ada").await;
    let mut bob = Talker::start(&cluster, "bob").await;
    all_say(&mut [&mut ada, &mut bob], "together", 3);
    everybody_was_shown(&[&ada, &bob], 6).await;
    bob.kill9();
    all_say(&mut [&mut ada], "he is gone", 5);
    ada.types(">> bob: where are you?");
    let lead = cluster.primary().await;
    cluster.kill9(&lead);
    all_say(&mut [&mut ada], "and so is the lead", 5);
    bob.login().await;
    everybody_was_shown(&[&ada, &bob], 17).await;
    bob.types("/history ada 1");
    bob.leave().await;
    ada.leave().await;
    // Deleted while somebody is there: that one is told, and the account is not made anew.
    let mut dora = Talker::start(&cluster, "dora").await;
    ada.login().await;
    ada.types("goodbye");
    ada.until_shown(18).await;
    dora.until_shown(1).await;
    ada.leave().await;
    dora.types("/delete dora");
    dora.types("am I still here?");
    let mut child = dora.child.take().expect("it runs");
    assert_eq!(ended(&cluster, &mut child).await, Some(0), "she asked for it");
    let client = cluster.client().build().expect("a client");
    let accounts: Value =
        client.query("chat", "accounts", &[], Default::default()).await.expect("an answer").data;
    let names: Vec<_> =
        accounts["accounts"].as_array().expect("rows").iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["ada", "bob"]);
    // The same one is not there twice at once.
    ada.login().await;
    let other = ada.dir.path().join("another cursor");
    let servers = cluster.urls().join(",");
    let words = ["chat", "--name", "ada", "--cursor", &other.display().to_string(), "--servers", &servers];
    let twice = support::cli::quorate(words).await;
    assert!(twice.stderr.contains("active elsewhere"), "{twice:?}");
    assert_eq!(twice.code, 1);
    // Somebody else's account takes an administrator.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let typed = dir.path().join("typed");
    fs::write(&typed, "/delete bob\n/list\n").expect("a file");
    for (flag, code) in [(None, 1), (Some("--admin"), 0)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["chat", "--name", "root", "--servers", &servers, "--timeout", "30s"]).args(flag);
        command
            .arg("--cursor")
            .arg(dir.path().join("cursor"))
            .stdin(fs::File::open(&typed).expect("the file"));
        let run = support::cli::run_with_stdin(command).await.expect(code);
        assert_eq!(run.stdout.contains("bob"), flag.is_none(), "{run:?}");
        assert_eq!(run.stderr.contains("not_yours"), flag.is_none(), "{run:?}");
    }
    cluster.restart(&lead).await;
    tokio::time::timeout(Duration::from_secs(60), cluster.equal_hashes()).await.expect("equal states");
}

/// Waits for a process's end; gives its exit code, if it ended by itself.
async fn ended(cluster: &Cluster, child: &mut Child) -> Option<i32> {
    cluster
        .until("it has ended", async || match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => Ok(status.code()),
            None => Err("it runs".to_owned()),
        })
        .await
}

fn crowd() -> (usize, usize) {
    let Ok(size) = std::env::var("QUORATE_CROWD") else { return (12, 60) };
    let numbers = size
        .split_once('x')
        .and_then(|(clients, messages)| Some((clients.parse().ok()?, messages.parse().ok()?)));
    numbers.expect("QUORATE_CROWD is like 100x1000")
}

/// What somebody was shown: a hash over all of it, in order; and the texts, of one that keeps them.
async fn listen(chat: Chat, count: usize, keeps: bool) -> (u64, Vec<String>) {
    let mut events = chat.events(0);
    let (mut hash, mut texts, mut last) = (DefaultHasher::new(), Vec::new(), 0);
    while last < count as u64 {
        let ChatEvent::Message(message) = events.next().await.expect("events go on") else { continue };
        assert_eq!(message.number, last + 1, "{}: one is missing, or doubled", chat.name());
        last = message.number;
        (&message.from, &message.text).hash(&mut hash);
        if keeps {
            texts.push(message.text);
        }
    }
    (hash.finish(), texts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_talks_while_servers_die() {
    let (clients, messages) = crowd();
    let cluster = Cluster::start(3).await;
    let mut chats: Vec<(Client, Chat)> = Vec::new();
    for number in 0..clients {
        let client = cluster.client().build().expect("a client");
        let (chat, _) = client.chat(&format!("c{number}"), "default").await.expect("a login");
        chats.push((client, chat));
    }
    let count = clients * messages;
    let listeners: Vec<_> = chats
        .iter()
        .enumerate()
        .map(|(at, (_, chat))| tokio::spawn(listen(chat.clone(), count, at == 0)))
        .collect();
    let said = Arc::new(AtomicUsize::new(0));
    let talkers: Vec<_> = chats
        .iter()
        .map(|(_, chat)| {
            let (chat, said) = (chat.clone(), Arc::clone(&said));
            tokio::spawn(async move {
                for number in 0..messages {
                    chat.say(None, &format!("{}-{number}", chat.name())).await.expect("said");
                    said.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut deaths = 0;
    while said.load(Ordering::Relaxed) < count {
        // About five in all.
        let next = count * (deaths + 1) / 6;
        cluster
            .until("they talk on", async || match said.load(Ordering::Relaxed) {
                so_far if so_far >= next => Ok(()),
                so_far => Err(format!("{so_far} of {count}")),
            })
            .await;
        let primary = cluster.primary().await;
        cluster.kill9(&primary);
        cluster.restart(&primary).await;
        deaths += 1;
    }
    for talker in talkers {
        talker.await.expect("a talker that said everything");
    }
    let mut first: Option<(u64, Vec<String>)> = None;
    for listener in listeners {
        let shown = listener.await.expect("a listener that was shown everything");
        match &first {
            None => first = Some(shown),
            Some((hash, _)) => assert_eq!(shown.0, *hash, "another order, or other texts"),
        }
    }
    // All of what was said, and what each said in its order.
    let mut next = vec![0; clients];
    for text in first.expect("somebody").1 {
        let (name, number) = text.split_once('-').expect("NAME-NUMBER");
        let at: usize = name[1..].parse().expect("c and a number");
        assert_eq!(number, next[at].to_string(), "{name}");
        next[at] += 1;
    }
    assert_eq!(next, vec![messages; clients]);
    for (client, _) in chats {
        client.close().await.expect("the end of the session");
    }
    cluster.wait_all_ready().await;
    cluster.equal_hashes().await;
    println!("{count} messages to each of {clients} clients, through {deaths} deaths of the primary");
}
