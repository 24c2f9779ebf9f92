//! Shows what is said, as it is said.

use std::time::Duration;

use super::printer::Printer;
use crate::client::{Chat, ChatEvent};

/// Before the events are asked for again when no server has them.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Shower {
    pub(super) chat: Chat,
    pub(super) printer: Printer,
    pub(super) after: u64,
    /// This message may have been shown already.
    pub(super) repeated: Option<u64>,
}

impl Shower {
    pub(super) async fn run(self) {
        let mut events = self.chat.events(self.after);
        let mut silent = false;
        loop {
            match events.next().await {
                Ok(event) => {
                    if std::mem::take(&mut silent) {
                        self.printer.note("the servers answer again".to_owned()).await;
                    }
                    self.show(event).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut silent, true) {
                        self.printer.note(format!("no messages come: {error}; it is tried on")).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn show(&self, event: ChatEvent) {
        match event {
            ChatEvent::Message(message) => {
                let repeated = self.repeated == Some(message.number);
                self.printer.message(message, repeated).await;
            }
            ChatEvent::Account(account) if account.name == self.chat.name() && !account.exists => {
                self.printer.end("this account was deleted".to_owned());
            }
            ChatEvent::Account(_) => {}
            ChatEvent::Dropped(count) => {
                self.printer
                    .note(format!("up to {count} messages are no longer kept, and were missed"))
                    .await;
            }
        }
    }
}
