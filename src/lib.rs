//! Quorate: replicated state machines that people can simply run.
//!
//! A service is a deterministic [`Service`]; a server runs the services of a [`Registry`] on three or more
//! machines as if they were one that does not fail. [`client`] talks to them.

pub mod cli;
pub mod client;
pub mod config;
pub mod detectors;
mod hooks;
mod http;
pub mod manager;
pub mod server;
pub mod services;
mod text_port;
pub mod transcript;

pub use quorate_storage::delta::Millis;
pub use quorate_storage::service::{Context, QueryContext, Refusal, Registry, Service};
pub use quorate_storage::tables::{Key, Readable, Table, Tables, View};
