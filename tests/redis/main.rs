//! Replicas that share a Redis also share the limits, and continue without Redis. The tests start redis-server processes.
#![cfg(feature = "redis")]

mod budget_script;
mod budgets;
#[expect(dead_code, reason = "the kit of tests/wire, of which these tests use a part")]
#[path = "../wire/kit/client.rs"]
mod client;
mod cluster;
mod figures;
#[expect(dead_code, reason = "the histories of the limiter, of which these tests use a part")]
#[path = "../../crates/groq-limiter/tests/properties/history.rs"]
mod history;
mod kit;
mod load;
mod local_and_shared;
mod network;
mod observe;
mod outages;
#[expect(dead_code, reason = "the kit of tests/wire, of which these tests use a part")]
#[path = "../wire/kit/process.rs"]
mod process;
mod processes;
mod script;
mod secure;
mod sharing;
#[path = "../../crates/groq-limiter/tests/properties/start.rs"]
mod start;
mod world;

use client::{Answer, Client};
