//! The process whose power is cut. It first checks what the last cut left, then works on.
//!
//! Every step is written to stdout before it is made, and acknowledged there once it is on disk.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::RaftSnapshotBuilder as _;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine, StorageHelper};
use openraft::type_config::TypeConfigExt as _;
use openraft::vote::RaftLeaderId as _;
use quorate_storage::node_disk::{self, NodeDisk};
use quorate_storage::raft_types::{LogId, SnapshotMeta, TypeConfig, Vote, log_id};
use quorate_storage::snapshot;
use quorate_storage::state_machine::{SnapshotHandle, StateMachine};
use quorate_storage::tables::base::{Base, FlushMeta};

use crate::check::check;
use crate::history::{History, Step, View};
use crate::support::{self, Model, Rng, apply, entry, open, read_all};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Nothing happens for so long, so that a cut can come.
const PAUSE: Duration = Duration::from_millis(20);

/// What the parent says through the environment.
pub(crate) struct Settings {
    /// The server's directory, on the disk whose power is cut.
    pub(crate) dir: PathBuf,
    /// The lines of the writers before.
    pub(crate) journal: PathBuf,
    /// For what must survive the cut by itself, such as the snapshots of another server.
    pub(crate) scratch: PathBuf,
    pub(crate) seed: u64,
    /// `work`; `check`, then end; or `open`, say what is there, and wait.
    pub(crate) task: String,
}

pub(crate) fn run(settings: &Settings) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Ends the line that libtest has begun.
    say("");
    let done = runtime.block_on(async {
        if settings.task == "open" {
            let disk = open(&settings.dir)?;
            say(&format!("found {}", disk.log.range().map_or(0, |(_, last)| last)));
            std::future::pending::<()>().await;
        }
        let mut writer = Writer::start(settings).await?;
        say("ready");
        if settings.task == "check" {
            return Ok(());
        }
        loop {
            writer.step().await?;
        }
    });
    if let Err::<(), Box<dyn std::error::Error + Send + Sync>>(error) = done {
        say(&format!("failed {error}"));
        std::process::exit(3);
    }
}

/// One line, in one write.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent is gone: so is the reason to go on.
    if out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(4);
    }
}

struct Writer {
    disk: NodeDisk,
    machine: StateMachine,
    rng: Rng,
    scratch: PathBuf,
    /// The log as the steps so far leave it.
    view: View,
    steps: Arc<AtomicUsize>,
    applied: u64,
    /// The tables at `applied`.
    model: Model,
    flush: Option<tokio::task::JoinHandle<()>>,
    transfers: u64,
}

impl Writer {
    async fn start(settings: &Settings) -> Result<Self> {
        let lines = std::fs::read_to_string(&settings.journal)?;
        let mut history = History::parse(lines.lines());
        if !history.created {
            // A cut in the middle of making the directory leaves nothing, or all of it.
            if !node_disk::inhabited(&settings.dir)? {
                support::create(&settings.dir).await;
            }
            say("created");
            // A good moment for a cut.
            tokio::time::sleep(PAUSE).await;
        }
        history.base.terms.insert(0, 0);
        let disk = open(&settings.dir)?;
        let (view, applied) = check(&disk, &history).await;
        say(&History::base_line(&view, applied));
        let mut writer = Self {
            machine: StateMachine::new(disk.state.clone()),
            disk,
            rng: Rng(settings.seed),
            scratch: settings.scratch.clone(),
            model: view.model_at(applied),
            view,
            steps: Arc::default(),
            applied,
            flush: None,
            transfers: settings.seed,
        };
        writer.recover().await?;
        Ok(writer)
    }

    /// What a node does when it starts, then a replay of all that is left.
    async fn recover(&mut self) -> Result<()> {
        if self.applied > self.view.last {
            // openraft closes the hole below an installed snapshot.
            self.op(Step::Purge { index: self.applied });
        }
        self.disk.state.replay().await?;
        let mut log = self.disk.log.clone();
        StorageHelper::new(&mut log, &mut self.machine).with_id(1).get_initial_state().await?;
        let (applied, _) = self.machine.applied_state().await?;
        self.applied_up_to(applied.map_or(0, |id| id.index));
        let rest = read_all(&self.disk.log).into_iter().filter(|entry| entry.log_id.index > self.applied);
        apply(&mut self.machine, rest.collect::<Vec<_>>()).await;
        self.applied_up_to(self.view.last);
        let number = self.op(Step::Sync);
        self.disk.log.sync().await?;
        self.ack(number, 0);
        Ok(())
    }

