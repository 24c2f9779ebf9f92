//! What the chat can be told and asked, and what it says.

use serde::{Deserialize, Serialize};

use super::query::DEFAULT_PAGE;
use super::stored::Stored;
use super::{DEFAULT_DEVICE, Listing};

/// What the chat can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Logs the session in; an unknown name becomes an account.
    Login {
        /// The account.
        name: String,
        /// One of its devices.
        #[serde(default = "default_device")]
        device: String,
        /// False: an unknown name is refused.
        #[serde(default = "yes")]
        create: bool,
    },
    /// Logs the session out.
    Logout {},
    /// Says something, to all or to one.
    Say {
        /// To whom; to all when absent.
        #[serde(default)]
        to: Option<String>,
        /// What.
        text: String,
    },
    /// The session's device has been given, and maybe its user has read, the messages up to these.
    Mark {
        /// Given.
        delivered: u64,
        /// Read.
        #[serde(default)]
        read: u64,
    },
    /// Deletes an account: one's own, or any.
    Delete {
        /// Which.
        name: String,
        /// Whosoever it is.
        #[serde(default)]
        admin: bool,
    },
    /// Sets how many messages are kept.
    Retain {
        /// At least one.
        messages: u64,
    },
    /// Forgets a device of one's own account, on which nobody is logged in.
    Forget {
        /// Which.
        device: String,
    },
}

fn default_device() -> String {
    DEFAULT_DEVICE.to_owned()
}

fn yes() -> bool {
    true
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of [`Command::Login`].
    LoggedIn {
        /// The account.
        name: String,
        /// The device.
        device: String,
        /// The account is new.
        created: bool,
        /// What the device has been given: it is to be given what follows.
        delivered: u64,
        /// So many messages that it has not been given are no longer kept.
        dropped: u64,
        /// The last message there is.
        newest: u64,
    },
    /// Of [`Command::Say`].
    Said {
        /// The message's number.
        number: u64,
        /// When, in logged milliseconds since 1970.
        time_ms: u64,
    },
    /// Of [`Command::Mark`]: the marks as they are now.
    Marked {
        /// Given.
        delivered: u64,
        /// Read.
        read: u64,
    },
    /// Of the others.
    Done,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// The messages that an account may see, from one on.
    Inbox {
        /// The account.
        name: String,
        /// Those behind this one.
        #[serde(default)]
        after: u64,
        /// At most so many, from 1 to 1,000.
        #[serde(default = "default_page")]
        limit: u32,
    },
    /// The last messages that an account may see, and who has them.
    History {
        /// The account.
        name: String,
        /// Only those from or to this one.
        #[serde(default)]
        with: Option<String>,
        /// Those before this one.
        #[serde(default)]
        before: Option<u64>,
        /// At most so many, from 1 to 200.
        #[serde(default = "default_page")]
        limit: u32,
    },
    /// Accounts, in the order of their names.
    Accounts(Listing),
}

fn default_page() -> u32 {
    DEFAULT_PAGE
}

/// A message; also its event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its number.
    pub number: u64,
    /// Who said it.
    pub from: String,
    /// To whom; to all when null.
    pub to: Option<String>,
    /// What.
    pub text: String,
    /// When, in logged milliseconds since 1970.
    pub time_ms: u64,
}

impl Message {
    pub(super) fn new(number: u64, Stored { from, to, text, time_ms }: Stored) -> Self {
        Self { number, from, to, text, time_ms }
    }

    pub(super) fn is_for(&self, name: &str) -> bool {
        self.to.as_ref().is_none_or(|to| to == name || self.from == name)
    }
}

/// A message, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MarkedMessage {
    /// The message.
    #[serde(flatten)]
    pub message: Message,
    /// So many other accounts have been given it,
    pub delivered: u64,
    /// and so many have read it,
    pub read: u64,
    /// of so many.
    pub of: u64,
}

/// An account in a list; also the event of its coming and going.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountRow {
    /// Its name.
    pub name: String,
    /// Somebody is logged in.
    pub online: bool,
    /// False in the event of its end.
    pub exists: bool,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Query::Inbox`].
    Inbox {
        /// The messages, the oldest first.
        messages: Vec<Message>,
        /// All up to this one were looked at: to be passed as `after` for what follows.
        upto: u64,
        /// Whether there may be more.
        more: bool,
        /// So many behind `after` are no longer kept.
        dropped: u64,
    },
    /// To [`Query::History`].
    History {
        /// The messages, the oldest first.
        messages: Vec<MarkedMessage>,
        /// To be passed as `before` for older ones, when there may be some.
        before: Option<u64>,
    },
    /// To [`Query::Accounts`].
    Accounts {
        /// The accounts.
        accounts: Vec<AccountRow>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
}
