//! Where settings come from: flags, then the environment (`QUORATE_*`), then the file named by `--config`, then
//! defaults. This is the only place that reads the environment.
//!
//! A setting has one name in all three places: `--peer-listen`, `QUORATE_PEER_LISTEN`, and in the file
//!
//! ```toml
//! servers = ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]   # for every command
//! timeout = "3s"
//!
//! [server]                                                     # for `quorate server` and `quorate cluster init`
//! name = "S1"
//! data = "/var/lib/quorate"
//! peer-listen = "10.0.0.1:9001"
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_storage::span;
pub use quorate_storage::span::parse as duration;

/// The beginning of every environment variable that is read.
const PREFIX: &str = "QUORATE_";

/// The settings that a file may hold, at its top or in a table of the same name as the command.
const KEYS: &[&str] = &[
    "advertise",
    "counter",
    "data",
    "detector-heartbeat",
    "detector-timeout",
    "disk-reserve",
    "election-timeout",
    "fanout",
    "gfd",
    "heartbeat",
    "join",
    "listen",
    "log-keep",
    "log-level",
    "name",
    "peer-advertise",
    "peer-listen",
    "queue",
    "read",
    "register",
    "restart",
    "rm",
    "role",
    "servers",
    "session",
    "text-listen",
    "timeout",
];

/// The tables that a file may hold.
const SECTIONS: &[&str] =
    &["server", "client", "cluster", "chat", "exchange", "jobs", "bench", "lfd", "gfd", "rm"];

/// A setting that cannot be used, with where it was found and what is expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The file is no TOML.
    #[error("the configuration file {} is not valid TOML: {cause}", path.display())]
    NoToml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: Box<toml::de::Error>,
    },
    /// The file holds something that no command reads.
    #[error("the configuration file {} has an unknown setting `{key}`; known are: {known}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What it could be instead.
        known: String,
    },
    /// A value cannot be read.
    #[error("{origin}: {cause}")]
    Value {
        /// Where the value was found.
        origin: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A setting without a default is nowhere given.
    #[error("{key} is missing; give --{key}, {PREFIX}{}, or `{key}` in the --config file", variable(key))]
    Missing {
        /// The setting.
        key: &'static str,
    },
}

/// The environment and the file, as one command sees them.
#[derive(Debug, Default)]
pub struct Config {
    environment: BTreeMap<String, OsString>,
    file: toml::Table,
    path: PathBuf,
    section: &'static str,
}

impl Config {
    /// Reads the environment and the file, if one is named (by flag or by `QUORATE_CONFIG`). `section` is the file's
    /// table for the command.
    pub fn load(file: Option<&Path>, section: &'static str) -> Result<Self, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value)))
            .filter(|(key, value)| key.starts_with(PREFIX) && !value.is_empty())
            .collect();
        Self::from_parts(environment, file, section)
    }

    fn from_parts(
        environment: BTreeMap<String, OsString>,
        file: Option<&Path>,
        section: &'static str,
    ) -> Result<Self, ConfigError> {
        debug_assert!(SECTIONS.contains(&section));
        let path = match file {
            Some(file) => Some(file.to_owned()),
            None => environment.get("QUORATE_CONFIG").map(PathBuf::from),
        };
        let mut config = Self { environment, section, ..Self::default() };
        if let Some(path) = path {
            let text = std::fs::read_to_string(&path)
                .map_err(|cause| ConfigError::Unreadable { path: path.clone(), cause })?;
            config.file = text
                .parse()
                .map_err(|cause| ConfigError::NoToml { path: path.clone(), cause: Box::new(cause) })?;
            config.path = path;
            config.check_keys()?;
        }
        Ok(config)
    }

    /// A mistyped setting is an error, since otherwise it would silently be the default.
    fn check_keys(&self) -> Result<(), ConfigError> {
        let unknown = |key: String| {
            let known = KEYS.join(", ");
            Err(ConfigError::UnknownKey { path: self.path.clone(), key, known })
        };
        for (key, value) in &self.file {
            match value {
                toml::Value::Table(table) if SECTIONS.contains(&key.as_str()) => {
                    if let Some(inner) = table.keys().find(|inner| !KEYS.contains(&inner.as_str())) {
                        return unknown(format!("{key}.{inner}"));
                    }
                }
                _ if KEYS.contains(&key.as_str()) => {}
                _ => return unknown(key.clone()),
            }
        }
        Ok(())
    }

    /// A setting: the flag's value, else the environment's, else the file's, else none.
    pub fn pick<T>(
        &self,
        key: &'static str,
        flag: Option<T>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        debug_assert!(KEYS.contains(&key), "{key} is to be listed in KEYS");
        if flag.is_some() {
            return Ok(flag);
        }
        match self.find(key)? {
            None => Ok(None),
            Some((origin, text)) => {
                read(&text).map(Some).map_err(|cause| ConfigError::Value { origin, cause })
            }
        }
    }

    /// A setting that has no default.
    pub fn require<T>(
        &self,
        key: &'static str,
        flag: Option<T>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.pick(key, flag, read)?.ok_or(ConfigError::Missing { key })
    }

    /// A list: the flag's, or one separated by commas in the environment, or an array in the file.
    pub fn pick_list(&self, key: &'static str, flag: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let flag = if flag.is_empty() { None } else { Some(flag) };
        Ok(self.pick(key, flag, |text| Ok(split_list(text)))?.unwrap_or_default())
    }

