//! What error objects have in common.

pub(super) const INVALID: &str = "invalid_request_error";
pub(super) const SERVER: &str = "internal_server_error";

/// Nothing we say is longer than this, in characters.
pub(super) const LONGEST_MESSAGE: usize = 2000;
