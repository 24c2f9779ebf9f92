//! Commands, one by one and in batches: JSON at the edge, bytes within.

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Uri};
use quorate_cluster::node::Node;
use quorate_storage::delta::{Command, DeltaResult, MAX_DELTAS_PER_ENTRY, Outcome};
use quorate_storage::service::{BadRequest, EncodedCommands, ErasedService};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::problem::Problem;

use super::{Answer, App, Shared, deadline, json, primary, serves};

/// A batch's body above this is parsed, and answered, on another thread.
const LARGE: usize = 16 << 10;
/// What every JSON reader holds exactly. And there is always a next one.
pub(crate) const MAX_SEQUENCE: u64 = (1 << 53) - 1;

/// What a request says of its session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct SessionHeaders {
    session: u64,
    sequence: u64,
    acked: u64,
}

impl SessionHeaders {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let number = |name: &str| match headers.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(Problem::bad_request(format!("the header {name} is not a number"))),
            },
        };
        let (session, sequence) = (number("quorate-session")?, number("quorate-sequence")?);
        let acked = number("quorate-acked")?.unwrap_or(0);
        match (session, sequence) {
            (None, None) => Ok(Self::default()),
            (Some(_), Some(sequence)) if sequence > MAX_SEQUENCE => Err(Problem::bad_request(format!(
                "Quorate-Sequence {sequence} is above {MAX_SEQUENCE}: number a session's requests from 1"
            ))),
            (Some(session), Some(sequence)) if session > 0 && sequence > 0 => {
                if acked >= sequence {
                    return Err(Problem::bad_request(
                        "Quorate-Acked names this very sequence or a later one: its reply cannot have arrived",
                    ));
                }
                Ok(Self { session, sequence, acked })
            }
            _ => Err(Problem::bad_request(
                "a request with a session has both Quorate-Session and Quorate-Sequence, each from 1",
            )),
        }
    }
}

/// The service and the name in `/v1/{service}/{name}`. `None` for all other paths and for services that there are not.
/// Nearly all requests are of this kind, and axum's way to a handler costs as much as the handler.
pub(super) fn named<'a>(app: &'a App, uri: &'a Uri) -> Option<(&'a Arc<dyn ErasedService>, &'a str)> {
    let (service, name) = uri.path().strip_prefix("/v1/")?.split_once('/')?;
    let service = app.node.state().registry().get(service)?;
    // An escape is axum's to decode.
    (!name.contains(['/', '%'])).then_some((service, name))
}

/// `POST /v1/{service}/{command}`
pub(super) async fn command(
    State(app): Shared,
    Path((service, name)): Path<(String, String)>,
    request: Request,
) -> Answer {
    run(&app, find(&app.node, &service)?, &name, request).await
}

/// Runs the command `name` of `service`.
pub(super) async fn run(app: &App, service: &Arc<dyn ErasedService>, name: &str, request: Request) -> Answer {
    let session = SessionHeaders::read(request.headers())?;
    // Asked for only when it matters: it costs a parse.
    let query = || {
        let text = format!("{name} is a query, not a command: send it with GET, its fields in the URL");
        service.has_query(name).then(|| bad(service.name(), BadRequest::UnknownName(text)))
    };
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        let text = "a command's fields are in its JSON body, and this request has some behind a question mark: nothing was \
                    done";
        return Err(query().unwrap_or_else(|| Problem::bad_request(text)));
    }
    let fields = app.bodies.read(request.into_body()).await?;
    let encoded = service.command_from_json(name, &fields).map_err(|e| match e {
        BadRequest::UnknownName(_) => query().unwrap_or_else(|| bad(service.name(), e)),
        BadRequest::Fields(_) => bad(service.name(), e),
    })?;
    let command = command_of(session, service.name(), encoded.into());
    serves(app).await?;
    primary(app).await?;
    let (hooked, registry) = (&app.said.hooked, app.node.state().registry());
    let call = hooked.before(registry, &command).map_err(Problem::of_hook)?;
    let outcome = app.node.propose(command, deadline()).await?;
    hooked.after(registry, call.as_ref(), &outcome.result);
    if let Some(problem) = Problem::of_result(&outcome.result) {
        return Err(problem);
    }
    let mut reply = Vec::with_capacity(96);
    push_reply(&**service, &outcome, &mut reply)?;
    if app.said.transcript.on {
        tell(app, session, name, &fields, &reply);
    }
    Ok(json(reply))
}

