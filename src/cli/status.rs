//! The cluster in words and tables.

use comfy_table::presets::{NOTHING, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use super::shown::cell;
use crate::client::{ClusterStatus, LogPage, LoggedDelta, ServerStatus};

/// Stands for what is not known.
const NONE: &str = "-";

/// The whole status.
pub(crate) fn render(status: &ClusterStatus) -> String {
    let mut head = plain_table();
    head.add_row(["cluster", &plain(&status.cluster_id)]);
    head.add_row(["mode", status.mode.as_deref().unwrap_or(NONE)]);
    head.add_row(["primary", &primary(status)]);
    head.add_row(["voters", &names(&status.membership.voters)]);
    head.add_row(["learners", &names(&status.membership.learners)]);
    head.add_row(["state", &state(status)]);
    if !status.settings.is_empty() {
        let settings: Vec<_> =
            status.settings.iter().map(|(name, value)| format!("{name} = {}", plain(value))).collect();
        head.add_row(["settings", &settings.join(", ")]);
    }
    if !status.view.is_null() {
        head.add_row(["view", &view(&status.view)]);
    }

    let mut servers = Table::new();
    servers.load_style(UTF8_FULL_CONDENSED.with_rounded_corners());
    let header = ["server", "role", "state", "ready", "revision", "lag", "checkpoint", "node", "url", "peer"];
    servers.set_header(header);
    // The cluster has them in the order of their node ids, which tells nobody anything.
    let mut by_name: Vec<&ServerStatus> = status.servers.iter().collect();
    by_name.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
    for server in by_name {
        servers.add_row(row(server));
    }
    for (at, name) in header.iter().enumerate() {
        if let (true, Some(column)) = (["revision", "lag", "node"].contains(name), servers.column_mut(at)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n{servers}", trimmed(&head))
}

fn row(server: &ServerStatus) -> [String; 10] {
    [
        cell(&server.name),
        text(server.role.as_deref()),
        match server.disk_low {
            Some(true) => format!("{}, disk full", plain(&server.state)),
            _ => plain(&server.state),
        },
        yes_or_no(server.ready),
        number(server.revision),
        number(server.lag),
        checkpoint(&server.checkpoint),
        number(server.node_id),
        text(server.url.as_deref()),
        text(server.peer.as_deref()),
    ]
}

/// Its number, and as much of the hash as the eye compares.
fn checkpoint(checkpoint: &Value) -> String {
    match (checkpoint.get("number"), checkpoint.get("state_hash").and_then(Value::as_str)) {
        (Some(number), Some(hash)) => format!("{} ({})", plain(number), cell(hash.get(..8).unwrap_or(hash))),
        _ => plain(checkpoint),
    }
}

fn primary(status: &ClusterStatus) -> String {
    let term = status.term.map_or_else(String::new, |term| format!(" (term {term})"));
    match &status.primary {
        Some(name) => {
            // It was, a moment ago: whoever was asked has not missed it yet.
            let away = status.servers.iter().any(|server| server.name == *name && server.state == "away");
            format!("{name}{term}{}", if away { ", which does not answer" } else { "" })
        }
        None => format!("none{term}: writes wait until a majority of the voters can talk to each other"),
    }
}

fn state(status: &ClusterStatus) -> String {
    match status.settled {
        Some(true) => "settled: every member is ready, no change is half done".to_owned(),
        Some(false) => {
            let mut why: Vec<String> = Vec::new();
            if status.primary.is_none() {
                why.push("there is no primary".to_owned());
            }
            if status.membership.joint {
                why.push("a membership change is half done".to_owned());
            }
            for server in status.servers.iter().filter(|server| server.ready == Some(false)) {
                let what = if server.state == "alive" { "not ready" } else { &plain(&server.state) };
                why.push(format!("{} is {what}", cell(&server.name)));
            }
            format!("unsettled{}{}", if why.is_empty() { "" } else { ": " }, why.join(", "))
        }
        None => "unknown".to_owned(),
    }
}

fn view(view: &Value) -> String {
    let members = view.get("members").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let members: Vec<_> = members
        .iter()
        .map(|member| match (member.get("name"), member.get("state"), member.get("lfd_silent")) {
            (Some(name), Some(state), Some(Value::Bool(true))) => {
                let lfd = member.get("lfd").map_or_else(|| "its detector".to_owned(), plain);
                format!("{} {} ({lfd} silent)", plain(name), plain(state))
            }
            (Some(name), Some(state), _) => format!("{} {}", plain(name), plain(state)),
            _ => plain(member),
        })
        .collect();
    let revision = view.get("revision").map_or_else(|| NONE.to_owned(), plain);
    format!(
        "{} (revision {revision})",
        if members.is_empty() { "0 members".to_owned() } else { members.join(", ") }
    )
}

/// Who votes and who learns, one server a line.
pub(crate) fn render_members(status: &ClusterStatus) -> String {
    let mut table = plain_table();
    let membership = &status.membership;
    for (names, role) in [(&membership.voters, "voter"), (&membership.learners, "learner")] {
        for name in sorted(names) {
            let server = status.servers.iter().find(|server| server.name == name);
            let peer = text(server.and_then(|server| server.peer.as_deref()));
            let primary = if status.primary.as_deref() == Some(name) { "primary" } else { "" };
            table.add_row([&cell(name), role, &peer, primary]);
        }
    }
    let joint = if membership.joint { "\nin the middle of a change" } else { "" };
    format!("{}\nmembership {}{joint}", trimmed(&table), plain(&membership.log_id))
}

/// The log, one delta a line.
pub(crate) fn render_log(page: &LogPage) -> String {
    let mut table = plain_table();
    table.set_header(["revision", "time", "session", "service", "command"]);
    for delta in &page.deltas {
        table.add_row([
            delta.revision.to_string(),
            utc(delta.time_ms),
            session(delta),
            cell(&delta.service),
            cell(&delta.command.to_string()),
        ]);
    }
    trimmed(&table)
}

fn session(delta: &LoggedDelta) -> String {
    match (delta.session, delta.sequence) {
        (Some(session), Some(sequence)) if session > 0 => format!("{session}/{sequence}"),
        _ => NONE.to_owned(),
    }
}

/// A JSON value as a person writes it: texts without quotes.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) => cell(text),
        other => cell(&other.to_string()),
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

/// A table without frame, with a header.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = plain_table();
    table.set_header(header);
    table
}

/// A table without frame has blanks at both ends of its lines.
pub(super) fn trimmed(table: &Table) -> String {
    let lines: Vec<_> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

fn names(names: &[String]) -> String {
    if names.is_empty() { NONE.to_owned() } else { cell(&sorted(names).join(" ")) }
}

fn sorted(names: &[String]) -> Vec<&str> {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted
}

fn text(text: Option<&str>) -> String {
    cell(text.unwrap_or(NONE))
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| NONE.to_owned(), |number| number.to_string())
}

fn yes_or_no(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => NONE.to_owned(),
    }
}

/// Milliseconds since 1970 as a date and a time, UTC. The calendar is Howard Hinnant's `civil_from_days`.
pub(super) fn utc(time_ms: u64) -> String {
    let (days, ms) = (time_ms / 86_400_000, time_ms % 86_400_000);
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00.000");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00.000");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31 23:59:59.999");
    }

    #[test]
    fn a_status_is_read_and_shown() {
        let status: ClusterStatus = serde_json::from_value(json!({
            "cluster_id": "c0ffee", "mode": "active", "term": 3, "primary": "S2", "settled": true,
            "membership": {"log_id": {"term": 1, "index": 7}, "voters": ["S1", "S2"], "learners": [], "joint": false},
            "servers": [
                {"name": "S1", "node_id": 1, "url": "http://a:8001", "peer": "a:9001", "role": "backup",
                 "state": "alive", "ready": true, "last_log": 9, "committed": 9, "applied": 9, "revision": 42,
                 "checkpoint": {"number": 8, "revision": 40, "state_hash": "00c0ffee00c0ffee00c0ffee00c0ffee"}, "lag": 0, "new_field": "of a later version"},
                {"name": "S2", "role": "primary"},
            ],
            "settings": {"target-size": 3}, "view": null
        }))
        .unwrap();
        let text = render(&status);
        for part in [
            "S2 (term 3)",
            "c0ffee",
            "S1 S2",
            "settled",
            "target-size = 3",
            "http://a:8001",
            "│",
            "42",
            "8 (00c0ffee)",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let members = render_members(&status);
        assert!(members.starts_with("S1  voter  a:9001"), "{members}");
        assert!(members.lines().nth(1).unwrap().ends_with("primary"), "{members}");
    }

    #[test]
    fn a_log_is_shown() {
        let page: LogPage = serde_json::from_value(json!({
            "deltas": [
                {"revision": 7, "time_ms": 0, "session": 3, "sequence": 1, "service": "counter",
                 "command": {"add": {"name": "hits", "amount": 5}}},
                {"revision": 8, "time_ms": 0, "session": null, "sequence": null, "service": "counter", "command": null},
            ],
            "oldest": 1, "next": 9
        }))
        .unwrap();
        let text = render_log(&page);
        assert!(text.contains(r#"7         1970-01-01 00:00:00.000  3/1      counter  {"add":"#), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
