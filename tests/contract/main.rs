//! The contract's failure table over real sockets, and its promises under overload.

mod answers;
#[path = "../../fuzz/checks.rs"]
mod checks;
mod client;
mod corpus;
mod groq;
mod kit;
mod ours;
mod overload;
mod promises;
mod retries;
mod streams;
mod table;
