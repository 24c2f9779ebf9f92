//! The global fault detector: heartbeats the local ones, keeps the view, and streams it to whoever wants to know.
//!
//! Where a local detector is silent, its server may still serve: the global one then heartbeats the server itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::Stream;
use quorate_cluster::clock::{Clock as _, SystemClock};
use quorate_cluster::detect::accrual::{Accrual, Health};
use quorate_cluster::detect::view::{Report, View, Views};
use reqwest::Url;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::{Beat, DetectorError, LOOKS, beat, listen, terminated, web};
use crate::transcript::Transcript;

/// Detectors at once: more are refused.
const MAX_LFDS: usize = 64;
/// A comment goes out so often to those who watch, so that they see a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const NAME: &str = "GFD";

/// Everything that `quorate gfd` was told.
#[derive(Debug, Clone)]
pub struct GfdArgs {
    /// Where it listens.
    pub listen: SocketAddr,
    /// From one heartbeat's sending to the next.
    pub heartbeat: Duration,
    /// A local detector is dead after so long a silence.
    pub timeout: Duration,
    /// What is printed for an operator to follow.
    pub transcript: Transcript,
}

/// A local detector's URL, its server's name, and that one's URL.
type Watched = (String, String, String);

struct Gfd {
    args: GfdArgs,
    client: reqwest::Client,
    views: Mutex<Views>,
    view: watch::Sender<View>,
    /// Who is heartbeaten, and where.
    lfds: Mutex<BTreeMap<String, (Watched, JoinHandle<()>)>>,
}

/// Runs the global fault detector until SIGTERM or SIGINT.
///
/// # Errors
/// [`DetectorError`].
pub async fn run(args: GfdArgs) -> Result<(), DetectorError> {
    let (listener, address) = listen(args.listen).await?;
    let transcript = args.transcript;
    let gfd = Arc::new(Gfd {
        args,
        client: super::client()?,
        views: Mutex::default(),
        view: watch::Sender::default(),
        lfds: Mutex::default(),
    });
    let router = Router::new()
        .route("/v1/report", post(report))
        .route("/v1/view", get(view))
        .route("/v1/view/watch", get(watch_view))
        .route("/healthz", get(async || "ok\n"))
        .with_state(Arc::clone(&gfd));
    tracing::info!(listen = %address, "watching");
    tokio::select! {
        result = web::serve(listener, router) => {
            result.map_err(|error| DetectorError::System { what: "cannot serve", error })
        }
        never = print_members(transcript, gfd.view.subscribe()) => match never {},
        () = terminated()? => Ok(()),
    }
}

/// Prints who is there, at the start and whenever that changes.
async fn print_members(transcript: Transcript, mut view: watch::Receiver<View>) -> Infallible {
    let mut printed = None;
    loop {
        let alive: Vec<String> = view.borrow_and_update().alive().map(str::to_owned).collect();
        if printed.as_ref() != Some(&alive) {
            transcript.members(NAME, &alive);
            printed = Some(alive);
        }
        if view.changed().await.is_err() {
            // It is ending.
            return std::future::pending().await;
        }
    }
}

impl Gfd {
    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Views) -> bool) {
        let mut views = self.views();
        if change(&mut views) {
            // Under the lock: the newest view is the last one sent.
            self.view.send_replace(views.view().clone());
        }
    }

    fn reported(&self, report: Report) {
        self.change(|views| views.reported(report, SystemClock.wall()));
    }

    /// Heartbeats the detector that has spoken from now on, if it is new or has moved.
    fn watch(self: &Arc<Self>, report: &Report) -> Result<(), &'static str> {
        let mut lfds = self.lfds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lfds.get(&report.lfd);
        let watched = (report.lfd_url.clone(), report.name.clone(), report.url.clone());
        if known.is_some_and(|(before, _)| *before == watched) {
            return Ok(());
        }
        let new = self.views().view().member(&report.name).is_none();
        if known.is_none() && lfds.len() == MAX_LFDS || new && self.views().view().members.len() == MAX_LFDS {
            return Err("this detector watches as many others as it can");
        }
        let lfd = Url::parse(&report.lfd_url).map_err(|_| "lfd_url is no URL")?;
        let server = Url::parse(&report.url).map_err(|_| "url is no URL")?;
        let watching = Watching {
            gfd: Arc::clone(self),
            name: report.name.clone(),
            lfd,
            server,
            number: 0,
            health: Accrual::new(self.args.heartbeat, self.args.timeout, Instant::now()),
            direct: None,
        };
        let task = tokio::spawn(watching.run(report.lfd.clone()));
        if let Some((_, before)) = lfds.insert(report.lfd.clone(), (watched, task)) {
            before.abort();
        }
        Ok(())
    }
}

