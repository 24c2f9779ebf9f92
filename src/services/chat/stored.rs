//! What is stored of accounts and messages. By position: append fields only.

use serde::{Deserialize, Serialize};

use super::super::blocks::Blocks;
use super::DEFAULT_RETENTION;
use crate::{Readable, Table};

pub(super) const ACCOUNTS: Table<String, Account> = Table::new("accounts");
pub(super) const DEVICES: Table<(String, String), Device> = Table::new("devices");
/// Who is logged in through a session.
pub(super) const LOGINS: Table<u64, (String, String)> = Table::new("logins");
/// A message stands under its number less one.
pub(super) const MESSAGES: Blocks<Stored> = Blocks::new("message_blocks");
pub(super) const STATE: Table<(), State> = Table::new("state");

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// The last message before it was made.
    pub(super) since: u64,
    pub(super) created_ms: u64,
    pub(super) devices: u32,
    pub(super) online: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    /// The account's.
    pub(super) since: u64,
    /// The session that it is logged in through; 0: none.
    pub(super) session: u64,
    /// It has been given the messages up to this one.
    pub(super) delivered: u64,
    /// And somebody has read them up to this one.
    pub(super) read: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) from: String,
    pub(super) to: Option<String>,
    pub(super) text: String,
    pub(super) time_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The last message.
    pub(super) newest: u64,
    /// The first that is kept, or the next one.
    pub(super) oldest: u64,
    pub(super) retention: u64,
    pub(super) accounts: u64,
}

impl State {
    pub(super) fn of(view: &impl Readable) -> Self {
        let first = Self { newest: 0, oldest: 1, retention: DEFAULT_RETENTION, accounts: 0 };
        view.get(&STATE, &()).unwrap_or(first)
    }

    pub(super) fn kept(self) -> u64 {
        self.newest + 1 - self.oldest
    }
}
