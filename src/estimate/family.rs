//! Families of models, by the chat template that they share.

/// Models that share a chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `openai/gpt-oss-…`
    GptOss,
    /// `llama-…`
    Llama,
    /// `qwen/…`
    Qwen,
    /// Unknown.
    Unknown,
    /// No template: embeddings.
    None,
}

impl Family {
    /// The family by a model's name.
    pub fn of(model: &str) -> Self {
        let has = |name: &str| model.as_bytes().windows(name.len()).any(|part| part.eq_ignore_ascii_case(name.as_bytes()));
        let families = [("gpt-oss", Self::GptOss), ("llama", Self::Llama), ("qwen", Self::Qwen)];
        families.into_iter().find_map(|(name, family)| has(name).then_some(family)).unwrap_or(Self::Unknown)
    }

    /// Tokens of the template around one user message.
    pub(super) fn template(self) -> u64 {
        match self {
            Self::GptOss => 71,
            Self::Llama | Self::Unknown => 35,
            Self::Qwen => 10,
            Self::None => 0,
        }
    }
}
