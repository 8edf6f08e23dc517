//! CONTRACT: every failure over real sockets, as its table has it; what is promised when everything fails at once.

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
mod streams;
mod table;
