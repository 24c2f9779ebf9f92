//! Chat: an account's login, what it says, and what is said to it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Client, Error, Position, ReadLevel, Reply, Result, Watch};
use crate::services::chat::Message;

/// Messages asked for at once.
const PAGE: &str = "500";
/// Old messages asked for at once: who has them is looked up for each.
const HISTORY_PAGE: usize = 200;

/// What a login came to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ChatLogin {
    /// The account.
    pub name: String,
    /// The device.
    pub device: String,
    /// The account is new.
    pub created: bool,
    /// The device has been given the messages up to this one.
    pub delivered: u64,
    /// So many that it has not been given are no longer kept.
    pub dropped: u64,
    /// The last message there is.
    pub newest: u64,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ChatSaid {
    /// Its number.
    pub number: u64,
    /// When it was said, in logged milliseconds since 1970.
    pub time_ms: u64,
}

/// A message, and how many have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatLine {
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

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatAccount {
    /// Its name.
    pub name: String,
    /// Somebody is logged in.
    pub online: bool,
    /// False when it was just deleted.
    #[serde(default)]
    pub exists: bool,
}

#[derive(Debug, Deserialize)]
struct Inbox {
    messages: Vec<Message>,
    upto: u64,
    more: bool,
    dropped: u64,
    revision: u64,
}

#[derive(Debug, Deserialize)]
struct Lines {
    messages: Vec<ChatLine>,
    before: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Accounts {
    accounts: Vec<ChatAccount>,
    next: Option<String>,
}

/// An account that is logged in on a device. Clones are the same login.
#[derive(Debug, Clone)]
pub struct Chat {
    client: Client,
    name: String,
    device: String,
}

impl Client {
    /// Logs in to the chat; an unknown name becomes an account. The login lasts as long as this client's session.
    ///
    /// # Errors
    /// Refused with `active_elsewhere` while another session is logged in on this device of the account.
    pub async fn chat(&self, name: &str, device: &str) -> Result<(Chat, Reply<ChatLogin>)> {
        let login: Reply<ChatLogin> =
            self.command("chat", "login", &json!({"name": name, "device": device})).await?;
        let chat = Chat { client: self.clone(), name: name.to_owned(), device: device.to_owned() };
        Ok((chat, login))
    }
}

impl Chat {
    /// The account.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same login, with another time limit for what is asked through this handle.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), ..self.clone() }
    }

    /// Says something to all, or to one.
    ///
    /// # Errors
    /// Refused: an empty text, or one that is too long; nobody of that name.
    pub async fn say(&self, to: Option<&str>, text: &str) -> Result<Reply<ChatSaid>> {
        self.command("say", &json!({"to": to, "text": text})).await
    }

    /// Notes in the cluster that the device has been given, and its user has read, all up to a message.
    ///
    /// # Errors
    /// As any command.
    pub async fn mark(&self, delivered: u64, read: u64) -> Result<()> {
        self.command::<Value>("mark", &json!({"delivered": delivered, "read": read})).await.map(drop)
    }

    /// Logs out. The account stays.
    ///
    /// # Errors
    /// As any command.
    pub async fn logout(&self) -> Result<()> {
        self.client.command::<Value>("chat", "logout", &json!({})).await.map(drop)
    }

    /// Forgets a device of this account, on which nobody is logged in.
    ///
    /// # Errors
    /// Refused: no such device; somebody is logged in on it.
    pub async fn forget(&self, device: &str) -> Result<()> {
        self.command::<Value>("forget", &json!({ "device": device })).await.map(drop)
    }

    /// Deletes an account: one's own, or any with `admin`.
    ///
    /// # Errors
    /// Refused: nobody of that name; somebody else's.
    pub async fn delete(&self, name: &str, admin: bool) -> Result<()> {
        self.command::<Value>("delete", &json!({"name": name, "admin": admin})).await.map(drop)
    }

    /// The last `limit` messages that this account may see, the oldest first; with a name only those from and to it.
    ///
    /// # Errors
    /// As any query.
    pub async fn history(&self, with: Option<&str>, limit: usize) -> Result<Vec<ChatLine>> {
        let mut pages: Vec<Vec<ChatLine>> = Vec::new();
        let (mut left, mut before) = (limit, None::<u64>);
        while left > 0 {
            let page = left.min(HISTORY_PAGE).to_string();
            let end = before.map(|before| before.to_string());
            let mut params = vec![("name", self.name.as_str()), ("limit", &page)];
            params.extend(with.map(|with| ("with", with)));
            params.extend(end.as_deref().map(|end| ("before", end)));
            let lines: Reply<Lines> =
                self.client.query("chat", "history", &params, ReadLevel::Linearizable).await?;
            left -= lines.messages.len().min(left);
            before = lines.before;
            pages.push(lines.data.messages);
            if before.is_none() {
                break;
            }
        }
        Ok(pages.into_iter().rev().flatten().collect())
    }

