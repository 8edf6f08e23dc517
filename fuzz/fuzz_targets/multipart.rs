//! Forms, and the same bytes as JSON calls. `cargo fuzz run multipart`

#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::multipart(bytes));
