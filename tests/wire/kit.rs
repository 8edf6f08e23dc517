//! Test kit: real processes that end with their test, and a client that checks the form of every answer.

mod client;
mod process;
mod tally;
mod tools;

pub(crate) use client::{Answer, Client};
pub(crate) use process::{Process, Shield, Simulator, binary};
pub(crate) use tally::Tally;
pub(crate) use tools::{node, python};
