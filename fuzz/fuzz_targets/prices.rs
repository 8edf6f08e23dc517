//! Prices of a model, and the costs by them. `cargo fuzz run prices`

#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::prices(bytes));
