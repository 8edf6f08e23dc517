//! The effect of each mechanism: every row with and without it, over several seeds.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use groq_limiter::ablation::{Mechanism, without};

use crate::figures::{
    outcome::Outcome,
    rows::{Kind, Row},
    world::run,
};

/// Number of seeds with which every row is run.
const SEEDS: u64 = 5;

/// The figures that are compared: name, value, and the minimum difference that is reported.
fn figures(outcome: &Outcome) -> [(&'static str, f64, f64); 7] {
    [
        ("used %", 100.0 * (outcome.own + outcome.external), 0.2),
        ("429 ‰", outcome.per_thousand(), 0.2),
        ("failed %", 100.0 * outcome.all.failed, 0.5),
        ("p99 s", outcome.all.p99, 0.5),
        ("watched p99 s", outcome.watched.p99, 0.3),
        ("watched failed %", 100.0 * outcome.watched.failed, 0.5),
        ("time ×", outcome.stretch, 0.005),
    ]
}

/// Prints, for each mechanism, the figures that change without it by more than twice the standard deviation over the seeds.
pub(crate) fn print(mechanisms: &[(&'static str, Mechanism)], rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.front == Kind::Shield).collect();
    println!("| without | row | figure | with | without |\n|---|---|---|---|---|");
    without(&[]);
    let with = measure(&rows);
    for &(name, mechanism) in mechanisms {
        without(&[mechanism]);
        let ablated = measure(&rows);
        let mut changed = 0;
        for ((row, with), ablated) in rows.iter().zip(&with).zip(&ablated) {
            for (figure, &(what, _, least)) in figures(&with[0]).iter().enumerate() {
                let (before, spread) = mean(with.iter().map(|outcome| figures(outcome)[figure].1));
                let (after, after_spread) = mean(ablated.iter().map(|outcome| figures(outcome)[figure].1));
                if (after - before).abs() > least.max(2.0 * spread.max(after_spread)) {
                    println!("| {name} | {} | {what} | {before:.2} | {after:.2} |", row.name);
                    changed += 1;
                }
            }
        }
        if changed == 0 {
            println!("| {name} | none | | | |");
        }
    }
    without(&[]);
}

/// The outcomes of every row, one per seed.
fn measure(rows: &[&Row]) -> Vec<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Vec<Outcome>>> = rows.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(row) = rows.get(at) else { break };
                    let all = (1..=SEEDS).map(|seed| run(row, seed)).collect();
                    *outcomes[at].lock().unwrap_or_else(PoisonError::into_inner) = all;
                }
            });
        }
    });
    outcomes.into_iter().map(|outcomes| outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// Mean and standard deviation.
fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, variance.sqrt())
}
