//! The most important targets of `cargo bench --bench shield` are reached, also with other seeds.

#[path = "../benches/figures/mod.rs"]
mod figures;

use figures::{
    rows::{Row, Span, rows},
    world::run,
};

fn row(name: &str, sends: usize) -> Row {
    let row = rows().into_iter().find(|row| row.name == name).expect("a row of the table");
    Row { span: Span::Steady(sends), ..row }
}

#[test]
fn overload_is_never_refused_and_the_light_app_reaches_its_targets() {
    for seed in 1..=3 {
        let row = row("bucket-3x-M", 1500);
        let outcome = run(&row, seed);
        let misses: Vec<_> = outcome.misses(&row.target);
        assert!(misses.is_empty(), "seed {seed}: {misses:?} missed: {outcome:?}");
    }
}

#[test]
fn without_the_shield_the_same_load_is_refused() {
    for name in ["A-3x-M", "D-3x-M"] {
        let row = row(name, 1500);
        let outcome = run(&row, 1);
        assert!(outcome.misses(&row.target).is_empty(), "{name}: the upstream is too lenient: {outcome:?}");
    }
}

#[test]
fn runs_with_the_same_seed_are_identical() {
    let row = row("foreign-M", 300);
    let [first, second, other] = [1, 1, 2].map(|seed| format!("{:?}", run(&row, seed)));
    assert_eq!(first, second);
    assert_ne!(first, other);
}