    fn find(&self, key: &str) -> Result<Option<(String, String)>, ConfigError> {
        let name = format!("{PREFIX}{}", variable(key));
        if let Some(value) = self.environment.get(&name) {
            let text = value.to_str().ok_or_else(|| ConfigError::Value {
                origin: format!("environment variable {name}"),
                cause: "not valid UTF-8".to_owned(),
            })?;
            return Ok(Some((format!("environment variable {name}"), text.to_owned())));
        }
        let section = self.file.get(self.section).and_then(toml::Value::as_table);
        let Some(value) = section.and_then(|table| table.get(key)).or_else(|| self.file.get(key)) else {
            return Ok(None);
        };
        let origin = format!("`{key}` in {}", self.path.display());
        let text = as_text(value).ok_or_else(|| ConfigError::Value {
            origin: origin.clone(),
            cause: "expected a text, a number or a list of texts".to_owned(),
        })?;
        Ok(Some((origin, text)))
    }
}

/// Where the console keeps its history: the XDG state directory, else the home directory.
pub fn history_file() -> Option<PathBuf> {
    directory("XDG_STATE_HOME")
        .filter(|path| path.is_dir())
        .map(|path| path.join("quorate_history"))
        .or_else(|| directory("HOME").map(|path| path.join(".quorate_history")))
}

/// Where what a client has to remember is kept.
pub fn state_dir() -> Option<PathBuf> {
    directory("XDG_STATE_HOME")
        .or_else(|| directory("HOME").map(|home| home.join(".local/state")))
        .map(|path| path.join("quorate"))
}

/// Where programs are looked for.
pub(crate) fn program_dirs() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn variable(key: &str) -> String {
    key.to_uppercase().replace('-', "_")
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.join(",")),
        _ => None,
    }
}

fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Reads anything that can be parsed, with the parser's own words when it cannot.
pub fn parsed<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error| format!("`{text}` is not valid: {error}"))
}

/// A span of time in which something can happen.
///
/// # Errors
/// As [`span::parse`], and when it is none.
pub fn timeout(text: &str) -> Result<Duration, String> {
    match span::parse(text)? {
        Duration::ZERO => Err(format!("`{text}` leaves no time; expected for example 250ms, 5s or 2m")),
        timeout => Ok(timeout),
    }
}

/// Reads a number of bytes: `1048576`, `256MiB`, `1GB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let fail = || format!("`{text}` is no number of bytes; expected for example 1048576, 256MiB or 1GB");
    let (number, unit) = span::split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(fail()),
    };
    let number: u64 = number.parse().map_err(|_| fail())?;
    number.checked_mul(factor).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        pairs.iter().map(|(key, value)| (key.to_string(), OsString::from(value))).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn flags_before_environment_before_section_before_file() {
        let file = file("timeout = '1s'\nname = 'top'\n[server]\nname = 'section'\n");
        let load = |pairs| Config::from_parts(environment(pairs), Some(file.path()), "server").unwrap();
        let text = |text: &str| Ok(text.to_owned());

        let config = load(&[("QUORATE_NAME", "environment")]);
        assert_eq!(config.pick("name", Some("flag".to_owned()), text).unwrap().as_deref(), Some("flag"));
        assert_eq!(config.pick("name", None, text).unwrap().as_deref(), Some("environment"));
        let config = load(&[]);
        assert_eq!(config.pick("name", None, text).unwrap().as_deref(), Some("section"));
        assert_eq!(config.pick("timeout", None, timeout).unwrap(), Some(Duration::from_secs(1)));
        assert_eq!(config.pick("data", None, text).unwrap(), None);
        let error = config.require("data", None, text).unwrap_err().to_string();
        assert!(error.contains("--data") && error.contains("QUORATE_DATA"), "{error}");
    }

    #[test]
    fn lists_come_from_anywhere() {
        let file = file("servers = ['a:1', 'b:2']");
        let config = Config::from_parts(environment(&[]), Some(file.path()), "client").unwrap();
        assert_eq!(config.pick_list("servers", Vec::new()).unwrap(), ["a:1", "b:2"]);
        let config =
            Config::from_parts(environment(&[("QUORATE_SERVERS", "c:3, d:4,")]), None, "client").unwrap();
        assert_eq!(config.pick_list("servers", Vec::new()).unwrap(), ["c:3", "d:4"]);
        assert_eq!(config.pick_list("servers", vec!["e:5".to_owned()]).unwrap(), ["e:5"]);
    }

    #[test]
    fn mistakes_are_named() {
        let mistake = |text: &str| {
            let file = file(text);
            Config::from_parts(environment(&[]), Some(file.path()), "server").unwrap_err().to_string()
        };
        assert!(mistake("timout = '1s'").contains("`timout`"));
        assert!(mistake("[server]\nnam = 'x'").contains("`server.nam`"));
        assert!(mistake("timeout = ").contains("TOML"));
        let config = Config::from_parts(environment(&[("QUORATE_TIMEOUT", "soon")]), None, "client").unwrap();
        let error = config.pick("timeout", None, timeout).unwrap_err().to_string();
        assert!(error.contains("QUORATE_TIMEOUT") && error.contains("`soon`"), "{error}");
    }

    #[test]
    fn spans_and_sizes() {
        assert_eq!(span::parse("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(span::parse("1.5 s").unwrap(), Duration::from_millis(1500));
        assert_eq!(span::parse("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(span::parse("1d").unwrap(), Duration::from_hours(24));
        for bad in ["", "5", "s", "-1s", "1 fortnight", "1e400s"] {
            assert!(span::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes("256MiB").unwrap(), 256 << 20);
        assert_eq!(bytes("17").unwrap(), 17);
        for bad in ["", "1.5MiB", "-1", "99999999999GiB", "1 lot"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
