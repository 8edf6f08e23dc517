//! Lower bound on the waits in the `bucket` rows: an ideal scheduler with exact knowledge of the limit, without network delays and
//! safety margin. Only the order of the two apps' requests is left to decide: fair, or with the light app always first.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::figures::{
    MINUTE, Ns,
    load::{Latency, Size, Sizes, gap},
};

/// Number of requests of the light app that are measured.
const REQUESTS: usize = 5000;

/// Median and 99th percentile of the light app's waits in seconds. The heavy app always has a request waiting.
pub(crate) fn light_waits(limit: u64, always_first: bool, seed: u64) -> [f64; 2] {
    let (mut random, sizes) = (Rng::with_seed(seed), Sizes::USUAL);
    let rate = 0.15 * limit as f64 / sizes.measure().0 / 60.0;
    let span = |tokens: u64| tokens * MINUTE / limit;
    // When the limit is unused again; the refunds at the ends of responses (time, amount); the waiting requests of the light app.
    let (mut full_at, mut returns, mut light) = (0, Vec::<(Ns, Ns)>::new(), VecDeque::<(Ns, Size)>::new());
    let (mut now, mut arrival, mut heavy) = (0, gap(rate, &mut random), sizes.draw(&mut random));
    // Tokens served by app. As in the shield's fair queue, an app that becomes active again starts at the other app's value.
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
