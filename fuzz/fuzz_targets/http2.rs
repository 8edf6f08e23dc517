//! HTTP/2 frames on a connection: whole frames, then a clean close. `cargo fuzz run http2`

#![no_main]

#[path = "../../tests/serving/any_bytes.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| any_bytes::check_frames(bytes));
