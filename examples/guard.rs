//! A server with hooks: counters whose names begin with `locked` cannot be changed through it, and it tells on stderr what it
//! did. Run it as `quorate` is run: `cargo run --example guard -- server --name S1 …`

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use quorate::Refusal;
use quorate::server::{Call, Hooks};
use serde_json::Value;

#[derive(Debug)]
struct Guard;

impl Hooks for Guard {
    fn before_call(&self, call: &Call) -> Result<(), Refusal> {
        let name = call.fields["name"].as_str().unwrap_or_default();
        if call.service == "counter" && name.starts_with("locked") {
            return Err(Refusal::new("locked", format!("{name} is locked")).with_status(403));
        }
        Ok(())
    }

    fn after_reply(&self, call: &Call, reply: &Result<Value, Refusal>) {
        let told = match reply {
            Ok(reply) => reply.to_string(),
            Err(refusal) => refusal.code.clone(),
        };
        // There is nobody left to tell when stderr is closed.
        let _ = writeln!(std::io::stderr(), "{} {}: {told}", call.service, call.command);
    }
}

fn main() -> ExitCode {
    quorate::cli::run_with_hooks(std::env::args_os(), quorate::services::registry(), Arc::new(Guard))
}
