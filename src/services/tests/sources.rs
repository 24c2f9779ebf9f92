//! Services must give the same result on every replica, so their sources may name few things only.

use std::path::{Path, PathBuf};

/// What a path may begin with.
const ROOTS: [&str; 10] = [
    "std::ops",
    "std::cmp",
    "std::collections",
    "std::fmt",
    "serde",
    "crate",
    "self",
    "super",
    "names",
    "str",
];
/// Primitive types with constants and functions.
const PRIMITIVES: [&str; 6] = ["i64", "u8", "u32", "u64", "usize", "char"];

/// Words that stand for something that differs between replicas, or between two runs.
const WORDS: [&str; 7] = ["HashMap", "HashSet", "RandomState", "thread_local", "f32", "f64", "unsafe"];

/// What of `crate` a service may use. Everything else there is about the network and the user.
const OURS: [&str; 11] = [
    "Context",
    "Key",
    "QueryContext",
    "Readable",
    "Refusal",
    "Registry",
    "Service",
    "Table",
    "Tables",
    "View",
    "services",
];

/// The paths and words of `source` that do not belong into a service; it may name the services' own `modules`.
fn violations(source: &str, modules: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for line in source.lines() {
        // Neither comments nor `::<` are paths.
        let line = line.split("//").next().unwrap_or_default().replace("::<", "<");
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        found.extend(line.split(|c| !is_word(c)).filter(|word| WORDS.contains(word)).map(str::to_owned));
        for path in line.split(|c: char| !is_word(c) && c != ':') {
            let Some((root, rest)) = path.split_once("::") else {
                continue;
            };
            // `Bound::Excluded`, `i64::MAX`: types, not modules.
            let is_type = root.chars().next().is_some_and(char::is_uppercase) || PRIMITIVES.contains(&root);
            let next = rest.split("::").next().unwrap_or_default();
            let known = ROOTS.iter().any(|known| *known == root || *known == format!("{root}::{next}"))
                || modules.contains(&root);
            let ours = root != "crate" || next.is_empty() || OURS.contains(&next);
            if !(is_type || known && ours) {
                found.push(path.to_owned());
            }
        }
    }
    found
}

/// The files of the services, in whatever directory; what they are tested with is not theirs.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn services_depend_on_the_trait_and_std_and_serde_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/services");
    let files = sources(&dir);
    let modules: Vec<&str> = files
        .iter()
        .filter_map(|path| path.file_stem()?.to_str())
        .chain(["chat", "exchange", "jobs"])
        .collect();
    for path in &files {
        let source = std::fs::read_to_string(path).unwrap();
        let service = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        assert_eq!(violations(service, &modules), [""; 0], "{}", path.display());
    }
    assert!(files.len() >= 10, "{files:?}");
}

#[test]
fn the_check_finds_what_it_is_for() {
    for bad in [
        "use tokio::sync::Mutex;",
        "let tree = sled::open(path);",
        "use openraft::Raft;",
        "let now = std::time::SystemTime::now();",
        "use std::{fs, net};",
        "std::env::var(\"X\")",
        "let id: u64 = rand::random();",
        "use std::collections::HashMap;",
        "let share: f64 = 0.5;",
        "use crate::client::Client;",
        "use ::std::thread;",
        "quorate_storage::machine::Machine",
    ] {
        assert_ne!(violations(bad, &[]), [""; 0], "{bad}");
    }
    let good = "use std::ops::Bound; // no tokio::spawn\nuse serde::de::Deserialize;\nOption::None; i64::MAX; size_of::<u8>()";
    assert_eq!(violations(good, &[]), [""; 0]);
}