    /// All accounts, in the order of their names.
    ///
    /// # Errors
    /// As any query.
    pub async fn accounts(&self) -> Result<Vec<ChatAccount>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let mut params = vec![("limit", "1000")];
            params.extend(after.as_deref().map(|after| ("after", after)));
            let page: Reply<Accounts> =
                self.client.query("chat", "accounts", &params, ReadLevel::Linearizable).await?;
            all.extend(page.data.accounts);
            match page.data.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// What is said to this account, behind message `after`, in order and each once, for ever; and who comes and goes.
    pub fn events(&self, after: u64) -> ChatEvents {
        ChatEvents { chat: self.clone(), after, ready: VecDeque::new(), watch: None }
    }

    /// A command of this login. When the cluster knows it no more (the session has expired meanwhile) it logs in again first;
    /// an account that was deleted is not made anew.
    async fn command<T: serde::de::DeserializeOwned>(&self, command: &str, body: &Value) -> Result<Reply<T>> {
        match self.client.command("chat", command, body).await {
            Err(error) if is_refusal(&error, "not_logged_in") => {
                self.login_again().await?;
                self.client.command("chat", command, body).await
            }
            result => result,
        }
    }

    async fn login_again(&self) -> Result<Reply<ChatLogin>> {
        let login = json!({"name": self.name, "device": self.device, "create": false});
        self.client.command("chat", "login", &login).await
    }
}

/// Whether a service has said no, in this word.
pub(crate) fn is_refusal(error: &Error, word: &str) -> bool {
    error.refused().and_then(|refused| refused.refusal.as_deref()) == Some(word)
}

/// What happens in the chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatEvent {
    /// Somebody said something.
    Message(Message),
    /// Somebody comes or goes.
    Account(ChatAccount),
    /// So many messages were dropped before they could be had.
    Dropped(u64),
}

/// What is said, from a message on. It is driven by [`ChatEvents::next`] alone.
#[derive(Debug)]
pub struct ChatEvents {
    chat: Chat,
    /// All up to this message was handed out.
    after: u64,
    ready: VecDeque<ChatEvent>,
    /// Absent while the messages behind are read from the state.
    watch: Option<Watch>,
}

impl ChatEvents {
    /// The next event, however long it takes. After an error, calling again goes on at the same place.
    ///
    /// # Errors
    /// When no server answers within the client's time limit.
    pub async fn next(&mut self) -> Result<ChatEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if let ChatEvent::Message(message) = &event {
                    self.after = message.number;
                }
                return Ok(event);
            }
            let Some(watch) = &mut self.watch else {
                self.catch_up().await?;
                continue;
            };
            match watch.next().await {
                Ok(event) if event.topic == "accounts" => {
                    self.ready.extend(serde_json::from_value(event.data).ok().map(ChatEvent::Account));
                }
                Ok(event) => {
                    let message = serde_json::from_value::<Message>(event.data).ok();
                    let new = message.filter(|message| message.number > self.after);
                    self.ready.extend(new.map(ChatEvent::Message));
                }
                // So far behind that the events are gone: the state has the messages.
                Err(error) if error.code() == Some("compacted") => self.watch = None,
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a page of what is behind; when that was the last one, watches from there.
    async fn catch_up(&mut self) -> Result<()> {
        let (name, after) = (&self.chat.name, self.after.to_string());
        let params = [("name", name.as_str()), ("after", &after), ("limit", PAGE)];
        let client = &self.chat.client;
        let inbox: Reply<Inbox> = client.query("chat", "inbox", &params, ReadLevel::Linearizable).await?;
        let Inbox { messages, upto, more, dropped, revision } = inbox.data;
        if dropped > 0 {
            self.ready.push_back(ChatEvent::Dropped(dropped));
        }
        if messages.is_empty() {
            // Others' messages lie between.
            self.after = upto;
        }
        self.ready.extend(messages.into_iter().map(ChatEvent::Message));
        if !more {
            let own = format!("@{name}");
            let topics = ["all", own.as_str(), "accounts"];
            self.watch = Some(client.watch("chat", &topics, Some(Position::after(revision))));
        }
        Ok(())
    }
}
