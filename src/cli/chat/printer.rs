//! What the chat prints, on a thread of its own: a terminal that takes nothing, or a pipe that nobody reads, holds up the
//! printing alone. A message counts as shown when it was written, not before.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::cursor::Cursor;
use super::input::Above;
use crate::cli::output::Output;
use crate::cli::shown::line;
use crate::services::chat::Message;

/// What waits to be printed, at most.
const WAITING: usize = 64;
/// So long it may take until a message comes that is known to be there.
const COMING: Duration = Duration::from_secs(5);
/// So long the end waits for what is still to be printed.
const REST: Duration = Duration::from_secs(2);

enum Out {
    Line(String),
    Note(String),
    Message { message: Message, repeated: bool },
    End(oneshot::Sender<()>),
}

/// Prints; clones print to the same place.
#[derive(Clone)]
pub(super) struct Printer {
    out: mpsc::Sender<Out>,
    shown: watch::Sender<u64>,
    /// Why the chat is to end.
    over: watch::Sender<Option<String>>,
}

impl Printer {
    /// Prints above the line that is being typed, if there is one.
    /// All up to `after` was shown.
    pub(super) fn start(above: Option<Above>, cursor: Cursor, after: u64, json: bool) -> Self {
        let (out, inbox) = mpsc::channel(WAITING);
        let shown = watch::Sender::new(after);
        let printer = Self { out, shown: shown.clone(), over: watch::Sender::new(None) };
        let mut thread = Thread { above, cursor, json, shown, unsure: None };
        let over = printer.over.clone();
        std::thread::spawn(move || {
            if let Err(error) = thread.run(inbox) {
                over.send_replace(Some(format!("nothing more can be shown: {error}")));
            }
        });
        printer
    }

    /// Up to which message all were shown.
    pub(super) fn shown(&self) -> u64 {
        *self.shown.borrow()
    }

    /// Waits until a message was shown, as long as others are on the way to it.
    pub(super) async fn until_shown(&self, number: u64) {
        let mut shown = self.shown.subscribe();
        while *shown.borrow_and_update() < number {
            if timeout(COMING, shown.changed()).await.is_err() {
                return;
            }
        }
    }

    pub(super) async fn print(&self, line: String) {
        self.send(Out::Line(line)).await;
    }

    /// A remark.
    pub(super) async fn note(&self, text: String) {
        self.send(Out::Note(text)).await;
    }

    pub(super) async fn message(&self, message: Message, repeated: bool) {
        self.send(Out::Message { message, repeated }).await;
    }

    async fn send(&self, out: Out) {
        // Once the thread has ended, the chat ends.
        let _ = self.out.send(out).await;
    }

    /// Waits until all was printed, for a while.
    pub(super) async fn finish(&self) {
        let (done, printed) = oneshot::channel();
        let _ = timeout(REST, async {
            self.send(Out::End(done)).await;
            let _ = printed.await;
        })
        .await;
    }

    /// Ends the chat.
    pub(super) fn end(&self, why: String) {
        self.over.send_replace(Some(why));
    }

    /// Why the chat is to end, once it is.
    pub(super) async fn over(&self) -> String {
        let mut over = self.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // It has the sender itself.
            Err(_) => std::future::pending().await,
        }
    }
}

struct Thread {
    above: Option<Above>,
    cursor: Cursor,
    json: bool,
    shown: watch::Sender<u64>,
    /// A message that is on the terminal, or about to be: its number, and its line.
    unsure: Option<(u64, String)>,
}

impl Thread {
    fn run(&mut self, mut inbox: mpsc::Receiver<Out>) -> io::Result<()> {
        while let Some(out) = inbox.blocking_recv() {
            match out {
                Out::Line(line) => drop(self.line(&line)?),
                Out::Note(text) => self.note(&text),
                Out::Message { message, repeated } => {
                    self.cursor.showing(message.number)?;
                    let text = match self.json {
                        true => json!({ "message": message, "repeated": repeated }).to_string(),
                        false => format!("{}{}", plain(&message), if repeated { "  (repeated)" } else { "" }),
                    };
                    if self.line(&text)? {
                        self.was_shown(message.number)?;
                    } else {
                        self.unsure = Some((message.number, text));
                    }
                }
                Out::End(done) => {
                    self.make_sure()?;
                    // Who waited may be gone.
                    let _ = done.send(());
                }
            }
        }
        Ok(())
    }

    /// Prints a line. False: it may still be on its way.
    fn line(&mut self, line: &str) -> io::Result<bool> {
        let Some(above) = &mut self.above else {
            return match Output::is_wanted(line)? {
                true => Ok(true),
                false => Err(io::Error::other("nobody reads it any more")),
            };
        };
        let is_sure = above.print(line)?;
        // What came before it was shown before it.
        if is_sure && let Some((number, _)) = self.unsure.take() {
            self.was_shown(number)?;
        }
        Ok(is_sure)
    }

    fn was_shown(&mut self, number: u64) -> io::Result<()> {
        self.cursor.shown_up_to(number)?;
        self.shown.send_replace(number);
        Ok(())
    }

    /// At the end nothing is shown with the next line any more: twice is better than not at all.
    fn make_sure(&mut self) -> io::Result<()> {
        if self.above.as_ref().is_some_and(Above::has_ended)
            && let Some((number, text)) = self.unsure.take()
        {
            Output::line(&format!("{text}  (repeated)"))?;
            self.was_shown(number)?;
        }
        Ok(())
    }

    fn note(&mut self, text: &str) {
        match &mut self.above {
            // Between what is typed and what is said.
            Some(above) => drop(above.print(&format!("quorate: {}", line(text)))),
            None => Output::note(text),
        }
    }
}

/// A message in a line.
pub(super) fn plain(message: &Message) -> String {
    let to = message.to.as_ref().map_or_else(String::new, |to| format!(" >> {to}"));
    format!("[{}] {}{to}: {}", message.number, message.from, line(&message.text))
}
