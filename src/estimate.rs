//! Token estimates by character class, with weights measured on `o200k`. A tokenizer costs megabytes and fits one model family.
//!
//! Limiters learn the ratio of their model's true counts to these estimates from `usage`.

pub mod audio;
mod family;
mod prompt;
mod text;

pub use family::Family;
pub use prompt::{Part, Prompt};
