//! Figures over sockets that need the machine for themselves: a target of its own, since cargo runs one target after another.

mod caps;
#[expect(dead_code, reason = "the kit of tests/wire, of which these tests need a part")]
#[path = "../wire/kit/client.rs"]
mod client;
mod delay;
#[expect(dead_code, reason = "the kit of tests/wire, of which these tests need a part")]
#[path = "../wire/kit/process.rs"]
mod process;

use client::{Answer, Client};
