//! The local fault detector: launches its server, heartbeats it, sees its end at once, and reports to the global
//! detector, for ever.

mod http;
mod process;

use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_cluster::clock::{Clock as _, SystemClock};
use quorate_cluster::detect::accrual::{Accrual, Health};
use quorate_cluster::detect::supervisor::{Launch, Restart, Supervisor};
use quorate_cluster::detect::view::Report;
use reqwest::Url;
use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use self::http::{Shared, Shown, Wish, Word, router};
use self::process::Process;
use super::{
    Beat, DetectorError, INCARNATION_HEADER, LOOKS, NAME_HEADER, PID_HEADER, beat, chain, listen, terminated,
    web,
};
use crate::transcript::Transcript;

/// A server that was told to end has so long before it is killed: it hands leadership over and flushes.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Words of the manager and of people that wait.
const WORDS: usize = 16;

/// Everything that `quorate lfd` was told.
#[derive(Debug, Clone)]
pub struct LfdArgs {
    /// The detector's name, such as LFD1.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The URL that others reach it under.
    pub url: Option<String>,
    /// The global detector.
    pub gfd: Url,
    /// From one heartbeat's sending to the next.
    pub heartbeat: Duration,
    /// A server is dead after so long a silence.
    pub timeout: Duration,
    /// When a server that has ended is launched again.
    pub restart: Restart,
    /// What is printed for an operator to follow.
    pub transcript: Transcript,
    /// The server's name.
    pub server: String,
    /// The URL that clients reach it under.
    pub server_url: String,
    /// Where it is heartbeaten.
    pub heartbeat_url: Url,
    /// What it is launched with: `server`, and its flags.
    pub command: Vec<OsString>,
}

struct Lfd {
    args: LfdArgs,
    client: reqwest::Client,
    supervisor: Supervisor,
    process: Option<Process>,
    /// Of the process that runs, once it has answered.
    accrual: Option<Accrual>,
    heartbeats: u64,
    answers: mpsc::Sender<u64>,
    shown: watch::Sender<Shown>,
}

/// Runs a local fault detector until SIGTERM or SIGINT, and takes its server down with it.
///
/// # Errors
/// [`DetectorError`].
pub async fn run(args: LfdArgs) -> Result<(), DetectorError> {
    let (listener, address) = listen(args.listen).await?;
    let started = SystemClock.wall();
    let server = Report {
        lfd: args.name.clone(),
        lfd_url: args.url.clone().unwrap_or(format!("http://{address}")),
        order: (started, 0),
        name: args.server.clone(),
        url: args.server_url.clone(),
        state: Health::Dead,
        incarnation: 0,
        held: false,
    };
    let shown = watch::Sender::new(Shown {
        name: args.name.clone(),
        gfd: args.gfd.to_string(),
        restart: args.restart,
        pid: None,
        heartbeats: 0,
        gfd_silent_ms: None,
        server,
    });
    let (words, inbox) = mpsc::channel(WORDS);
    let (answers, answered) = mpsc::channel(WORDS);
    let gfd_heard = watch::Sender::new(None);
    let client = super::client()?;
    let telling = tell(args.clone(), client.clone(), shown.subscribe(), gfd_heard.subscribe());
    let shared = Shared { words, shown: shown.subscribe(), gfd_heard, transcript: args.transcript };
    let serving = web::serve(listener, router(Arc::new(shared)));
    let supervisor = Supervisor::new(args.restart, Instant::now());
    let lfd = Lfd { args, client, supervisor, process: None, accrual: None, heartbeats: 0, answers, shown };
    tracing::info!(listen = %address, "watching");
    tokio::select! {
        result = lfd.run(inbox, answered) => result,
        result = serving => result.map_err(|error| DetectorError::System { what: "cannot serve", error }),
        never = telling => match never {},
    }
}

