//! Any bytes on a connection: documented answers, then a clean close. `cargo fuzz run connection`

#![no_main]

#[path = "../../tests/serving/any_bytes.rs"]
#[expect(dead_code, reason = "the target `http2` runs the other one")]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| any_bytes::check(bytes));
