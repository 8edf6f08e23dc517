//! Usage of the limits, refusals, waits and fairness under overload, in virtual time. `cargo bench --bench shield` runs all
//! scenarios of docs/figures.md, including the baselines without the shield. `-- --scenario NAME --seed N` runs the scenarios whose
//! name contains NAME, `-- --without NAME` runs without a mechanism, and `-- --ablation [NAME]` compares runs with and without each
//! mechanism over five seeds. `-- --law` prints the light app's waits in the `bucket` rows if only Groq's limit delays requests.

use std::process::ExitCode;

#[path = "figures/ablation.rs"]
mod ablation;
mod figures;
#[path = "figures/law.rs"]
mod law;

use groq_limiter::ablation::Mechanism;

use figures::{
    outcome::Outcome,
    rows::{self, Row, Target, rows},
    world::run,
};

const SEED: u64 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).cloned();
    if arguments.iter().any(|argument| argument == "--law") {
        for (name, (_, limit)) in [("S", rows::S), ("M", rows::M), ("X", rows::X)] {
            for (order, always_first) in [("in turn", false), ("light app always first", true)] {
                let waits = [1, 2, 3, 4, 5].map(|seed| law::light_waits(limit, always_first, seed));
                let each = waits.map(|[median, most]| format!("{median:.2} / {most:.1}"));
                println!("{name}, {order}: light app's wait p50 / p99, seeds 1 to 5, s: {}", each.join(", "));
            }
        }
        return ExitCode::SUCCESS;
    }
    let scenario = value("--scenario");
    let seed = match value("--seed").map_or(Ok(SEED), |text| text.parse()) {
        Ok(seed) => seed,
        Err(error) => {
            eprintln!("--seed: {error}");
            return ExitCode::FAILURE;
        }
    };
    let rows: Vec<Row> =
        rows().into_iter().filter(|row| scenario.as_ref().is_none_or(|name| row.name.contains(name.as_str()))).collect();
    if rows.is_empty() {
        eprintln!("no scenario's name contains {}", scenario.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    let mechanisms: Vec<_> = ["--without", "--ablation"].iter().filter_map(|flag| value(flag)).collect();
    let known = |name: &String| Mechanism::ALL.into_iter().find(|(known, _)| known == name);
    let named: Vec<_> = mechanisms.iter().filter_map(known).collect();
    if let Some(unknown) = mechanisms.iter().find(|name| !name.starts_with("--") && known(name).is_none()) {
        eprintln!("unknown mechanism {unknown}: {}", Mechanism::ALL.map(|(name, _)| name).join(", "));
        return ExitCode::FAILURE;
    }
    if arguments.iter().any(|argument| argument == "--ablation") {
        ablation::print(if named.is_empty() { &Mechanism::ALL } else { &named }, &rows);
        return ExitCode::SUCCESS;
    }
    groq_limiter::ablation::without(&named.iter().map(|&(_, mechanism)| mechanism).collect::<Vec<_>>());
    println!(
        "seed {seed}; used: own + external; waits in seconds; watched: the light app, or the one that the row is named after\n"
    );
    println!(
        "| scenario | used % | 429 ‰ (of sends) | failed % | wait p50 / p99 | Jain | watched p50 / p99 / failed % | target | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for row in &rows {
        println!("{}", table_row(row, &run(row, seed)));
        if row.name.starts_with("two-replicas") {
            println!("| two-replicas-redis-M | – | – | – | – | – | – | used ≥ 99, ≤ 0 ‰, Jain ≥ 0.99 | not in virtual time |");
        }
    }
    ExitCode::SUCCESS
}

/// The row of the table.
fn table_row(row: &Row, outcome: &Outcome) -> String {
    let Outcome { own, external, possible, counted, sends, all, watched, jain, stretch, .. } = outcome;
    let mut used =
        if *external > 0.0 { format!("{:.1} + {:.1}", 100.0 * own, 100.0 * external) } else { format!("{:.1}", 100.0 * own) };
    if row.target.counted.is_some() {
        used += &format!(" (limiter {:.1})", 100.0 * counted);
    }
    if row.target.of_possible.is_some() {
        used += &format!(" (oracle {:.1})", 100.0 * possible);
    }
    if row.target.stretch.is_some() {
        used = format!("time × {stretch:.3}");
    }
    let misses = outcome.misses(&row.target);
    let verdict = if misses.is_empty() { "PASS".to_owned() } else { format!("miss: {}", misses.join(", ")) };
    format!(
        "| {} | {used} | {:.1} ({sends}) | {:.1} | {:.2} / {:.2} | {jain:.3} | {:.2} / {:.2} / {:.1} | {} | {verdict} |",
        row.name,
        outcome.per_thousand(),
        100.0 * all.failed,
        all.p50,
        all.p99,
        watched.p50,
        watched.p99,
        100.0 * watched.failed,
        target_text(&row.target),
    )
}

/// The targets, as text.
fn target_text(target: &Target) -> String {
    let percent = |name: &str, share: Option<f64>| {
        share.map(|share| format!("{name} {:.4}", 100.0 * share).trim_end_matches('0').trim_end_matches('.').to_owned())
    };
    let plain = |name: &str, bound: Option<f64>| bound.filter(|&bound| bound < f64::MAX).map(|bound| format!("{name} {bound}"));
    let watched = target.watched;
    [
        percent("used ≥", target.used),
        percent("limiter ≥", target.counted),
        percent("of the oracle's ≥", target.of_possible),
        percent("used ≤", target.used_at_most),
        plain("≤", target.per_thousand).map(|text| text + " ‰"),
        plain("≥", target.per_thousand_at_least).map(|text| text + " ‰"),
        plain("429s ≤", target.refusals),
        percent("failed ≤", target.failed),
        plain("p99 ≤", target.p99),
        plain("Jain ≥", target.jain),
        plain("watched p50 ≤", watched.map(|w| w.p50)),
        plain("p99 ≤", watched.map(|w| w.p99)),
        percent("failed ≤", watched.map(|w| w.failed)),
        plain("time ×", target.stretch),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}
