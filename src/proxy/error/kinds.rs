//! Types and bounds shared by all error objects.

pub(super) const INVALID: &str = "invalid_request_error";
pub(super) const SERVER: &str = "internal_server_error";

/// Maximum length of a message, in characters.
pub(super) const MAX_MESSAGE: usize = 2000;
