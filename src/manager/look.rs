//! What the manager sees: the view of the global fault detector, and the cluster as its primary tells it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use quorate_cluster::detect::accrual::Health;
use quorate_cluster::detect::view::View;
use quorate_cluster::node::CAUGHT_UP;
use quorate_cluster::policy::{Change, Down, Lasting, Look, Member, Observer, Seen};
use quorate_storage::machine::Settings;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client::watch::events;
use crate::detectors::chain;

/// For one server's answer: it asks all others first, half a second each.
const ASK: Duration = Duration::from_secs(2);
/// For the primary's, before the others are asked as well.
const ASK_PRIMARY: Duration = Duration::from_millis(800);
/// Before the global detector is asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// Of `GET /v1/cluster`, what is decided on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Cluster {
    pub(super) cluster_id: String,
    pub(super) term: u64,
    /// Its name.
    pub(super) primary: Option<String>,
    pub(super) settled: bool,
    /// The membership's log id.
    pub(super) membership: String,
    joint: bool,
    pub(super) servers: Vec<Server>,
    strays: Vec<String>,
    pub(super) settings: Settings,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) node_id: u64,
    pub(super) url: String,
    role: String,
    voter: bool,
    pub(super) ready: bool,
    lag: Option<u64>,
    /// The primary hears of it.
    heard: Option<bool>,
}

#[derive(Deserialize)]
struct Body {
    cluster_id: String,
    term: u64,
    primary: Option<String>,
    settled: bool,
    membership: MembershipBody,
    servers: Vec<Server>,
    strays: Option<Vec<String>>,
    settings: BTreeMap<String, String>,
    settings_revision: u64,
}

#[derive(Deserialize)]
struct MembershipBody {
    log_id: String,
    joint: bool,
}

impl From<Body> for Cluster {
    fn from(body: Body) -> Self {
        Self {
            cluster_id: body.cluster_id,
            term: body.term,
            primary: body.primary,
            settled: body.settled,
            membership: body.membership.log_id,
            joint: body.membership.joint,
            servers: body.servers,
            strays: body.strays.unwrap_or_default(),
            settings: Settings { revision: body.settings_revision, values: body.settings },
        }
    }
}

impl Cluster {
    /// The primary, when it has answered the server that was asked.
    pub(super) fn leader(&self) -> Option<&Server> {
        self.servers.iter().find(|server| server.role == "primary" || self.leads_as_witness(server))
    }

    fn leads_as_witness(&self, server: &Server) -> bool {
        server.role == "witness" && Some(&server.name) == self.primary.as_ref() && server.ready
    }
}

/// Asks the server that was the primary last, and all others when it does not say who is. Of several answers the one of the
/// latest term counts: others may be behind. Answers of another cluster than `ours`, if that is known, do not count; its id
/// comes second.
pub(super) async fn cluster(
    client: &reqwest::Client,
    urls: &mut Vec<String>,
    ours: Option<&str>,
) -> (Option<Cluster>, Option<String>) {
    let foreign = RefCell::new(None);
    let known = |cluster: &Cluster| {
        let known = ours.is_none_or(|ours| cluster.cluster_id == ours);
        if !known {
            foreign.replace(Some(cluster.cluster_id.clone()));
        }
        known
    };
    let mut best = match urls.first() {
        Some(first) => timeout(ASK_PRIMARY, ask(client, first)).await.ok().flatten().filter(known),
        None => None,
    };
    if best.as_ref().is_none_or(|cluster| cluster.leader().is_none()) {
        let answers = join_all(urls.iter().map(|url| ask(client, url))).await;
        let answers = answers.into_iter().flatten().filter(known);
        best = answers.chain(best).max_by_key(|cluster| (cluster.leader().is_some(), cluster.term));
    }
    if let Some(leader) = best.as_ref().and_then(Cluster::leader) {
        urls.retain(|url| *url != leader.url);
        urls.insert(0, leader.url.clone());
    }
    (best, foreign.into_inner())
}

