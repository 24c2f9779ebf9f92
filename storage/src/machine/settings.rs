//! The cluster's settings: replicated, changed at run time, alike on every replica.
//!
//! They stand in rows as text, as people write them. Which there are and what they may be is decided where they are
//! applied, so it is the same on every replica of one build.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow, RangeInclusive};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checkpoints::Interval;
use crate::service::Refusal;
use crate::span;
use crate::tables::{Table, Tables, View};

const VALUES: Table<String, String> = Table::new("settings");
/// The revision of the last change.
const CHANGED: Table<(), u64> = Table::new("settings_changed");

/// How many data servers may be wanted as voters.
const TARGET_SIZES: RangeInclusive<usize> = 1..=9;
const STABILIZATIONS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

/// A setting.
struct Known {
    name: &'static str,
    default: &'static str,
    /// What is wrong with a value: how one looks.
    check: fn(&str) -> Result<(), String>,
}

const KNOWN: [Known; 5] = [
    Known { name: CHECKPOINT_INTERVAL, default: "60s", check: |value| Interval::parse(value).map(drop) },
    Known { name: MODE, default: "active", check: |value| one_of(value, &["active", PASSIVE]) },
    Known { name: RESTART, default: ALWAYS, check: |value| one_of(value, &[ALWAYS, "never"]) },
    Known { name: STABILIZATION, default: "5s", check: |value| stabilization(value).map(drop) },
    Known { name: TARGET_SIZE, default: "3", check: |value| target_size(value).map(drop) },
];

const CHECKPOINT_INTERVAL: &str = "checkpoint-interval";
const MODE: &str = "mode";
const PASSIVE: &str = "passive";
const RESTART: &str = "restart";
const STABILIZATION: &str = "stabilization";
const TARGET_SIZE: &str = "target-size";
const ALWAYS: &str = "always";

fn one_of(value: &str, words: &[&str]) -> Result<(), String> {
    if words.contains(&value) { Ok(()) } else { Err(format!("it is one of: {}", words.join(", "))) }
}

fn target_size(value: &str) -> Result<usize, String> {
    let size = value.parse().ok().filter(|size| TARGET_SIZES.contains(size));
    let (least, most) = TARGET_SIZES.into_inner();
    size.ok_or_else(|| format!("it is the number of data servers that are to vote, from {least} to {most}"))
}

fn stabilization(value: &str) -> Result<Duration, String> {
    let span = span::parse(value).ok().filter(|span| STABILIZATIONS.contains(span));
    span.ok_or_else(|| "it is a span of time from 100ms to 1h, such as 10s".to_owned())
}

/// All settings, defaults included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The revision of the last change; 0 if there was none.
    pub revision: u64,
    /// By name.
    pub values: BTreeMap<String, String>,
}

impl Settings {
    pub(super) fn read(tables: &View<'_>) -> Self {
        let values = KNOWN.iter().map(|known| (known.name.to_owned(), known.default.to_owned()));
        let mut values: BTreeMap<String, String> = values.collect();
        tables.range(&VALUES, (Bound::Unbounded, Bound::Unbounded), |name, value| {
            values.insert(name, value);
            ControlFlow::Continue(())
        });
        Self { revision: tables.get(&CHANGED, &()).unwrap_or(0), values }
    }

    /// Whether the primary alone serves clients.
    pub fn passive(&self) -> bool {
        self.parsed(MODE, |value| Ok(value == PASSIVE))
    }

    /// How many data servers are to vote.
    pub fn target_size(&self) -> usize {
        self.parsed(TARGET_SIZE, target_size)
    }

    /// For so long a server is to be dead, or steady, before the membership is changed for it.
    pub fn stabilization(&self) -> Duration {
        self.parsed(STABILIZATION, stabilization)
    }

    /// When checkpoints are set.
    pub fn checkpoint_interval(&self) -> Interval {
        self.parsed(CHECKPOINT_INTERVAL, Interval::parse)
    }

    /// Whether dead servers are to be launched again.
    pub fn relaunch(&self) -> bool {
        self.parsed(RESTART, |value| Ok(value == ALWAYS))
    }

    /// What a value says. One that came from another build, and says nothing to this one, is as if it were the default.
    fn parsed<T: Default>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let set = self.values.get(name).and_then(|value| parse(value).ok());
        let default = || KNOWN.iter().find(|known| known.name == name).map(|known| parse(known.default));
        set.or_else(|| default()?.ok()).unwrap_or_default()
    }
}

/// Sets one, at `revision`.
pub(super) fn set(
    tables: &mut Tables<'_>,
    name: String,
    value: String,
    revision: u64,
) -> Result<(), Refusal> {
    let refused = |detail: String| Refusal::new("bad_setting", detail).with_status(400);
    let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
        let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        return Err(refused(format!("no setting is called {name:?}; there are: {}", names.join(", "))));
    };
    (known.check)(&value).map_err(|expected| refused(format!("{name} cannot be {value:?}: {expected}")))?;
    if tables.get(&VALUES, &name).as_deref().unwrap_or(known.default) != value {
        tables.put(&VALUES, &name, &value);
        tables.put(&CHANGED, &(), &revision);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_values() {
        for known in &KNOWN {
            assert_eq!((known.check)(known.default), Ok(()), "{}", known.name);
        }
        let settings = Settings::default();
        assert_eq!((settings.target_size(), settings.relaunch()), (3, true));
        assert_eq!(settings.stabilization(), Duration::from_secs(5));
    }

    #[test]
    fn what_another_build_has_set_is_as_if_it_were_the_default() {
        let values = [(TARGET_SIZE, "many"), (STABILIZATION, "1.5s"), (RESTART, "never"), ("colour", "blue")];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let settings = Settings { revision: 7, values };
        assert_eq!((settings.target_size(), settings.relaunch()), (3, false));
        assert_eq!(settings.stabilization(), Duration::from_millis(1_500));
    }
}
