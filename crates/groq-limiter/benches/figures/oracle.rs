//! How much of a limit on output could have been used? An oracle knows how large each answer will be and how Groq counts; its
//! requests arrive at once. It serves them in the order of arrival, each as soon as Groq would admit it, and never goes into debt
//! by answers that have not ended.

use super::{MINUTE, Ns, upstream::EXPECTED_FOR, world::Job};

/// Output tokens that it serves of `limit` a minute until `end`.
pub(crate) fn served(limit: u64, jobs: &[Job], end: Ns) -> u64 {
    let span = |tokens: u64| tokens * MINUTE / limit;
    let (mut full_at, mut free_from, mut sum) = (0, 0, 0);
    // When each answer ends, and its tokens.
    let mut answers: Vec<(Ns, u64)> = Vec::new();
    for job in jobs {
        let mut at = job.arrived.max(free_from);
        let admitted = loop {
            answers.retain(|&(ended, _)| at < ended + EXPECTED_FOR);
            let counts = answers.iter().filter(|&&(ended, _)| ended <= at);
            let expected =
                counts.map(|&(_, tokens)| tokens).max().unwrap_or(0).max(job.size.completion).min(job.size.output_limit);
            let room: Ns = Ns::saturating_sub(full_at, span(limit.saturating_sub(expected)));
            if room <= at || at > job.deadline {
                break at <= job.deadline;
            }
            // What is expected changes when an answer ends and when one is forgotten.
            let changes = answers.iter().flat_map(|&(ended, _)| [ended, ended + EXPECTED_FOR]).filter(|&change| change > at);
            at = changes.min().unwrap_or(Ns::MAX).min(room);
        };
        if admitted && at < end {
            full_at = full_at.max(at) + span(job.size.completion);
            free_from = at;
            sum += job.size.completion;
            answers.push((at + job.latency, job.size.completion));
        }
    }
    sum
}