impl Lfd {
    async fn run(
        mut self,
        mut words: mpsc::Receiver<Word>,
        mut answers: mpsc::Receiver<u64>,
    ) -> Result<(), DetectorError> {
        let mut beats = interval(self.args.heartbeat);
        let mut looks = interval(self.args.heartbeat / LOOKS);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut terminated = std::pin::pin!(terminated()?);
        loop {
            tokio::select! {
                how = ended(&mut self.process) => self.ended(&how),
                () = due(self.supervisor.due()) => self.launch().await,
                Some(incarnation) = answers.recv() => self.answered(incarnation),
                Some(Word(wish, reply)) = words.recv() => {
                    let answer = self.obey(wish);
                    // Who asked may be gone.
                    let _ = reply.send(answer);
                }
                _ = beats.tick() => self.beat(),
                _ = looks.tick() => {}
                () = &mut terminated => break,
            }
            self.show();
        }
        self.take_down().await;
        Ok(())
    }

    /// A process that runs already, launched by a detector that was killed, is adopted: a second one could not have its
    /// ports anyway.
    async fn launch(&mut self) {
        let found = self.find().await;
        let now = Instant::now();
        match found {
            Some((process, incarnation)) => {
                tracing::info!(pid = process.pid(), incarnation, "adopted the server that runs already");
                self.supervisor.adopted(incarnation, now, SystemClock.wall());
                self.process = Some(process);
                // It has just answered.
                self.accrual = Some(Accrual::new(self.args.heartbeat, self.args.timeout, now));
            }
            None => {
                let incarnation = self.supervisor.launched(now, SystemClock.wall());
                self.accrual = None;
                let mut command = self.args.command.clone();
                command.extend(["--incarnation".into(), incarnation.to_string().into()]);
                match Process::launch(&command) {
                    Ok(process) => {
                        tracing::info!(
                            pid = process.pid(),
                            incarnation,
                            server = self.args.server,
                            "launched"
                        );
                        self.process = Some(process);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the server cannot be launched");
                        self.supervisor.ended(now);
                    }
                }
            }
        }
    }

    /// The server, if it runs on this machine without this detector. One that still starts says who it is, too.
    async fn find(&self) -> Option<(Process, u64)> {
        let url = self.args.heartbeat_url.join("healthz").ok()?;
        let answer = self.client.get(url).timeout(self.args.timeout).send().await.ok()?;
        let said = |header: &str| answer.headers().get(header)?.to_str().ok();
        let (name, pid, incarnation) = (said(NAME_HEADER)?, said(PID_HEADER)?, said(INCARNATION_HEADER)?);
        if name != self.args.server {
            tracing::error!("at {} there is {name}, not {}", self.args.heartbeat_url, self.args.server);
            return None;
        }
        let (pid, incarnation) = (pid.parse().ok()?, incarnation.parse().ok()?);
        match Process::adopt(pid) {
            Ok(process) => Some((process, incarnation)),
            Err(error) => {
                tracing::warn!(%error, pid, "the server runs and cannot be adopted");
                None
            }
        }
    }

    fn ended(&mut self, how: &str) {
        tracing::warn!(server = self.args.server, how, "the server has ended");
        (self.process, self.accrual) = (None, None);
        self.supervisor.ended(Instant::now());
    }

    /// Sends a heartbeat and does not wait for it: the next one goes out at its time.
    fn beat(&mut self) {
        if self.process.is_none() {
            return;
        }
        self.heartbeats += 1;
        let (args, client, answers) = (&self.args, self.client.clone(), self.answers.clone());
        args.transcript.heartbeat_sent(self.heartbeats, &args.name, &args.server);
        let request = Beat { from: args.name.clone(), number: self.heartbeats };
        let (url, limit, incarnation) =
            (args.heartbeat_url.clone(), args.timeout, self.supervisor.incarnation());
        tokio::spawn(async move {
            if beat(&client, &url, "healthz", &request, limit).await.is_ok() {
                // A full queue has answers enough.
                let _ = answers.try_send(incarnation);
            }
        });
    }