    /// The tables must now be what the model is.
    fn applied_up_to(&mut self, index: u64) {
        for index in self.applied + 1..=index {
            self.model.apply(self.view.terms[&index], index);
        }
        self.applied = self.applied.max(index);
        let (hash, revision) = self.disk.state.read_hashed(|m, hash| (hash, m.revision())).unwrap();
        assert_eq!(hash, self.model.hash(), "the tables at entry {index} are not what its log says");
        assert_eq!(revision, self.model.revision);
    }

    fn op(&mut self, step: Step) -> usize {
        let number = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        say(&format!("op {number} {step}"));
        self.view.apply(step);
        number
    }

    fn ack(&self, number: usize, flushed: u64) {
        say(&format!("ack {number} {flushed}"));
    }

    fn id(&self, index: u64) -> LogId {
        log_id(self.view.terms[&index], index)
    }

    async fn step(&mut self) -> Result<()> {
        match self.rng.below(100) {
            0..58 => self.write().await,
            58..70 => self.apply_some().await,
            70..75 => {
                self.op(Step::Commit { index: self.applied });
                let id = self.id(self.applied);
                Ok(self.disk.log.save_committed(Some(id)).await?)
            }
            75..78 => self.vote().await,
            78..83 => self.new_leader().await,
            83..89 => self.flush().await,
            89..91 => self.quiet_flush().await,
            91..96 => self.purge().await,
            96 => {
                self.disk.state.snapshot_file().await?;
                Ok(())
            }
            _ => self.install().await,
        }
    }

    /// Appends; does not wait until it is on disk.
    async fn write(&mut self) -> Result<()> {
        let (from, count) = (self.view.last + 1, 1 + self.rng.below(6));
        let term = self.view.vote;
        let number = self.op(Step::Write { term, from, to: from + count - 1 });
        let entries: Vec<_> = (from..from + count).map(|index| entry(term, index)).collect();
        let (done, flushed) = TypeConfig::oneshot();
        self.disk.log.append(entries, IOFlushed::signal(done)).await?;
        let acked = async move {
            if let Ok(Ok(())) = flushed.await {
                say(&format!("ack {number} 0"));
            }
        };
        // Mostly others go on meanwhile.
        if self.rng.one_in(8) {
            acked.await;
        } else {
            tokio::spawn(acked);
        }
        Ok(())
    }

    /// openraft applies what is committed, and that may not be on this disk yet.
    async fn apply_some(&mut self) -> Result<()> {
        let behind = self.view.last.saturating_sub(self.applied);
        if behind == 0 {
            return Ok(());
        }
        let to = self.applied + 1 + self.rng.below(behind);
        let entries = self.disk.log.try_get_log_entries(self.applied + 1..=to).await?;
        assert_eq!(entries.len() as u64, to - self.applied);
        apply(&mut self.machine, entries).await;
        self.applied_up_to(to);
        Ok(())
    }

    async fn vote(&mut self) -> Result<()> {
        let term = self.view.vote + 1;
        let number = self.op(Step::Vote { term });
        let vote =
            Vote { leader_id: openraft::impls::leader_id_std::LeaderId::new(term, 1), committed: true };
        self.disk.log.save_vote(&vote).await?;
        self.ack(number, 0);
        Ok(())
    }

    /// A new leader, whose log differs in what is not committed.
    async fn new_leader(&mut self) -> Result<()> {
        self.vote().await?;
        if self.view.last > self.applied {
            let keep = self.applied + self.rng.below(self.view.last - self.applied);
            self.truncate(keep).await?;
        }
        self.write().await
    }

    async fn truncate(&mut self, keep: u64) -> Result<()> {
        let id = self.id(keep);
        self.op(Step::Truncate { keep });
        Ok(self.disk.log.truncate_after(Some(id)).await?)
    }

