//! Queries at the three read levels.

use axum::extract::{Path, RawQuery, State};
use quorate_cluster::node::{Node, ReadLevel};
use quorate_storage::machine::QueryError;
use quorate_storage::service::BadRequest;
use serde::Deserialize;
use std::time::Duration;

use super::gateway::{bad, find, push_fields};
use super::problem::Problem;
use super::{Answer, App, Shared, deadline, json, primary, serves};

/// What every query may say of its freshness.
#[derive(Debug, Default, Deserialize)]
struct ReadParams {
    read: Option<String>,
    max_age_ms: Option<u64>,
}

/// `GET /v1/{service}/{query}`
pub(super) async fn get(
    State(app): Shared,
    Path((service, name)): Path<(String, String)>,
    RawQuery(params): RawQuery,
) -> Answer {
    ask(&app, find(&app.node, &service)?.name(), &name, params.as_deref()).await
}

/// Asks the query `name` of `service`.
pub(super) async fn ask(app: &App, service: &str, name: &str, params: Option<&str>) -> Answer {
    let (level, own) = split_params(params.unwrap_or_default())?;
    serves(app).await?;
    if !matches!(level, ReadLevel::Stale { .. }) {
        primary(app).await?;
    }
    let point = app.node.read_point(level, deadline()).await?;
    let answered = app.node.state().read(|machine| (machine.revision(), machine.query(service, name, &own)));
    let (revision, answer) = answered.map_err(|e| failed(&app.node, e))?;
    match answer {
        Ok(mut answer) => {
            let age = matches!(level, ReadLevel::Stale { .. }).then_some(point.age).flatten();
            push_fields(&mut answer, revision, age);
            Ok(json(answer))
        }
        Err(QueryError::Refused(refusal)) => Err(refusal.into()),
        Err(QueryError::BadRequest(BadRequest::UnknownName(text))) => {
            Err(bad(service, BadRequest::UnknownName(with_command_hint(&app.node, service, name, text))))
        }
        Err(QueryError::BadRequest(e)) => Err(bad(service, e)),
        Err(QueryError::UnknownService) => Err(Problem::new(404, "unknown_service", service)),
        Err(QueryError::Damage(damage)) => Err(failed(&app.node, damage)),
    }
}

/// Says of a query that does not exist when a command has its name.
fn with_command_hint(node: &Node, service: &str, name: &str, text: String) -> String {
    let found = node.state().registry().get(service).map(|service| service.command_from_json(name, b"{}"));
    match found {
        // Fields that it lacks are another matter.
        Some(Ok(_) | Err(BadRequest::Fields(_))) => {
            format!("{name} is a command, not a query: send it with POST, its fields as a JSON body")
        }
        Some(Err(BadRequest::UnknownName(_))) | None => text,
    }
}

fn failed(node: &Node, error: impl ToString) -> Problem {
    let text = error.to_string();
    node.fail(&text);
    Problem::new(503, "shutting_down", text)
}

/// Takes `read` and `max_age_ms` out of the parameters; the rest is the query's.
fn split_params(params: &str) -> Result<(ReadLevel, String), Problem> {
    let own = |pair: &&str| !(pair.starts_with("read=") || pair.starts_with("max_age_ms="));
    let (mine, rest): (Vec<&str>, Vec<&str>) = params.split('&').partition(|pair| !own(pair));
    let ReadParams { read, max_age_ms } = match mine.is_empty() {
        true => ReadParams::default(),
        false => {
            let read = serde_urlencoded::from_str(&mine.join("&"));
            read.map_err(|e| Problem::bad_request(format!("read, max_age_ms: {e}")))?
        }
    };
    let max_age = max_age_ms.map(Duration::from_millis);
    let level = match (read.as_deref(), max_age) {
        (None | Some("linearizable"), None) => ReadLevel::Linearizable,
        (Some("lease"), None) => ReadLevel::Lease,
        (Some("stale"), max_age) => ReadLevel::Stale { max_age },
        (None | Some("linearizable" | "lease"), Some(_)) => {
            return Err(Problem::bad_request("max_age_ms goes with read=stale"));
        }
        (Some(other), _) => {
            let text = format!("read={other} is not a level: use linearizable, lease or stale");
            return Err(Problem::bad_request(text));
        }
    };
    Ok((level, rest.join("&")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_split() {
        let split = split_params;
        assert_eq!(split("").unwrap(), (ReadLevel::Linearizable, String::new()));
        let (level, rest) = split("name=a%26b&read=stale&max_age_ms=5&limit=3").unwrap();
        assert_eq!(level, ReadLevel::Stale { max_age: Some(Duration::from_millis(5)) });
        assert_eq!(rest, "name=a%26b&limit=3");
        assert!(split("read=eventual").is_err());
        assert!(split("max_age_ms=5").is_err());
        assert!(split("read=stale&max_age_ms=x").is_err());
    }
}
