//! What does Groq's law alone allow? The two apps of a `bucket` row, no network, no margin, and everything known: only the order in
//! which requests are sent is left. So long does the light app wait where the two take turns, and where it always goes first.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::figures::{
    MINUTE, Ns,
    load::{Latency, Size, Sizes, gap},
};

/// Requests of the light app that are measured.
const REQUESTS: usize = 5000;

/// The median and the 99th percentile of the light app's waits, seconds. The heavy one always has more.
pub(crate) fn light_waits(limit: u64, always_first: bool, seed: u64) -> [f64; 2] {
    let (mut random, sizes) = (Rng::with_seed(seed), Sizes::USUAL);
    let rate = 0.15 * limit as f64 / sizes.measure().0 / 60.0;
    let span = |tokens: u64| tokens * MINUTE / limit;
    // When the limit is full again, what comes back when answers end, and which requests wait.
    let (mut full_at, mut returns, mut light) = (0, Vec::<(Ns, Ns)>::new(), VecDeque::<(Ns, Size)>::new());
    let (mut now, mut arrival, mut heavy) = (0, gap(rate, &mut random), sizes.draw(&mut random));
    // What each has been served, as the shield counts it: one that comes back starts where the other is.
    let (mut served, mut waits) = ([0, 0], Vec::with_capacity(REQUESTS));
    while waits.len() < REQUESTS {
        let turn = light.front().filter(|_| always_first || served[0] <= served[1]);
        let size = turn.map_or(heavy, |&(_, size)| size);
        let room = Ns::saturating_sub(full_at, span(limit - size.prompt - size.output_limit)).max(now);
        let returned = returns.iter().min().copied();
        let next = returned.map_or(arrival, |(at, _)| at.min(arrival));
        if room <= next {
            now = room;
            full_at = full_at.max(now) + span(size.prompt + size.output_limit);
            returns.push((now + Latency::USUAL.draw(&mut random), span(size.output_limit - size.completion)));
            match turn.copied() {
                Some((since, _)) => {
                    light.pop_front();
                    served[0] += size.used();
                    waits.push((now - since) as f64 / 1e9);
                }
                None => (served[1], heavy) = (served[1] + size.used(), sizes.draw(&mut random)),
            }
        } else if next == arrival {
            now = next;
            if light.is_empty() {
                served[0] = served[0].max(served[1]);
            }
            light.push_back((now, sizes.draw(&mut random)));
            arrival = now + gap(rate, &mut random);
        } else if let Some(returned) = returned {
            now = next;
            full_at = Ns::saturating_sub(full_at, returned.1);
            returns.retain(|other| *other != returned);
        }
    }
    waits.sort_by(f64::total_cmp);
    [waits[REQUESTS / 2], waits[REQUESTS * 99 / 100]]
}
