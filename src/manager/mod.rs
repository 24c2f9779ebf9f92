//! The replication manager: looks at the cluster and at the view, and carries out what the policy says, one change at
//! a time. What it thinks is `quorate_cluster::policy`.
//!
//! It keeps nothing: a new one learns everything from the servers and from the global fault detector. Any number may run.
//! Each change names the membership and the settings that it was decided on, so of two managers one is refused.

mod act;
mod http;
mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_cluster::detect::view::View;
use quorate_cluster::policy::{Change, Down, Observer, Plan, Seen, plan};
use quorate_storage::machine::Settings;
use reqwest::Url;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use self::act::{Act, Failed};
use self::http::Shown;
use self::look::{Cluster, Server};
use crate::detectors::{DetectorError, listen, terminated, web};
use crate::transcript::Transcript;

const NAME: &str = "RM";
/// From one look to the next, at most: a change of the view is looked at, at once.
const LOOK: Duration = Duration::from_millis(500);
/// What was refused is not asked for again before.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// A launch that has not shown in the view for so long is asked for again.
const LAUNCH_AGAIN: Duration = Duration::from_secs(2);

/// Everything that `quorate rm` was told.
#[derive(Debug, Clone)]
pub struct RmArgs {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The global fault detector.
    pub gfd: Url,
    /// The mode that the cluster is to have from now on.
    pub mode: Option<String>,
    /// Only say what it would do.
    pub dry_run: bool,
    /// What is printed for an operator to follow.
    pub transcript: Transcript,
}

struct Manager {
    args: RmArgs,
    client: reqwest::Client,
    observer: Observer,
    /// As they were seen last: what a person has set holds while nobody answers.
    settings: Option<Settings>,
    /// Where servers were seen, the primary first.
    urls: Vec<String>,
    /// The cluster's id, once it is known.
    cluster_id: Option<String>,
    /// Another cluster's id, that was told of.
    foreign: Option<String>,
    /// The change under way.
    doing: Option<Doing>,
    /// Changes that were refused, when and why.
    refused: Vec<(Instant, Change, String)>,
    /// Launches that were asked for.
    asked: BTreeMap<String, (u64, Instant)>,
    shown: watch::Sender<Shown>,
    printed: Option<Vec<String>>,
    ready: BTreeSet<String>,
}

/// A change under way.
struct Doing {
    change: Change,
    what: String,
    /// The primary that was asked.
    leader: String,
    task: JoinHandle<Result<(), Failed>>,
}

/// Runs a replication manager until SIGTERM or SIGINT.
///
/// # Errors
/// [`DetectorError`].
pub async fn run(args: RmArgs) -> Result<(), DetectorError> {
    let (listener, address) = listen(args.listen).await?;
    let client = crate::detectors::client()?;
    let shown = watch::Sender::new(Shown::new(args.dry_run));
    let (view, views) = watch::channel(None);
    let following = look::follow(client.clone(), args.gfd.clone(), view);
    let serving = web::serve(listener, http::router(Arc::new(http::Shared { shown: shown.subscribe() })));
    tracing::info!(listen = %address, gfd = %args.gfd, dry_run = args.dry_run, "managing");
    let manager = Manager {
        args,
        client,
        observer: Observer::default(),
        settings: None,
        urls: Vec::new(),
        cluster_id: None,
        foreign: None,
        doing: None,
        refused: Vec::new(),
        asked: BTreeMap::new(),
        shown,
        printed: None,
        ready: BTreeSet::new(),
    };
    tokio::select! {
        result = serving => result.map_err(|error| DetectorError::System { what: "cannot serve", error }),
        never = following => match never {},
        never = manager.run(views) => match never {},
        () = terminated()? => Ok(()),
    }
}

