//! Any bytes from the upstream: a whole answer or the documented object, in whatever pieces they come. `cargo fuzz run answer`

#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::answer(bytes));
