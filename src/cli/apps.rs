//! The table of apps in `groq-shield status`: usage, caps and budgets.

use std::fmt::{Result, Write};

use super::table::{bar, cut, time};
use crate::admin::schema::{App, Budget, Cap, Usage};

/// Maximum characters of a name.
const NAME: usize = 30;

/// Writes a table of the apps, if there are any.
pub(super) fn write(apps: &[App], out: &mut String) -> Result {
    if apps.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<NAME$} {:>9} {:>12} {:>12} {:>12} {:>11}",
        "app, since the start", "requests", "prompt", "cached", "completion", "USD"
    )?;
    for app in apps {
        write_row(&name(&app.app), &app.usage, out)?;
        if app.models.len() > 1 {
            for of in &app.models {
                let model = if of.model.is_empty() { "no model" } else { &of.model };
                write_row(&format!("  {}", cut(model, NAME - 2)), &of.usage, out)?;
            }
        }
        app.caps.iter().try_for_each(|cap| write_cap(cap, out))?;
        if app.waiting > 0 {
            writeln!(out, "  {} wait for the caps", app.waiting)?;
        }
        app.budgets.iter().try_for_each(|budget| write_budget(budget, out))?;
        for model in &app.unpriced_models {
            writeln!(out, "  {} has no price: it does not count towards the budgets in USD", cut(model, NAME))?;
        }
    }
    Ok(())
}

fn write_row(name: &str, usage: &Usage, out: &mut String) -> Result {
    let Usage { requests, prompt_tokens, cached_tokens, completion_tokens, cost_usd } = usage;
    writeln!(
        out,
        "{name:<NAME$} {requests:>9} {prompt_tokens:>12} {cached_tokens:>12} {completion_tokens:>12} {:>11}",
        usd(*cost_usd)
    )
}

fn write_cap(cap: &Cap, out: &mut String) -> Result {
    let used = 1.0 - cap.remaining / (cap.limit.max(1) as f64);
    let back = if used > 0.0 { format!(", full in {}", time(cap.full_in_s)) } else { String::new() };
    let (code, limit, unit) = (&cap.cap, cap.limit, &cap.unit);
    writeln!(out, "  {code:<19} {} {:>3.0} %  {:.0} of {limit} {unit} left{back}", bar(used), used * 100.0, cap.remaining)
}

fn write_budget(budget: &Budget, out: &mut String) -> Result {
    let used = budget.used / budget.limit;
    let amount = |amount: f64| if budget.unit == "USD" { usd(amount) } else { format!("{amount:.0}") };
    let reserved = if budget.reserved > 0.0 { format!(", {} reserved", amount(budget.reserved)) } else { String::new() };
    writeln!(
        out,
        "  {:<19} {} {:>3.0} %  {} of {} {} left{reserved}, resets in {}",
        budget.budget,
        bar(used),
        used * 100.0,
        amount(budget.remaining),
        amount(budget.limit),
        budget.unit,
        time(budget.resets_in_s),
    )
}

/// An amount of money with at least cents, and enough digits for a single request.
fn usd(amount: f64) -> String {
    match amount {
        0.0 => "0".into(),
        ..0.000_1 => "< 0.0001".into(),
        ..1.0 => format!("{amount:.4}"),
        _ => format!("{amount:.2}"),
    }
}

fn name(app: &str) -> String {
    if app.is_empty() { "(no app)".into() } else { cut(app, NAME) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::schema::ModelUsage;

    fn usage(requests: u64, cost_usd: f64) -> Usage {
        Usage { requests, prompt_tokens: 1000 * requests, cached_tokens: 10, completion_tokens: 100 * requests, cost_usd }
    }

    fn table(apps: &[App]) -> String {
        let mut out = String::new();
        write(apps, &mut out).expect("a String takes all");
        out
    }

    #[test]
    fn no_apps_are_no_table() {
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn one_app_with_everything() {
        let model = |model: &str, requests| ModelUsage { model: model.into(), usage: usage(requests, 0.0) };
        let app = App {
            app: "chat".into(),
            usage: usage(12, 1.5),
            models: vec![model("openai/gpt-oss-20b", 11), model("", 1)],
            caps: vec![Cap { cap: "TPM".into(), unit: "tokens".into(), limit: 20_000, remaining: 5000.0, full_in_s: 45.0 }],
            waiting: 3,
            budgets: vec![Budget {
                budget: "cost_per_month".into(),
                unit: "USD".into(),
                period: "month".into(),
                limit: 2.0,
                used: 1.5,
                reserved: 0.01,
                remaining: 0.49,
                resets_in_s: 90_000.0,
            }],
            unpriced_models: vec!["m".into()],
        };
        assert_eq!(
            table(&[app]),
            "
app, since the start            requests       prompt       cached   completion         USD
chat                                  12        12000           10         1200        1.50
  openai/gpt-oss-20b                  11        11000           10         1100           0
  no model                             1         1000           10          100           0
  TPM                 ###########...  75 %  5000 of 20000 tokens left, full in 45s
  3 wait for the caps
  cost_per_month      ###########...  75 %  0.4900 of 2.00 USD left, 0.0100 reserved, resets in 1d01h
  m has no price: it does not count towards the budgets in USD
"
        );
    }

    #[test]
    fn twenty_apps_with_hostile_names_are_twenty_aligned_lines() {
        let names = ["a\n\"b\"", "<b>x</b>\u{1b}[2J", &"long".repeat(2500), "é"];
        let apps: Vec<_> =
            (0..20).map(|n| App { app: names[n % names.len()].into(), usage: usage(1, 0.00001), ..App::default() }).collect();
        let table = table(&apps);
        let lines: Vec<_> = table.lines().skip(1).collect();
        assert_eq!(lines.len(), 21, "{table}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
        assert!(!table.contains('\u{1b}') && table.contains("< 0.0001"), "{table}");
    }
}