/// One local detector, heartbeaten.
struct Watching {
    gfd: Arc<Gfd>,
    /// The server's name.
    name: String,
    lfd: Url,
    server: Url,
    number: u64,
    health: Accrual,
    /// Of the server itself, while its detector is silent.
    direct: Option<Accrual>,
}

enum Heard {
    Detector(Report),
    Server,
}

impl Watching {
    async fn run(mut self, lfd: String) {
        let mut beats = interval(self.gfd.args.heartbeat);
        let mut looks = interval(self.gfd.args.heartbeat / LOOKS);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (heard, mut answers) = mpsc::channel(8);
        let mut silent = false;
        loop {
            tokio::select! {
                _ = beats.tick() => self.beat(&lfd, &heard),
                Some(heard) = answers.recv() => self.heard(heard),
                _ = looks.tick() => {
                    let dead = self.look();
                    if dead != silent {
                        let text = if dead { "is silent: its server is heartbeaten from here" } else { "is back" };
                        tracing::warn!("{lfd} {text}");
                        silent = dead;
                    }
                }
            }
        }
    }

    fn beat(&mut self, lfd: &str, heard: &mpsc::Sender<Heard>) {
        self.number += 1;
        let args = &self.gfd.args;
        args.transcript.heartbeat_sent(self.number, NAME, lfd);
        let request = Beat { from: NAME.to_owned(), number: self.number };
        let (client, limit) = (self.gfd.client.clone(), args.timeout);
        if self.direct.is_some() {
            let (client, url, request, heard) =
                (client.clone(), self.server.clone(), request.clone(), heard.clone());
            tokio::spawn(async move {
                if beat(&client, &url, "healthz", &request, limit).await.is_ok() {
                    // A full queue has answers enough.
                    let _ = heard.try_send(Heard::Server);
                }
            });
        }
        let (url, heard) = (self.lfd.clone(), heard.clone());
        tokio::spawn(async move {
            let answer = beat(&client, &url, "v1/heartbeat", &request, limit).await;
            if let Ok(report) = answer.and_then(|body| Ok(serde_json::from_slice(&body)?)) {
                let _ = heard.try_send(Heard::Detector(report));
            }
        });
    }

    fn heard(&mut self, heard: Heard) {
        let now = Instant::now();
        match heard {
            Heard::Detector(report) => {
                self.health.answered(now);
                self.direct = None;
                self.gfd.reported(report);
            }
            Heard::Server => {
                if let Some(direct) = &mut self.direct {
                    direct.answered(now);
                }
            }
        }
    }

    /// Gives whether the detector is silent.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let health = self.health.look(now);
        if health == Health::Alive {
            return false;
        }
        // The server has been silent as long, as far as is known here: when both are gone, both are dead at once.
        let direct = self.direct.get_or_insert_with(|| self.health.clone());
        let state = direct.look(now);
        if health == Health::Dead {
            self.gfd.change(|views| views.judged(&self.name, state, SystemClock.wall()));
        }
        health == Health::Dead
    }
}

/// `POST /v1/report`, from a local detector.
async fn report(State(gfd): State<Arc<Gfd>>, Json(report): Json<Report>) -> Response {
    match gfd.watch(&report) {
        Ok(()) => {
            gfd.reported(report);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(text) => (StatusCode::BAD_REQUEST, format!("{text}\n")).into_response(),
    }
}

/// `GET /v1/view`
async fn view(State(gfd): State<Arc<Gfd>>) -> Json<View> {
    Json(gfd.view.borrow().clone())
}

/// `GET /v1/view/watch`: the view as it is, and again after each change. Who is slow misses what lay between.
async fn watch_view(State(gfd): State<Arc<Gfd>>) -> Response {
    let mut view = gfd.view.subscribe();
    view.mark_changed();
    Sse::new(changes(view)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn changes(view: watch::Receiver<View>) -> impl Stream<Item = Result<Event, axum::Error>> {
    futures_util::stream::unfold(view, |mut view| async move {
        view.changed().await.ok()?;
        let now = view.borrow_and_update().clone();
        let event = Event::default().id(now.revision.to_string()).event("view").json_data(&now);
        Some((event, view))
    })
}
