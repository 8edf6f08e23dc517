//! State of a response until its body ends: settles its usage, and logs its access line.

use groq_limiter::{ActualUsage, Permit};
use tokio::time::Instant;

use crate::{groq::Usage, proxy::bill::Bill, shutdown::Cutoff, telemetry::Record};

/// State of a response until its body ends.
pub struct ResponseContext {
    /// Settled when the usage is known.
    pub permit: Option<Permit>,
    /// The usage of the call so far.
    pub bill: Bill,
    /// Logged on drop.
    pub record: Box<Record>,
    /// Ends a running stream when the drain timeout is over.
    pub cutoff: Cutoff,
    /// Whether the usage has been settled.
    pub settled: bool,
}

impl ResponseContext {
    /// Settles once, with the usage of the response.
    pub(super) fn settle(&mut self, spent: ActualUsage) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.bill.charge(spent);
        self.record.usage = self.bill.usage();
        self.record.nano_usd = self.bill.nano_usd();
        if let Some(permit) = self.permit.take() {
            permit.settle(spent, Instant::now());
        }
    }

    pub(super) fn settle_usage(&mut self, usage: Option<Usage>) {
        self.settle(usage.map_or(ActualUsage::Unknown, spent));
    }
}

/// Usage as Groq's limits count it, without cached prompt tokens.
fn spent(usage: Usage) -> ActualUsage {
    let Usage { prompt, completion, cached } = usage;
    ActualUsage::Tokens { prompt: prompt.saturating_sub(cached), completion, prompt_total: prompt }
}
