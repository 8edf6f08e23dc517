//! Refusal texts, durations, waits in headers, error bodies. `cargo fuzz run refusal`

#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::refusal(bytes));
