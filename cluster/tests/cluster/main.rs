//! Whole clusters in one process, over a network that the tests control.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

mod changes;
mod checkpoints;
mod elections;
mod log;
mod members;
mod partitions;
mod proposer;
mod reads;
mod removals;
mod scenarios;
mod snapshots;
mod syncs;
mod time;
mod witness;
