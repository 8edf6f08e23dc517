//! The dimensions of rate limits: what each counts, its window and its names in Groq's responses.

pub(crate) const SECOND: u64 = 1_000_000_000;

/// One dimension of rate limiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dimension {
    Rpm,
    Rpd,
    Tpm,
    Tpd,
    Itpm,
    Otpm,
    Asph,
    Aspd,
}

/// What a dimension counts. Determines the `type` of its refusals and the rate-limit headers of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Requests,
    Tokens,
    Seconds,
}

impl Dimension {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Rpm => "RPM",
            Self::Rpd => "RPD",
            Self::Tpm => "TPM",
            Self::Tpd => "TPD",
            Self::Itpm => "ITPM",
            Self::Otpm => "OTPM",
            Self::Asph => "ASPH",
            Self::Aspd => "ASPD",
        }
    }

    /// The name in a refusal's message.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Rpm => "requests per minute (RPM)",
            Self::Rpd => "requests per day (RPD)",
            Self::Tpm => "tokens per minute (TPM)",
            Self::Tpd => "tokens per day (TPD)",
            Self::Itpm => "input tokens per minute (ITPM)",
            Self::Otpm => "output tokens per minute (OTPM)",
            Self::Asph => "seconds of audio per hour (ASPH)",
            Self::Aspd => "seconds of audio per day (ASPD)",
        }
    }

    pub(crate) const fn unit(self) -> Unit {
        match self {
            Self::Rpm | Self::Rpd => Unit::Requests,
            Self::Tpm | Self::Tpd | Self::Itpm | Self::Otpm => Unit::Tokens,
            Self::Asph | Self::Aspd => Unit::Seconds,
        }
    }

    /// The window in nanoseconds.
    pub(crate) const fn window(self) -> u64 {
        match self {
            Self::Rpm | Self::Tpm | Self::Itpm | Self::Otpm => 60 * SECOND,
            Self::Asph => 3600 * SECOND,
            Self::Rpd | Self::Tpd | Self::Aspd => 86_400 * SECOND,
        }
    }

    /// The names of the limit, remaining and reset headers on a response to a request that is counted in `unit`. RPM, TPD, ITPM,
    /// OTPM and ASPD have none.
    pub(crate) const fn header_names(self, unit: Unit) -> Option<[&'static str; 3]> {
        match (self, unit) {
            (Self::Rpd, _) => {
                Some(["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"])
            }
            (Self::Tpm, Unit::Tokens) => {
                Some(["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"])
            }
            (Self::Asph, Unit::Seconds) => Some([
                "x-ratelimit-limit-audio-seconds",
                "x-ratelimit-remaining-audio-seconds",
                "x-ratelimit-reset-audio-seconds",
            ]),
            _ => None,
        }
    }
}

impl Unit {
    /// The `type` of a refusal.
    pub(crate) const fn error_type(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Seconds => "seconds",
        }
    }
}