async fn ask(client: &reqwest::Client, url: &str) -> Option<Cluster> {
    let answer = async {
        let answer = client.get(format!("{url}/v1/cluster")).timeout(ASK).send().await?.error_for_status()?;
        answer.json::<Body>().await.map(Cluster::from)
    };
    let answer: reqwest::Result<Cluster> = answer.await;
    answer.inspect_err(|error| tracing::debug!(%error, url, "a server does not tell how the cluster is")).ok()
}

/// Follows the view for ever; `None` while it cannot be had.
pub(super) async fn follow(
    client: reqwest::Client,
    gfd: Url,
    view: watch::Sender<Option<View>>,
) -> Infallible {
    let url = format!("{gfd}v1/view/watch");
    let mut away = false;
    loop {
        let answer = match timeout(ASK, client.get(&url).send()).await {
            Ok(answer) => {
                answer.and_then(reqwest::Response::error_for_status).map_err(|error| match error.status() {
                    Some(status) => format!("{status}: whoever listens there is no global fault detector"),
                    None => chain(&error),
                })
            }
            Err(_) => Err(format!("no answer within {ASK:?}")),
        };
        match answer {
            Ok(answer) => {
                away = false;
                tracing::info!(%gfd, "following the view");
                let mut events = events(answer);
                while let Some(Ok(event)) = events.next().await {
                    match serde_json::from_str(&event.data) {
                        Ok(now) => drop(view.send_replace(Some(now))),
                        Err(error) => tracing::warn!(%error, "the view cannot be read"),
                    }
                }
                tracing::warn!(%gfd, "the view has ended");
            }
            Err(error) if !away => {
                tracing::warn!(error, %gfd, "the view cannot be had from the global fault detector; it is tried for ever");
                away = true;
            }
            Err(_) => {}
        }
        view.send_if_modified(|view| view.take().is_some());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Both put together; the settings are those that were seen last.
pub(super) fn seen(
    cluster: Option<&Cluster>,
    view: Option<&View>,
    settings: Option<&Settings>,
    observer: &mut Observer,
    refused: Vec<(Change, String)>,
    now: Instant,
) -> Seen {
    let dead = |name: &str| {
        view.and_then(|view| view.member(name)).is_some_and(|member| member.state == Health::Dead)
    };
    let primary = cluster.and_then(Cluster::leader).map(|leader| leader.node_id);
    let servers = || cluster.into_iter().flat_map(|cluster| &cluster.servers);
    let looks = servers().map(|server| {
        let heard = server.heard == Some(true);
        let steady = server.ready && server.lag.is_some_and(|lag| lag <= CAUGHT_UP);
        let look = Look { view_dead: dead(&server.name), silent: primary.is_some() && !heard, steady };
        (server.node_id, look)
    });
    let looks = looks.collect();
    let lasting = observer.look(&looks, now);
    let members = servers().map(|server| {
        let Lasting { view_dead, silent, steady } = lasting.get(&server.node_id).copied().unwrap_or_default();
        let (id, name, voter) = (server.node_id, server.name.clone(), server.voter);
        Member { id, name, witness: server.role == "witness", voter, view_dead, silent, steady }
    });
    let members = members.collect();
    let down = view.into_iter().flat_map(|view| &view.members);
    // One that was never launched is launched by its own detector.
    let down = down.filter(|member| member.state == Health::Dead && member.incarnation > 0).map(|member| {
        let (name, incarnation) = (member.name.clone(), member.incarnation);
        Down { name, incarnation, held: member.held }
    });
    Seen {
        settings: settings.into(),
        view: view.is_some(),
        primary,
        joint: cluster.is_some_and(|cluster| cluster.joint),
        members,
        down: down.collect(),
        strays: cluster.map(|cluster| cluster.strays.clone()).unwrap_or_default(),
        refused,
    }
}
