//! Hooks: what a caller is told of each sending and each reply.

use std::fmt::Debug;

/// A command on its way to one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The session.
    pub session: u64,
    /// The command's number in it.
    pub sequence: u64,
    /// The server: its name if the client has learnt it, else its address.
    pub server: String,
}

/// Is told what goes out and what comes back. Only commands with a session are told of. Every method may be left out;
/// none may take long: the request waits for it.
pub trait Hooks: Debug + Send + Sync {
    /// Before a command is sent, each time that it is.
    fn before_call(&self, _: &Call) {}

    /// After a reply, or a service's refusal, that the caller gets.
    fn after_reply(&self, _: &Call) {}

    /// After a reply that nobody waited for any more.
    fn duplicate(&self, _: &Call) {}
}
