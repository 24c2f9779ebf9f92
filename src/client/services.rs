//! Counters and registers, typed.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Client, ReadLevel, Reply, Result};

/// One counter. It holds a signed 64-bit number; an absent counter is 0.
#[derive(Debug, Clone)]
pub struct Counter {
    client: Client,
    name: String,
}

/// What a command on a counter came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReply {
    /// The value before.
    pub previous: i64,
    /// The value after.
    pub value: i64,
    /// The command's revision.
    pub revision: u64,
}

/// A counter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    /// The value.
    pub value: i64,
    /// The revision at which it was read.
    pub revision: u64,
}

/// A line of a list of counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRow {
    /// The counter's name.
    pub name: String,
    /// Its value.
    pub value: i64,
}

/// A list of counters, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRows {
    /// The counters.
    pub counters: Vec<CounterRow>,
    /// The name to pass as [`ListQuery::after`] for the next page, when there is one.
    #[serde(default)]
    pub next: Option<String>,
    /// The revision at which they were read.
    pub revision: u64,
}

impl Counter {
    /// Adds an amount, which may be negative. An overflow is refused.
    pub async fn add(&self, amount: i64) -> Result<Reply<CounterReply>> {
        self.send("add", json!({"name": self.name, "amount": amount})).await
    }

    /// Subtracts an amount, which may be negative. An overflow is refused.
    pub async fn minus(&self, amount: i64) -> Result<Reply<CounterReply>> {
        self.send("minus", json!({"name": self.name, "amount": amount})).await
    }

    /// Sets the value.
    pub async fn set(&self, value: i64) -> Result<Reply<CounterReply>> {
        self.send("set", json!({"name": self.name, "value": value})).await
    }

    /// Sets the value if it is `expect` now; else refused, with the current value.
    pub async fn compare_and_set(&self, expect: i64, value: i64) -> Result<Reply<CounterReply>> {
        self.send("compare_and_set", json!({"name": self.name, "expect": expect, "value": value})).await
    }

    /// Deletes the counter.
    pub async fn delete(&self) -> Result<Reply<CounterReply>> {
        self.send("delete", json!({"name": self.name})).await
    }

    /// Reads the value.
    pub async fn get(&self, level: ReadLevel) -> Result<Reply<CounterValue>> {
        self.client.query("counter", "get", &[("name", &self.name)], level).await
    }

    async fn send(&self, command: &str, body: Value) -> Result<Reply<CounterReply>> {
        self.client.command("counter", command, &body).await
    }
}

/// One register. It holds a text, or nothing.
#[derive(Debug, Clone)]
pub struct Register {
    client: Client,
    name: String,
}

/// What a command on a register came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterReply {
    /// The text before, where the command tells it.
    #[serde(default)]
    pub previous: Option<String>,
    /// The text after; nothing after a delete, or when it is longer than 4 KiB.
    #[serde(default)]
    pub text: Option<String>,
    /// The length of the text after, in bytes.
    #[serde(default)]
    pub length: Option<u64>,
    /// The command's revision.
    pub revision: u64,
}

/// A register's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterText {
    /// The text, or nothing.
    pub text: Option<String>,
    /// The revision at which it was read.
    pub revision: u64,
}

/// A line of a list of registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRow {
    /// The register's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A list of registers, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRows {
    /// The registers.
    pub registers: Vec<RegisterRow>,
    /// The name to pass as [`ListQuery::after`] for the next page, when there is one.
    #[serde(default)]
    pub next: Option<String>,
    /// The revision at which they were read.
    pub revision: u64,
}

impl Register {
    /// Sets the text.
    pub async fn set(&self, text: &str) -> Result<Reply<RegisterReply>> {
        self.send("set", json!({"name": self.name, "text": text})).await
    }

    /// Appends to the text.
    pub async fn append(&self, text: &str) -> Result<Reply<RegisterReply>> {
        self.send("append", json!({"name": self.name, "text": text})).await
    }

    /// Sets the text if it is `expect` now (nothing: if the register is absent); else refused, with the current text.
    pub async fn compare_and_set(&self, expect: Option<&str>, text: &str) -> Result<Reply<RegisterReply>> {
        self.send("compare_and_set", json!({"name": self.name, "expect": expect, "text": text})).await
    }

    /// Deletes the register.
    pub async fn delete(&self) -> Result<Reply<RegisterReply>> {
        self.send("delete", json!({"name": self.name})).await
    }

    /// Reads the text.
    pub async fn get(&self, level: ReadLevel) -> Result<Reply<RegisterText>> {
        self.client.query("register", "get", &[("name", &self.name)], level).await
    }

    async fn send(&self, command: &str, body: Value) -> Result<Reply<RegisterReply>> {
        self.client.command("register", command, &body).await
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only names that begin with this.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most so many, up to 1,000; the servers' default when absent.
    pub limit: Option<u32>,
}

impl Client {
    /// A counter by its name.
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        Counter { client: self.clone(), name: name.into() }
    }

    /// A register by its name.
    pub fn register(&self, name: impl Into<String>) -> Register {
        Register { client: self.clone(), name: name.into() }
    }

    /// Lists counters.
    pub async fn counters(&self, list: &ListQuery, level: ReadLevel) -> Result<Reply<CounterRows>> {
        self.list("counter", list, level).await
    }

    /// Lists registers.
    pub async fn registers(&self, list: &ListQuery, level: ReadLevel) -> Result<Reply<RegisterRows>> {
        self.list("register", list, level).await
    }

    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        service: &str,
        list: &ListQuery,
        level: ReadLevel,
    ) -> Result<Reply<T>> {
        let limit = list.limit.map(|limit| limit.to_string());
        let mut params = Vec::new();
        if !list.prefix.is_empty() {
            params.push(("prefix", list.prefix.as_str()));
        }
        params.extend(list.after.as_deref().map(|after| ("after", after)));
        params.extend(limit.as_deref().map(|limit| ("limit", limit)));
        self.query(service, "list", &params, level).await
    }
}
