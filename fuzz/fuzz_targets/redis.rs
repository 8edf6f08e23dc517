//! A reply of Redis, and a limiter that takes it. `cargo fuzz run redis`

#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::redis_reply(bytes));
