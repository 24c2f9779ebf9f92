//! The flags that commands on counters and registers share, and which command they say something to.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::output::CliError;
use crate::client::ReadLevel;
use crate::config::{self, Config};

const READS: &str = "Counters and reads";

/// What single commands take, on the command line and in the console.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CommonFlags {
    /// Which counter [default: default]
    #[arg(long, global = true, value_name = "NAME", help_heading = READS)]
    pub(crate) counter: Option<String>,
    /// How fresh what is read has to be [default: linearizable]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = READS)]
    read: Option<ReadName>,
    /// The greatest age of a stale read [default: any]
    #[arg(long, global = true, value_name = "TIME", value_parser = config::duration, help_heading = READS)]
    max_age: Option<Duration>,
}

/// Which of the common flags say something to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Uses {
    /// It works on one counter.
    pub(crate) counter: bool,
    /// It reads.
    pub(crate) read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadName {
    /// Contains everything that was acknowledged before
    Linearizable,
    /// The same while the servers' clocks run at about the same speed
    Lease,
    /// Whatever the asked server has
    Stale,
}

impl CommonFlags {
    /// A flag that changes nothing is a misunderstanding, and better told than ignored.
    pub(crate) fn check(&self, uses: Uses) -> Result<(), CliError> {
        if self.counter.is_some() && !uses.counter {
            return Err(CliError::usage(
                "--counter says nothing to this command: it is for add, minus, get, set, cas, delete, watch and console. \
                 `--name` chooses a register",
            ));
        }
        let flag = if self.read.is_some() { "--read" } else { "--max-age" };
        if (self.read.is_some() || self.max_age.is_some()) && !uses.read {
            return Err(CliError::usage(format!(
                "{flag} says nothing to this command: it is for get, list, register get, register list and console"
            )));
        }
        Ok(())
    }
}

/// The names and the read level of one command, completed.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) counter: String,
    pub(crate) register: String,
    pub(crate) level: ReadLevel,
}

impl Defaults {
    pub(crate) fn resolve(flags: CommonFlags, config: &Config) -> Result<Self, CliError> {
        let name = |key, flag| {
            config.pick(key, flag, config::parsed).map(|name| name.unwrap_or_else(|| "default".to_owned()))
        };
        let read = config.pick("read", flags.read, |text| ReadName::from_str(text, false))?;
        let level = level(read.unwrap_or(ReadName::Linearizable), flags.max_age)?;
        Ok(Self { counter: name("counter", flags.counter)?, register: name("register", None)?, level })
    }

    /// The same, with what a line of the console says.
    pub(crate) fn with(&self, flags: CommonFlags) -> Result<Self, CliError> {
        let level = match (flags.read, flags.max_age, self.level) {
            (Some(read), max_age, _) => level(read, max_age)?,
            (None, None, level) => level,
            (None, max_age, ReadLevel::Stale { .. }) => ReadLevel::Stale { max_age },
            (None, max_age, _) => level(ReadName::Linearizable, max_age)?,
        };
        let counter = flags.counter.unwrap_or_else(|| self.counter.clone());
        Ok(Self { counter, register: self.register.clone(), level })
    }
}

fn level(read: ReadName, max_age: Option<Duration>) -> Result<ReadLevel, CliError> {
    match (read, max_age) {
        (ReadName::Stale, max_age) => Ok(ReadLevel::Stale { max_age }),
        (_, Some(_)) => Err(CliError::usage("--max-age is for stale reads: give --read stale with it")),
        (ReadName::Linearizable, None) => Ok(ReadLevel::Linearizable),
        (ReadName::Lease, None) => Ok(ReadLevel::Lease),
    }
}