    fn answered(&mut self, incarnation: u64) {
        // The answer may be that of a process that has ended since.
        if self.process.is_some() && incarnation == self.supervisor.incarnation() {
            let (heartbeat, timeout) = (self.args.heartbeat, self.args.timeout);
            let now = Instant::now();
            self.accrual.get_or_insert_with(|| Accrual::new(heartbeat, timeout, now)).answered(now);
        }
    }

    fn obey(&mut self, wish: Wish) -> Result<&'static str, String> {
        match wish {
            Wish::Launch(after) => match self.supervisor.launch(after, Instant::now()) {
                Ok(Launch::Soon) => Ok("launching"),
                Ok(Launch::Already) => Ok("nothing to do"),
                Err(refused) => Err(refused.to_string()),
            },
            Wish::Hold => {
                self.supervisor.hold();
                Ok("held")
            }
            Wish::Stop => {
                self.supervisor.hold();
                match &self.process {
                    None => Ok("held; nothing runs"),
                    Some(process) => {
                        process.signal(Signal::TERM).map(|()| "stopping").map_err(|e| e.to_string())
                    }
                }
            }
        }
    }

    /// What is thought now, for all who want to know; a change is told at once.
    fn show(&mut self) {
        let state = self.accrual.as_mut().map_or(Health::Dead, |accrual| accrual.look(Instant::now()));
        let (incarnation, held) = (self.supervisor.incarnation(), self.supervisor.held());
        let (pid, heartbeats) = (self.process.as_ref().map(Process::pid), self.heartbeats);
        self.shown.send_if_modified(|shown| {
            (shown.pid, shown.heartbeats) = (pid, heartbeats);
            let server = &mut shown.server;
            let changed = (server.state, server.incarnation, server.held) != (state, incarnation, held);
            if changed {
                (server.state, server.incarnation, server.held) = (state, incarnation, held);
                server.order.1 += 1;
                tracing::info!(server = server.name, ?state, incarnation, held, "seen");
            }
            changed
        });
    }

    async fn take_down(&mut self) {
        let Some(process) = &mut self.process else { return };
        tracing::info!(pid = process.pid(), "stopping the server");
        // What has ended meanwhile cannot be told, and need not be.
        let _ = process.signal(Signal::TERM);
        if timeout(END_LIMIT, process.ended()).await.is_err() {
            tracing::warn!(pid = process.pid(), "the server does not end: it is killed");
            let _ = process.signal(Signal::KILL);
            process.ended().await;
        }
    }
}

async fn ended(process: &mut Option<Process>) -> String {
    match process {
        Some(process) => process.ended().await,
        None => pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

/// Tells the global detector each change at once, and everything again while it is not heard: it may be new.
async fn tell(
    args: LfdArgs,
    client: reqwest::Client,
    mut shown: watch::Receiver<Shown>,
    gfd_heard: watch::Receiver<Option<Instant>>,
) -> std::convert::Infallible {
    let url = format!("{}v1/report", args.gfd);
    let mut away = false;
    loop {
        let report = shown.borrow_and_update().server.clone();
        let sent = client.post(&url).json(&report).timeout(args.timeout).send().await;
        let sent = sent.and_then(reqwest::Response::error_for_status);
        match &sent {
            Ok(_) if away => tracing::info!(gfd = %args.gfd, "the global fault detector is back"),
            Err(error) if !away => {
                tracing::warn!(error = chain(error), gfd = %args.gfd, "the global fault detector does not answer; it is tried for ever");
            }
            _ => {}
        }
        away = sent.is_err();
        loop {
            tokio::select! {
                changed = shown.changed() => match changed {
                    Ok(()) => break,
                    // The detector is ending.
                    Err(_) => pending().await,
                },
                () = tokio::time::sleep(args.heartbeat) => {
                    if away || gfd_heard.borrow().is_none_or(|heard| heard.elapsed() > args.timeout) {
                        break;
                    }
                }
            }
        }
    }
}