/// Tells in the transcript what a command did.
fn tell(app: &App, session: SessionHeaders, command: &str, fields: &Bytes, reply: &[u8]) {
    let name = app.node.state().read(|machine| machine.session_name(session.session));
    let client = match name {
        Ok(Ok(Some(name))) => name,
        _ => session.session.to_string(),
    };
    let (own, number) = (app.node.name(), session.sequence);
    let reply = serde_json::from_slice(reply).unwrap_or_default();
    app.said.transcript.processed(own, &reply, || {
        let fields: Value = serde_json::from_slice(fields).unwrap_or_default();
        // The one that says what is done, when that is all.
        let rest = fields.as_object().and_then(|fields| match fields.iter().collect::<Vec<_>>()[..] {
            [(_, only)] => Some(only.clone()),
            _ => None,
        });
        let rest = rest.unwrap_or(fields);
        let rest = rest.as_str().map_or_else(|| rest.to_string(), str::to_owned);
        format!("<{client}, {own}, {number}, {command} {rest}, request>")
    });
}

/// `POST /v1/batch`
pub(super) async fn batch(State(app): Shared, request: Request) -> Answer {
    let session = SessionHeaders::read(request.headers())?;
    let body = app.bodies.read(request.into_body()).await?;
    let large = body.len() > LARGE;
    let node = app.node.clone();
    let (commands, services) = aside(large, move || parse_batch(&node, session, &body)).await?;
    serves(&app).await?;
    primary(&app).await?;
    let (hooked, registry) = (&app.said.hooked, app.node.state().registry());
    let calls = hooked
        .before_all(registry, &commands)
        .map_err(|(n, refusal)| Problem::of_hook(refusal).in_item(n))?;
    let outcomes = app.node.propose_all(commands, deadline()).await?;
    for (call, outcome) in calls.iter().zip(&outcomes) {
        hooked.after(registry, call.as_ref(), &outcome.result);
    }
    let node = app.node.clone();
    let replies = aside(large, move || replies_json(&node, &services, &outcomes)).await;
    replies.map_err(Problem::unknown).map(json)
}

/// Does what takes long on another thread: a node that is busy with JSON sends no heartbeats.
async fn aside<R: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    if !large {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Problem::new(500, "failed", e.to_string())))
}

fn replies_json(node: &Node, services: &[&'static str], outcomes: &[Outcome]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::with_capacity(outcomes.len() * 64);
    out.push(b'[');
    let mut last: Option<(&str, &Arc<dyn ErasedService>)> = None;
    for (outcome, &name) in outcomes.iter().zip(services) {
        if out.len() > 1 {
            out.push(b',');
        }
        let service = match last {
            // Mostly the same; then it is the same text, too.
            Some((same, service)) if std::ptr::eq(same, name) => service,
            _ => find(node, name)?,
        };
        last = Some((name, service));
        match Problem::of_result(&outcome.result) {
            None => push_reply(&**service, outcome, &mut out)?,
            Some(problem) => {
                let refused = serde_json::json!({ "refused": problem.to_value() });
                out.extend_from_slice(refused.to_string().as_bytes());
            }
        }
    }
    out.push(b']');
    Ok(out)
}

/// The batch's commands, and whose they are; with a session, the n-th has the header's sequence plus n.
fn parse_batch(
    node: &Node,
    session: SessionHeaders,
    body: &Bytes,
) -> Result<(Vec<Command>, Vec<&'static str>), Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("the batch is not UTF-8"))?;
    let one = |service: &Arc<dyn ErasedService>| {
        Some((service.batch_from_json(text, MAX_DELTAS_PER_ENTRY)?, service.name()))
    };
    if let Some((commands, service)) = node.state().registry().iter().find_map(one) {
        let services = vec![service; commands.ends.len()];
        return Ok((numbered(session, commands, &services)?, services));
    }
    let Items(items) = serde_json::from_str(text).map_err(|e| {
        Problem::bad_request(format!("the batch is not an array of {{\"service\":{{…}}}}: {e}"))
    })?;
    let Some(items) = items else {
        let text =
            format!("a batch has at most {MAX_DELTAS_PER_ENTRY} commands; send the rest in another one");
        return Err(Problem::new(413, "too_large", text));
    };
    let mut services = Vec::with_capacity(items.len());
    let mut encoded = EncodedCommands::default();
    for (n, Item { service: name, command }) in items.iter().enumerate() {
        let service = find(node, name).map_err(|e| e.in_item(n))?;
        service
            .command_from_tagged_json(command.get(), &mut encoded.bytes)
            .map_err(|e| bad(&format!("item {n}: {name}"), e))?;
        services.push(service.name());
        encoded.ends.push(encoded.bytes.len());
    }
    Ok((numbered(session, encoded, &services)?, services))
}

/// The commands of a batch, the n-th with the session's sequence plus n.
fn numbered(
    session: SessionHeaders,
    EncodedCommands { bytes, ends }: EncodedCommands,
    services: &[&'static str],
) -> Result<Vec<Command>, Problem> {
    let encoded = Bytes::from(bytes);
    let mut commands = Vec::with_capacity(services.len());
    let mut start = 0;
    for (n, (service, end)) in services.iter().zip(ends).enumerate() {
        let mut session = session;
        if session.session > 0 {
            session.sequence = session
                .sequence
                .checked_add(n as u64)
                .filter(|sequence| *sequence <= MAX_SEQUENCE)
                .ok_or_else(|| Problem::bad_request("the batch goes past the last sequence of all"))?;
        }
        commands.push(command_of(session, service, encoded.slice(start..end)));
        start = end;
    }
    Ok(commands)
}

/// A batch's items as they were sent; `None` when there are too many. The rest is skipped then, not kept: an item
/// costs more in memory than on the wire.
struct Items<'a>(Option<Vec<Item<'a>>>);

/// `{"service":{…}}`
struct Item<'a> {
    service: Cow<'a, str>,
    command: &'a RawValue,
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<'de>, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX_DELTAS_PER_ENTRY {
            let Some(item) = seq.next_element()? else { return Ok(Items(Some(items))) };
            items.push(item);
        }
        let mut too_many = false;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            too_many = true;
        }
        Ok(Items((!too_many).then_some(items)))
    }
}

