//! Services must give the same result on every replica, so their sources may name few things only.

use std::path::Path;

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
/// The services themselves, as `mod.rs` names them.
const SERVICES: [&str; 4] = ["chat", "counter", "exchange", "register"];
/// Primitive types with constants and functions.
const PRIMITIVES: [&str; 4] = ["i64", "u32", "u64", "char"];

/// Words that stand for something that differs between replicas, or between two runs.
const WORDS: [&str; 7] = ["HashMap", "HashSet", "RandomState", "thread_local", "f32", "f64", "unsafe"];

/// What of `crate` a service may use. Everything else there is about the network and the user.
const OURS: [&str; 10] = [
    "Context",
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

/// The paths and words of `source` that do not belong into a service.
fn violations(source: &str) -> Vec<String> {
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
                || SERVICES.contains(&root);
            let ours = root != "crate" || next.is_empty() || OURS.contains(&next);
            if !(is_type || known && ours) {
                found.push(path.to_owned());
            }
        }
    }
    found
}

#[test]
fn services_depend_on_the_trait_and_std_and_serde_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/services");
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            assert_eq!(violations(&source), [""; 0], "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 4, "{files} files in {}", dir.display());
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
        assert_ne!(violations(bad), [""; 0], "{bad}");
    }
    let good = "use std::ops::Bound; // no tokio::spawn\nuse serde::de::Deserialize;\nOption::None; i64::MAX; size_of::<u8>()";
    assert_eq!(violations(good), [""; 0]);
}
