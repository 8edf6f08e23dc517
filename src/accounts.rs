//! Budgets of apps, and what each app has used in the running UTC day and month.
//!
//! A request reserves its expected usage before it is sent, and settles with its actual usage. It is refused once the used and
//! reserved amounts of its app have reached a budget, so a budget is exceeded by at most what was in flight.

mod account;
mod budget;
mod calendar;
mod count;
mod earlier;
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
