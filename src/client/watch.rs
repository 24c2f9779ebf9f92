//! Watches: the events of a service, in order, each once, from one server after the other.
//!
//! Every event has a [`Position`], the same on every server. A watch remembers the last one that it handed out, asks
//! the next server for what comes after it, and drops whatever it has handed out already. So a failure of a server is
//! neither a gap nor a repetition.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use eventsource_stream::{EventStream, EventStreamError, Eventsource};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::error::{Error, History, Refused};
use super::problem::Verdict;
use super::servers::{self, Route};
use super::transport::{Attempt, Request};
use super::{Client, CounterValue, ReadLevel, Result};

/// A server that says nothing at all for so long, not even that it is alive, is given up. Servers send a comment
/// several times within this.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// The pause between two rounds over all servers.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where an event stands: the revision of its delta, and its number among the delta's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The delta's revision.
    pub revision: u64,
    /// The event's number within the delta; absent when the whole delta is meant.
    pub event: Option<u32>,
}

impl Position {
    /// The position after all events of a revision.
    pub fn after(revision: u64) -> Self {
        Self { revision, event: None }
    }

    /// Is an event at `other` already covered when everything up to `self` was seen?
    fn covers(self, other: Self) -> bool {
        let key = |position: Self| (position.revision, position.event.unwrap_or(u32::MAX));
        key(other) <= key(self)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.event {
            Some(event) => write!(f, "{}.{event}", self.revision),
            None => write!(f, "{}", self.revision),
        }
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail =
            |_| format!("`{text}` is no position; expected REVISION or REVISION.N, such as 42 or 42.1");
        let (revision, event) = match text.split_once('.') {
            Some((revision, event)) => (revision, Some(event.parse().map_err(fail)?)),
            None => (text, None),
        };
        Ok(Self { revision: revision.parse().map_err(fail)?, event })
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Where it stands.
    pub position: Position,
    /// Its topic, for a counter or a register its name.
    pub topic: String,
    /// What happened.
    pub data: Value,
}

type Events = Pin<Box<dyn Stream<Item = Result<eventsource_stream::Event, String>> + Send>>;

/// A running watch. It is driven by [`Watch::next`] alone: nobody buffers for a caller who does not ask.
pub struct Watch {
    client: Client,
    service: String,
    topics: Vec<String>,
    position: Option<Position>,
    /// Has an event been handed out, so that the position is an event's?
    resumed: bool,
    open: Option<Events>,
    route: Route,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("service", &self.service)
            .field("topics", &self.topics)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Watches the events of a service: those of some topics, or all if none is given; those after a position, or from now
    /// on.
    pub fn watch(&self, service: &str, topics: &[&str], from: Option<Position>) -> Watch {
        Watch {
            client: self.clone(),
            service: service.to_owned(),
            topics: topics.iter().map(ToString::to_string).collect(),
            position: from,
            resumed: false,
            open: None,
            route: self.inner.transport.servers.route(),
        }
    }
}

impl Watch {
    /// The position of the last event that was handed out, or where the watch starts. Absent until the watch has
    /// begun, when it was to start "now".
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The next event, however long it takes. An error does not end the watch: calling again goes on at the same
    /// place. `compacted` (with `oldest`) says that events after the position were dropped already. The client's
    /// time limit says how long all servers may be away.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if self.open.is_none() {
                self.open = Some(self.connect().await?);
            }
            let Some(events) = &mut self.open else { continue };
            match events.next().await {
                Some(Ok(event)) => {
                    if let Some(event) = self.accept(event) {
                        return Ok(event);
                    }
                }
                // Broken off, ended, or silent: the next server has the same events.
                Some(Err(_)) | None => {
                    self.open = None;
                    self.route.next();
                }
            }
        }
    }

    /// The events as a stream. It goes on after an error, like [`Watch::next`].
    pub fn into_stream(self) -> Pin<Box<dyn Stream<Item = Result<Event>> + Send>> {
        Box::pin(stream::unfold(self, |mut watch| async move {
            let next = watch.next().await;
            Some((next, watch))
        }))
    }

    /// Passes an event on, unless it was handed out before, or is none of the service's (it has no position then).
    fn accept(&mut self, event: eventsource_stream::Event) -> Option<Event> {
        let position = event.id.parse::<Position>().ok()?;
        if self.position.is_some_and(|seen| seen.covers(position)) {
            return None;
        }
        self.position = Some(position);
        self.resumed = true;
        let data = serde_json::from_str(&event.data).unwrap_or(Value::String(event.data));
        Some(Event { position, topic: event.event, data })
    }

    async fn connect(&mut self) -> Result<Events> {
        if self.position.is_none() {
            // "Now" has to be a number before anything can fail, or a retry would start at a later "now".
            let now: super::Reply<CounterValue> =
                self.client.query("counter", "get", &[], ReadLevel::Linearizable).await?;
            self.position = Some(Position::after(now.revision));
        }
        let deadline = self.client.deadline();
        let mut history = History::default();
        let mut pause = PAUSE_FIRST;
        loop {
            match self.connect_to_current(&mut history).await {
                Ok(events) => return Ok(events),
                Err(Some(error)) => return Err(error),
                Err(None) => {}
            }
            if Instant::now() >= deadline {
                history.time_is_up();
                let cause = "no server streams events".to_owned();
                return Err(history.fail_question(cause));
            }
            if history.attempts() as usize >= self.route.len() {
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// One attempt; no error means that another server is to be tried.
    async fn connect_to_current(&mut self, history: &mut History) -> Result<Events, Option<Error>> {
        let mut query = vec![("service", self.service.clone())];
        query.extend(self.topics.iter().map(|topic| ("topic", topic.clone())));
        let position = self.position.map(|position| position.to_string());
        let last_event_id = position.clone().filter(|_| self.resumed);
        if last_event_id.is_none() {
            query.extend(position.map(|position| ("from", position)));
        }
        let request = Request::get(vec!["v1", "watch"], query);
        let server = self.route.current().clone();
        let transport = &self.client.inner.transport;
        let failed = match transport.open_stream(&request, &server, last_event_id).await {
            Ok(response) => return Ok(events(response)),
            Err(failed) => failed,
        };
        let name = servers::name(&server);
        match failed {
            Attempt::Verdict(_, Verdict::Final(problem))
                if problem.is_foreign() && history.others_left(self.route.len()) =>
            {
                history.add_stranger(&name, problem.detail);
                self.route.next();
            }
            Attempt::NotHttp(cause) => {
                let others_left = history.others_left(self.route.len());
                history.add_not_http(&name, &cause);
                self.route.next();
                if !others_left {
                    return Err(Some(
                        std::mem::take(history).fail_question("no server was found".to_owned()),
                    ));
                }
            }
            Attempt::Verdict(status, Verdict::Final(problem) | Verdict::SessionLost(problem)) => {
                return Err(Some(Error::Refused(Box::new(Refused::by(&name, status, *problem)))));
            }
            Attempt::Verdict(_, Verdict::Retry { problem, .. }) => {
                history.add(&name, format!("{}: {}", problem.code, problem.detail), Some(problem.code));
                match &problem.primary {
                    Some(primary) => {
                        self.route.follow(primary);
                    }
                    None => self.route.next(),
                }
            }
            Attempt::Reply(_) => {
                let cause = "answered, but with no stream of events; is it a Quorate server?";
                history.add(&name, cause.to_owned(), None);
                self.route.next();
            }
            Attempt::Broken { cause, sent, how } => {
                history.add_broken(&name, cause, how, sent);
                self.route.next();
            }
        }
        Err(None)
    }
}

/// The events of one response. A silent connection ends it, since comments do not come through the parser.
pub(crate) fn events(response: reqwest::Response) -> Events {
    let bytes = Box::pin(response.bytes_stream());
    let alive = stream::unfold(Some(bytes), |bytes| async move {
        let mut bytes = bytes?;
        match timeout(SILENCE_MAX, bytes.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(bytes))),
            Ok(Some(Err(error))) => Some((Err(error.to_string()), None)),
            Ok(None) => None,
            Err(_) => Some((Err("silent".to_owned()), None)),
        }
    });
    let parsed: EventStream<_> = Box::pin(alive).eventsource();
    Box::pin(parsed.map(|event| event.map_err(|error: EventStreamError<String>| error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_and_ordered() {
        let position: Position = "42.3".parse().unwrap();
        assert_eq!(position, Position { revision: 42, event: Some(3) });
        assert_eq!(position.to_string(), "42.3");
        assert_eq!("7".parse::<Position>().unwrap(), Position::after(7));
        for bad in ["", "x", "1.", ".1", "1.2.3", "-1"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
        assert!(Position::after(42).covers(position), "a whole revision covers all its events");
        assert!(position.covers(position));
        assert!(!position.covers("42.4".parse().unwrap()));
        assert!(!position.covers(Position::after(43)));
    }
}