impl Manager {
    async fn run(mut self, mut views: watch::Receiver<Option<View>>) -> std::convert::Infallible {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.print_members(Vec::new());
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = views.changed() => {}
                result = done(&mut self.doing) => {
                    // Not at once: what comes of a change is seen at the next look, and nothing is done twice meanwhile.
                    self.finished(result);
                    continue;
                }
            }
            let view = views.borrow_and_update().clone();
            self.turn(view.as_ref()).await;
        }
    }

    async fn turn(&mut self, view: Option<&View>) {
        for member in view.into_iter().flat_map(|view| &view.members) {
            if !self.urls.contains(&member.url) {
                self.urls.push(member.url.clone());
            }
        }
        let (cluster, foreign) =
            look::cluster(&self.client, &mut self.urls, self.cluster_id.as_deref()).await;
        if let Some(cluster) = &cluster {
            self.settings = Some(cluster.settings.clone());
            self.cluster_id.get_or_insert_with(|| cluster.cluster_id.clone());
        }
        self.refused.retain(|(at, ..)| at.elapsed() < REFUSED_FOR);
        let refused = self.refused.iter().map(|(_, change, why)| (change.clone(), why.clone())).collect();
        let settings = self.settings.as_ref();
        let seen = look::seen(cluster.as_ref(), view, settings, &mut self.observer, refused, Instant::now());
        let mut plan = plan(&seen);
        for member in view.into_iter().flat_map(|view| &view.members).filter(|member| member.lfd_silent) {
            plan.notes
                .push(format!("{} is silent: nobody would launch {} if it ended", member.lfd, member.name));
        }
        if let (Some(foreign), Some(ours)) = (foreign, &self.cluster_id) {
            let text = format!(
                "a server of cluster {foreign} answers, and this manager's is {ours}: it is passed over. If the cluster was \
                 made anew, start the manager again"
            );
            if self.foreign.as_ref() != Some(&foreign) {
                tracing::warn!("{text}");
                self.foreign = Some(foreign);
            }
            plan.waits.push(text);
        }
        self.print(&seen, view);
        self.show(cluster.as_ref(), view, &seen, &plan);
        if self.args.dry_run {
            return;
        }
        let leader = cluster.as_ref().and_then(Cluster::leader);
        // One that was cut off with its answer would be waited for; its successor is there.
        if let (Some(doing), Some(leader)) = (&self.doing, leader)
            && doing.leader != leader.url
        {
            doing.task.abort();
            self.finished(Err(Failed::outdated(format!("{} is the primary now", leader.name))));
        }
        if let Some(leader) = leader {
            self.set_mode(leader).await;
        }
        self.launch(&plan.launch, view);
        if self.doing.is_none()
            && let (Some((change, why)), Some(cluster), Some(leader)) = (&plan.change, &cluster, leader)
        {
            let what = seen.describe(change);
            tracing::info!(what, why, membership = %cluster.membership, settings = cluster.settings.revision,
                           view = view.map(|view| view.revision), "changing the membership");
            self.shown.send_modify(|shown| shown.doing = Some(what.clone()));
            let act = Act::new(change, &seen, cluster, leader);
            let task = tokio::spawn(act.carry_out(self.client.clone()));
            self.doing = Some(Doing { change: change.clone(), what, leader: leader.url.clone(), task });
        }
    }

    fn finished(&mut self, result: Result<(), Failed>) {
        let Some(Doing { change, what, .. }) = self.doing.take() else { return };
        let last = match result {
            Ok(()) => {
                tracing::info!(what, "done");
                format!("done: {what}")
            }
            Err(why) => {
                tracing::warn!(what, %why, "it is decided anew");
                if !why.outdated {
                    self.refused.push((Instant::now(), change, why.to_string()));
                }
                format!("{what}: {why}")
            }
        };
        self.shown.send_modify(|shown| (shown.doing, shown.last) = (None, Some(last)));
    }

    /// The mode that this manager was started with, until it is set once.
    async fn set_mode(&mut self, leader: &Server) {
        let Some(mode) = self.args.mode.take() else { return };
        if let Err(error) = act::set(&self.client, leader, "mode", &mode).await {
            tracing::warn!(%error, mode, "the mode cannot be set; it is tried again");
            self.args.mode = Some(mode);
        }
    }

    /// Has servers launched. An answer is not waited for: the view shows what comes of it.
    fn launch(&mut self, down: &[Down], view: Option<&View>) {
        let now = Instant::now();
        self.asked.retain(|name, (after, _)| {
            down.iter().any(|down| down.name == *name && down.incarnation == *after)
        });
        for down in down {
            let asked = self.asked.get(&down.name);
            if asked.is_some_and(|(_, at)| now.duration_since(*at) < LAUNCH_AGAIN) {
                continue;
            }
            let first = asked.is_none();
            let Some(member) = view.and_then(|view| view.member(&down.name)) else { continue };
            self.asked.insert(down.name.clone(), (down.incarnation, now));
            // One that hangs is not launched, and asked for again and again.
            if first {
                tracing::info!(server = down.name, after = down.incarnation, lfd = member.lfd, "launching");
            }
            tokio::spawn(act::launch(self.client.clone(), member.lfd_url.clone(), down.clone(), first));
        }
    }

    /// Prints who is there, and who has become ready, whenever that changes.
    fn print(&mut self, seen: &Seen, view: Option<&View>) {
        let dead = |name: &str| view.is_some_and(|view| !view.alive().any(|alive| alive == name));
        let there = seen.members.iter().filter(|member| !member.witness && member.silent.is_none());
        let there: BTreeMap<&str, bool> = there
            .filter(|member| !dead(&member.name))
            .map(|member| (member.name.as_str(), member.voter && member.steady.is_some()))
            .collect();
        if seen.primary.is_some() {
            self.print_members(there.keys().map(|name| (*name).to_owned()).collect());
        }
        for (name, _) in there.iter().filter(|(_, ready)| **ready) {
            if self.ready.insert((*name).to_owned()) {
                self.args.transcript.ready(name);
            }
        }
        self.ready.retain(|name| there.contains_key(name.as_str()));
    }

    fn print_members(&mut self, names: Vec<String>) {
        if self.printed.as_ref() != Some(&names) {
            self.args.transcript.members(NAME, &names);
            self.printed = Some(names);
        }
    }

    fn show(&self, cluster: Option<&Cluster>, view: Option<&View>, seen: &Seen, plan: &Plan) {
        self.shown.send_modify(|shown| shown.update(cluster, view, seen, plan));
    }
}

async fn done(doing: &mut Option<Doing>) -> Result<(), Failed> {
    match doing {
        Some(doing) => {
            let broke = |error| Err(Failed::new(format!("it broke off: {error}")));
            (&mut doing.task).await.unwrap_or_else(broke)
        }
        None => std::future::pending().await,
    }
}
