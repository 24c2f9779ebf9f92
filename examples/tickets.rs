//! A service of one's own: numbered tickets for people who wait at a desk. It runs as `quorate` does:
//!
//! ```text
//! cargo run --example tickets -- cluster init --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001
//! cargo run --example tickets -- server --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001
//! curl -d '{"desk":"visa","who":"ada"}' http://127.0.0.1:8001/v1/tickets/take
//! curl -d '{"desk":"visa"}' http://127.0.0.1:8001/v1/tickets/call
//! ```
use std::{ops::Bound::Included, ops::ControlFlow, process::ExitCode};

use quorate::{Context, QueryContext, Refusal, Service, Table, Tables, View};
use serde::{Deserialize, Serialize};

struct Tickets;

/// Who waits, ordered by desk, then number; and the last number of each desk.
const WAITING: Table<(String, u64), String> = Table::new("waiting");
const LAST: Table<String, u64> = Table::new("last");

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    Take { desk: String, who: String },
    Call { desk: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Query {
    Show { desk: String, number: u64 },
}

#[derive(Serialize, Deserialize)]
struct Ticket {
    number: u64,
    who: String,
}

impl Service for Tickets {
    const NAME: &'static str = "tickets";
    type Command = Command;
    type Reply = Ticket;
    type Query = Query;
    type Answer = Ticket;

    fn apply(&self, tables: &mut Tables, context: &mut Context, command: Command) -> Result<Ticket, Refusal> {
        match command {
            Command::Take { desk, who } => {
                let number = tables.get(&LAST, &desk).unwrap_or(0) + 1;
                tables.put(&LAST, &desk, &number);
                tables.put(&WAITING, &(desk, number), &who);
                Ok(Ticket { number, who })
            }
            Command::Call { desk } => {
                let (from, to) = ((desk.clone(), 0), (desk.clone(), u64::MAX));
                let mut ticket = Err(Refusal::new("nobody_waits", format!("nobody waits at {desk}")));
                tables.range(&WAITING, (Included(&from), Included(&to)), |(_, number), who| {
                    ticket = Ok(Ticket { number, who });
                    ControlFlow::Break(())
                });
                let ticket = ticket?;
                tables.remove(&WAITING, &(desk.clone(), ticket.number));
                context.emit(desk, &ticket); // to all who watch the desk
                Ok(ticket)
            }
        }
    }

    fn query(&self, view: &View, _: &QueryContext, query: Query) -> Result<Ticket, Refusal> {
        let Query::Show { desk, number } = query;
        let who = view.get(&WAITING, &(desk, number));
        let gone = || Refusal::new("not_found", format!("{number} does not wait")).with_status(404);
        who.map(|who| Ticket { number, who }).ok_or_else(gone)
    }
}

fn main() -> ExitCode {
    quorate::cli::run_with(std::env::args_os(), quorate::services::registry().with(Tickets))
}
