//! Watches: server-sent events off the replicated table of events, so that any server resumes any watch.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use axum::response::sse::{Event as Sse, KeepAlive};
use futures_util::Stream;
use quorate_cluster::node::Node;
use quorate_storage::machine::{Compacted, Position};
use quorate_storage::service::Event;
use quorate_storage::state_machine::Applied;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::problem::Problem;
use super::{Answer, App, Shared};

/// At most so many topics in one watch.
const MAX_TOPICS: usize = 16;
/// Events read at once.
const PAGE: usize = 256;
/// A server that knows no primary for so long hears of no events.
const CUT_OFF: Duration = Duration::from_secs(3);
/// A comment goes out so often, so that a client sees a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Of whom, about what and from where.
#[derive(Debug, Default)]
struct Params {
    service: Option<String>,
    /// Any of these; all when there are none.
    topics: Vec<String>,
    from: Option<String>,
}

impl Params {
    /// `topic` may be given several times.
    fn read(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut params = Self::default();
        for (name, value) in pairs {
            let once = match name.as_str() {
                "service" => params.service.replace(value).is_none(),
                "from" => params.from.replace(value).is_none(),
                "topic" if params.topics.len() < MAX_TOPICS => {
                    params.topics.push(value);
                    true
                }
                "topic" => {
                    return Err(Problem::bad_request(format!("a watch has at most {MAX_TOPICS} topics")));
                }
                _ => {
                    let text = format!("unknown parameter {name:?}; there are: service, topic, from");
                    return Err(Problem::bad_request(text));
                }
            };
            if !once {
                return Err(Problem::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(params)
    }
}

/// `GET /v1/watch`
pub(super) async fn watch(
    State(app): Shared,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let params = Params::read(pairs)?;
    super::serves(&app).await?;
    // Not ready: events that were shown before the restart might be missing.
    app.node.read_point(quorate_cluster::node::ReadLevel::Stale { max_age: None }, super::deadline()).await?;
    if let Some(service) = &params.service {
        super::gateway::find(&app.node, service)?;
    }
    let last_event_id = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
    let after = match last_event_id.or(params.from.as_deref()) {
        Some(text) => position(text)?,
        None => (app.node.state().applied().borrow().revision, u32::MAX),
    };
    let slot = Arc::clone(&app.watches).try_acquire_owned().map_err(|_| {
        Problem::new(429, "overloaded", "this server has as many watches as it takes; ask another one")
    })?;
    let mut reader = Reader { app: Arc::clone(&app), params, after, ready: VecDeque::new(), _slot: slot };
    // A watch that cannot begin is told so by the response's status.
    reader.read()?;
    let stream = events(reader, app.node.state().applied());
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(axum::response::Sse::new(stream).keep_alive(keep_alive).into_response())
}

/// `REVISION` (all of that delta's events are known) or `REVISION.N`.
fn position(text: &str) -> Result<Position, Problem> {
    let parsed = match text.split_once('.') {
        None => text.parse().ok().map(|revision| (revision, u32::MAX)),
        Some((revision, n)) => revision.parse().ok().zip(n.parse().ok()),
    };
    parsed.ok_or_else(|| {
        Problem::bad_request(format!("{text:?} is not a position: use REVISION or REVISION.N"))
    })
}

struct Reader {
    app: Arc<App>,
    params: Params,
    after: Position,
    ready: VecDeque<(Position, Event)>,
    _slot: OwnedSemaphorePermit,
}

impl Reader {
    /// Reads the next page; true when there may be more.
    fn read(&mut self) -> Result<bool, Problem> {
        let wanted = |event: &Event| {
            self.params.service.as_ref().is_none_or(|service| *service == event.service)
                && (self.params.topics.is_empty() || self.params.topics.contains(&event.topic))
        };
        let node: &Node = &self.app.node;
        let page = node.state().read(|machine| machine.events(self.after, PAGE, wanted));
        let page = page.map_err(|e| Problem::new(503, "shutting_down", e.to_string()))?;
        let page = page.map_err(|damage| {
            node.fail(&damage);
            Problem::new(503, "shutting_down", damage.to_string())
        })?;
        match page {
            Ok((events, next)) => {
                let more = events.len() == PAGE;
                self.after = next;
                self.ready.extend(events);
                Ok(more)
            }
            Err(Compacted { oldest: (revision, n) }) => {
                let text = format!(
                    "events up to {revision}.{n} are no longer kept; read the state, then watch from there"
                );
                Err(Problem::new(410, "compacted", text).with_oldest(format!("{revision}.{n}")))
            }
        }
    }
}

/// Ends when the client is so slow that events it has not seen are evicted: it is told 410 when it resumes. And when this
/// server has known no primary for a while, being cut off or removed, or is a backup in passive mode: the client goes on at
/// another one.
fn events(reader: Reader, applied: watch::Receiver<Applied>) -> impl Stream<Item = Result<Sse, Infallible>> {
    futures_util::stream::unfold((reader, applied), |(mut reader, mut applied)| async move {
        let mut ready_at = Instant::now();
        loop {
            if let Some(((revision, n), event)) = reader.ready.pop_front() {
                let sse = Sse::default().id(format!("{revision}.{n}")).event(event.topic).data(event.data);
                return Some((Ok(sse), (reader, applied)));
            }
            if reader.app.node.ready() {
                ready_at = Instant::now();
            }
            if reader.app.node.draining() || !reader.app.node.serves() || ready_at.elapsed() > CUT_OFF {
                return None;
            }
            applied.borrow_and_update();
            reader.read().ok()?;
            if reader.ready.is_empty() {
                // The timer lets a watch on an idle cluster notice that the server is stopping.
                let changed = tokio::time::timeout(Duration::from_millis(500), applied.changed());
                if matches!(changed.await, Ok(Err(_))) {
                    return None;
                }
            }
        }
    })
}