    /// Runs beside what follows, as openraft's snapshot builder does.
    async fn flush(&mut self) -> Result<()> {
        if let Some(running) = self.flush.take() {
            running.await?;
        }
        self.op(Step::Flush);
        let mut machine = self.machine.clone();
        self.flush = Some(tokio::spawn(async move {
            if let Ok(snapshot) = machine.build_snapshot().await {
                let flushed = snapshot.meta.last_log_id.map_or(0, |id| id.index);
                // Says nothing of the log: a flush with nothing to do does not sync it.
                say(&format!("ack 0 {flushed}"));
            }
        }));
        Ok(())
    }

    /// A flush after log writes that nobody waits for, and nothing that would sync them later.
    async fn quiet_flush(&mut self) -> Result<()> {
        self.write().await?;
        self.apply_some().await?;
        if self.view.last > self.applied {
            self.vote().await?;
            self.truncate(self.applied).await?;
        }
        self.flush().await?;
        if let Some(running) = self.flush.take() {
            running.await?;
        }
        self.quiet().await;
        Ok(())
    }

    /// A good moment for a cut.
    async fn quiet(&self) {
        say("quiet");
        tokio::time::sleep(PAUSE).await;
    }

    /// Up to the snapshot that openraft could hand out: the last flush.
    async fn purge(&mut self) -> Result<()> {
        let Some(snapshot) = self.machine.get_current_snapshot().await? else {
            return Ok(());
        };
        let Some(upto) = snapshot.meta.last_log_id else {
            return Ok(());
        };
        self.op(Step::Purge { index: upto.index });
        Ok(self.disk.log.purge(upto).await?)
    }

    /// A snapshot from the primary: beyond the log, against its tail, or within it.
    async fn install(&mut self) -> Result<()> {
        let (term, index) = match self.rng.below(3) {
            0 => (self.view.vote, self.view.last + 1 + self.rng.below(30)),
            1 => {
                self.vote().await?;
                if self.view.last > self.applied {
                    self.truncate(self.applied).await?;
                }
                (self.view.vote, self.view.last + 1 + self.rng.below(20))
            }
            _ if self.view.last > self.applied => {
                let index = self.applied + 1 + self.rng.below(self.view.last - self.applied);
                (self.view.terms[&index], index)
            }
            _ => return Ok(()),
        };
        let step = Step::Install { term, index };
        let mut after = self.view.clone();
        after.apply(step);
        let model = after.model_at(index);
        self.transfers += 1;
        let file = self.disk.state.incoming_file(self.transfers)?;
        std::fs::copy(self.snapshot_of(&model, term, index)?, &file)?;
        let number = self.op(step);
        let meta = SnapshotMeta { last_log_id: Some(log_id(term, index)), ..SnapshotMeta::default() };
        self.machine
            .install_snapshot(&meta, SnapshotHandle::Received(self.disk.state.build(file).await?))
            .await?;
        self.ack(number, index);
        if self.rng.one_in(2) {
            self.quiet().await;
        }
        self.op(Step::Purge { index });
        self.disk.log.purge(log_id(term, index)).await?;
        self.applied_up_to(index);
        Ok(())
    }

    /// Another server's snapshot file, made on a disk that keeps its power.
    fn snapshot_of(&self, model: &Model, term: u64, index: u64) -> Result<PathBuf> {
        let dir = self.scratch.join(format!("other-{}", self.transfers));
        let (membership, time) = self.disk.state.read(|m| (m.membership().clone(), m.time()))?;
        let meta = FlushMeta {
            applied: Some(log_id(term, index)),
            membership,
            revision: model.revision,
            time: time.max(index),
            hash: model.hash(),
            ..FlushMeta::default()
        };
        let base = Base::open(&dir)?;
        let rows: Vec<_> = model.stored().collect();
        base.flush(rows.iter().map(|(key, value)| (&key[..], Some(&value[..]))), &meta)?;
        let file = self.scratch.join(format!("{index}-{}.snapshot", self.transfers));
        snapshot::write(&file, &base, &meta)?;
        drop(base);
        std::fs::remove_dir_all(dir)?;
        Ok(file)
    }
}