impl<'de> Deserialize<'de> for Item<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that names exactly one service")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item<'de>, A::Error> {
        let entry = map.next_entry::<Name<'de>, &RawValue>()?;
        let (Name(service), command) = entry.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        match map.next_key::<IgnoredAny>()? {
            None => Ok(Item { service, command }),
            Some(_) => Err(A::Error::invalid_length(2, &self)),
        }
    }
}

/// Borrowed unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn command_of(session: SessionHeaders, service: &'static str, body: Bytes) -> Command {
    let SessionHeaders { session, sequence, acked } = session;
    Command { session, sequence, acked, service: service.into(), body }
}

pub(super) fn find<'a>(node: &'a Node, name: &str) -> Result<&'a Arc<dyn ErasedService>, Problem> {
    let registry = node.state().registry();
    registry.get(name).ok_or_else(|| Problem::unknown_service(name, registry.iter().map(|s| s.name())))
}

pub(super) fn bad(what: &str, error: BadRequest) -> Problem {
    match error {
        BadRequest::UnknownName(text) => Problem::new(404, "not_found", format!("{what}: {text}")),
        BadRequest::Fields(text) => Problem::bad_request(format!("{what}: {text}")),
    }
}

/// Writes the reply as JSON with its revision.
fn push_reply(service: &dyn ErasedService, outcome: &Outcome, out: &mut Vec<u8>) -> Result<(), Problem> {
    let DeltaResult::Reply(reply) = &outcome.result else {
        return Err(Problem::new(500, "failed", "a refusal is not a reply").unknown());
    };
    service.reply_to_json(reply, out).map_err(|e| {
        Problem::new(500, "failed", format!("the command was applied; its reply is unreadable: {e}"))
            .unknown()
    })?;
    push_fields(out, outcome.revision, None);
    Ok(())
}

/// Adds `revision` and `age_ms` to the JSON object at the end.
pub(super) fn push_fields(out: &mut Vec<u8>, revision: u64, age: Option<Duration>) {
    debug_assert_eq!(out.last(), Some(&b'}'), "replies and answers are JSON objects");
    out.pop();
    let push = |out: &mut Vec<u8>, key: &[u8], number: u64| {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        out.extend_from_slice(key);
        // Writing to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut *out, &number);
    };
    push(out, b"\"revision\":", revision);
    if let Some(age) = age {
        push(out, b"\"age_ms\":", age.as_millis() as u64);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_added_to_objects() {
        let text = |object: &str, age| {
            let mut out = object.as_bytes().to_vec();
            push_fields(&mut out, 7, age);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text("{}", None), r#"{"revision":7}"#);
        assert_eq!(text(r#"{"a":1}"#, Some(Duration::from_millis(3))), r#"{"a":1,"revision":7,"age_ms":3}"#);
    }

    #[test]
    fn session_headers_are_checked() {
        let read = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            SessionHeaders::read(&headers)
        };
        assert_eq!(read(&[]).unwrap(), SessionHeaders::default());
        let all = [("quorate-session", "4"), ("quorate-sequence", "9"), ("quorate-acked", "8")];
        assert_eq!(read(&all).unwrap(), SessionHeaders { session: 4, sequence: 9, acked: 8 });
        assert!(read(&[("quorate-session", "4")]).is_err());
        assert!(read(&[("quorate-session", "4"), ("quorate-sequence", "0")]).is_err());
        assert!(read(&[("quorate-session", "4"), ("quorate-sequence", "-1")]).is_err());
        let sequence = |sequence| read(&[("quorate-session", "4"), ("quorate-sequence", sequence)]);
        assert!(sequence("9007199254740991").is_ok() && sequence("9007199254740992").is_err());
        assert!(
            read(&[("quorate-session", "4"), ("quorate-sequence", "2"), ("quorate-acked", "2")]).is_err()
        );
    }
}
