//! How many seconds of audio does a file declare?

/// Seconds of audio that `file` holds, rounded up.
pub fn seconds(file: &[u8]) -> u64 {
    // The thinnest rate in use, 16 kbit/s: more seconds than a file of this size has.
    (file.len() as u64).div_ceil(2000)
}
