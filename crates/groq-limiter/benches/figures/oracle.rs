//! An oracle for a limit on output: it knows the size of each response and Groq's rules in advance, and has no network delay. It
//! serves requests in the order of arrival, each as soon as Groq would admit it, and never causes debt through responses that have
//! not ended.

use super::{MINUTE, Ns, upstream::EXPECTED_FOR, world::Job};

/// Output tokens that the oracle serves until `end`, under a limit of `limit` tokens per minute.
pub(crate) fn served(limit: u64, jobs: &[Job], end: Ns) -> u64 {
    let span = |tokens: u64| tokens * MINUTE / limit;
    let (mut full_at, mut free_from, mut sum) = (0, 0, 0);
    // End and tokens of each response.
    let mut responses: Vec<(Ns, u64)> = Vec::new();
    for job in jobs {
        let mut at = job.arrived.max(free_from);
        let admitted = loop {
            responses.retain(|&(ended, _)| at < ended + EXPECTED_FOR);
            let counts = responses.iter().filter(|&&(ended, _)| ended <= at);
            let expected =
                counts.map(|&(_, tokens)| tokens).max().unwrap_or(0).max(job.size.completion).min(job.size.output_limit);
            let room: Ns = Ns::saturating_sub(full_at, span(limit.saturating_sub(expected)));
            if room <= at || at > job.deadline {
                break at <= job.deadline;
            }
            // The expected output changes when a response ends and when one becomes too old to count.
            let changes = responses.iter().flat_map(|&(ended, _)| [ended, ended + EXPECTED_FOR]).filter(|&change| change > at);
            at = changes.min().unwrap_or(Ns::MAX).min(room);
        };
        if admitted && at < end {
            full_at = full_at.max(at) + span(job.size.completion);
            free_from = at;
            sum += job.size.completion;
            responses.push((at + job.latency, job.size.completion));
        }
    }
    sum
}
