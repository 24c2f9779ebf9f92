//! The services that come with every build.
//!
//! Files here depend on the [`Service`](crate::Service) trait, `std` and `serde` alone, and on nothing that
//! could differ between replicas: a test reads their sources.

pub mod chat;
pub mod counter;
pub mod exchange;
pub mod jobs;
pub mod register;

mod blocks;
mod names;

#[cfg(test)]
mod tests;

pub use self::names::Listing;

use crate::Registry;

/// The one list of services. A user's own are added to it: `services::registry().with(Tickets)`.
pub fn registry() -> Registry {
    Registry::new()
        .with(counter::Counter)
        .with(register::Register)
        .with(exchange::Exchange)
        .with(chat::Chat)
        .with(jobs::Jobs)
}
