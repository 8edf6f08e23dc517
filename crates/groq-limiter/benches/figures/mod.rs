//! Whole overloads in virtual time: the limiter's core before a reference upstream, a day in a second, the same every time.
//!
//! | file | question |
//! |---|---|
//! | `upstream` | what would the limiter do: an exact one, written from its law alone |
//! | `load` | who asks for what, and when |
//! | `front` | who decides what is sent: the shield's limiter, or one of the baselines |
//! | `world` | what happens next: the queue of events |
//! | `outcome` | what came of it |
//! | `oracle` | how much of a limit on output could have been used |
//! | `rows` | which overloads, and what is to be reached |

pub(crate) mod front;
pub(crate) mod load;
pub(crate) mod oracle;
pub(crate) mod outcome;
pub(crate) mod rows;
pub(crate) mod upstream;
pub(crate) mod world;

/// Nanoseconds.
pub(crate) type Ns = u64;
pub(crate) const MS: Ns = 1_000_000;
pub(crate) const SECOND: Ns = 1000 * MS;
pub(crate) const MINUTE: Ns = 60 * SECOND;
