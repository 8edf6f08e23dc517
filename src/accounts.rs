//! What apps have used in the running UTC day and month, and their budgets.
//!
//! A request reserves what it is expected to use before it is sent, and settles with what it has used. It is refused when what
//! its app has used and reserved has reached a budget; so a budget is overrun by what was in flight at most.

mod account;
mod budget;
mod calendar;
mod count;
pub mod file;
mod ledger;
mod price;
mod protocol;
mod sharing;

pub use account::AppUse;
pub use budget::{Amounts, Budget, Exceeded, Unit};
pub use calendar::Period;
pub use ledger::{Ledger, Permit, Saved};
pub use price::{Price, TokenPrice};
pub use protocol::SCRIPT;
pub use sharing::SharedLedger;
