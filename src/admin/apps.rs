//! What apps have used, their caps and their budgets, for `/status` and the metrics.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use groq_limiter::LimiterSnapshot;

use super::{
    numbers::{rounded, seconds},
    schema::{App, Budget, Cap, ModelUsage, Usage},
};
use crate::{
    accounts::{self, AppUse, Unit},
    config,
    proxy::Shield,
    telemetry::AppUsage,
};

/// Maximum number of apps without an entry that are listed only for their budgets; clients can create any number.
const LISTED: usize = 100;
/// Maximum number of models listed for each app; the others are summed up.
const MODELS: usize = 10;
/// The name of the sum of unlisted models.
const OTHER: &str = "other";

/// The budgets of apps that have an entry or have used some of a budget, by name.
pub(super) fn budgets(shield: &Shield) -> Vec<(Arc<str>, accounts::Budget, AppUse)> {
    let identities = shield.identities.load();
    let mut apps: BTreeMap<Arc<str>, AppUse> = shield.accounts.ledger().list(now()).into_iter().collect();
    for app in shield.settings.load().named_apps() {
        apps.entry(app.into()).or_default();
    }
    let of_app = |(app, usage): (Arc<str>, AppUse)| {
        let budgets = identities.budgets_of(&app).to_vec();
        budgets.into_iter().map(move |budget| (app.clone(), budget, usage))
    };
    apps.into_iter().flat_map(of_app).collect()
}

/// The apps, highest usage first.
pub(super) fn list(shield: &Shield) -> Vec<App> {
    let mut apps: BTreeMap<Arc<str>, App> = BTreeMap::new();
    for ((app, model), used) in shield.telemetry.usage() {
        let app = apps.entry(app).or_insert_with_key(named);
        app.usage.add(&used.into());
        app.models.push(ModelUsage { model, usage: used.into() });
    }
    for name in shield.settings.load().named_apps() {
        apps.entry(name.into()).or_insert_with_key(named);
    }
    add_budgets(shield, &mut apps);
    add_caps(shield, &mut apps);
    let mut apps: Vec<_> = apps.into_values().collect();
    for app in &mut apps {
        app.unpriced_models = shield.telemetry.unpriced_of(&app.app);
        app.models.sort_by_key(|of| (Reverse(of.usage.rank()), of.model.clone()));
        if app.models.len() > MODELS {
            let mut rest = ModelUsage { model: OTHER.into(), usage: Usage::default() };
            app.models.drain(MODELS - 1..).for_each(|of| rest.usage.add(&of.usage));
            app.models.push(rest);
        }
    }
    apps.sort_by_key(|app| (&*app.app == OTHER, Reverse(app.usage.rank()), app.app.clone()));
    apps
}

fn named(app: &Arc<str>) -> App {
    App { app: app.clone(), ..App::default() }
}

/// Adds the budgets of the listed apps, and lists further apps that have used most of theirs, up to [`LISTED`].
fn add_budgets(shield: &Shield, apps: &mut BTreeMap<Arc<str>, App>) {
    let budgets = budgets(shield);
    let share = |(_, budget, usage): &(_, accounts::Budget, AppUse)| {
        usage.used(budget.period).of(budget.unit) as f64 / budget.limit.max(1) as f64
    };
    let mut fullest: Vec<_> = budgets.iter().filter(|(app, ..)| !apps.contains_key(app)).collect();
    fullest.sort_by(|one, other| share(other).total_cmp(&share(one)));
    let mut more = BTreeSet::new();
    for (app, ..) in fullest {
        if more.len() + apps.len() < LISTED {
            more.insert(app.clone());
        }
    }
    for app in more {
        apps.entry(app).or_insert_with_key(named);
    }
    for (app, budget, usage) in budgets {
        if let Some(app) = apps.get_mut(&app) {
            app.budgets.push(budget_of(budget, usage));
        }
    }
}

fn budget_of(budget: accounts::Budget, usage: AppUse) -> Budget {
    let in_unit = |amount: u64| match budget.unit {
        Unit::Cost => usd(amount),
        Unit::Requests | Unit::Tokens => amount as f64,
    };
    let used = usage.used(budget.period).of(budget.unit);
    let reserved = usage.reserved.of(budget.unit);
    Budget {
        budget: budget.key().into(),
        unit: match budget.unit {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::Cost => "USD",
        }
        .into(),
        period: budget.period.as_str().into(),
        limit: in_unit(budget.limit),
        used: in_unit(used),
        reserved: in_unit(reserved),
        remaining: in_unit(budget.limit.saturating_sub(used).saturating_sub(reserved)),
        resets_in_s: seconds(budget.period.time_left(now())),
    }
}

/// Adds the caps of the listed apps. A cap without a limiter is unused, so its full limit remains.
fn add_caps(shield: &Shield, apps: &mut BTreeMap<Arc<str>, App>) {
    let settings = shield.settings.load();
    let limiters: BTreeMap<_, _> = shield.caps.snapshot().into_iter().map(|limiter| (limiter.model.clone(), limiter)).collect();
    let everyone_else = settings.app.iter().find(|app| app.name == config::App::EVERYONE_ELSE);
    for app in apps.values_mut().filter(|app| &*app.app != OTHER) {
        let Some(policy) = settings.app.iter().find(|policy| policy.name == *app.app).or(everyone_else) else { continue };
        let limiter = limiters.get(&app.app);
        let caps = [("RPM", "requests", policy.requests_per_minute), ("TPM", "tokens", policy.tokens_per_minute)];
        app.caps = caps.into_iter().filter_map(|(code, unit, limit)| Some(cap_of(code, unit, limit?, limiter))).collect();
        app.waiting = limiter.map_or(0, |limiter| limiter.waiting.iter().map(|waiting| waiting.count).sum());
    }
}

fn cap_of(code: &'static str, unit: &'static str, limit: u64, limiter: Option<&LimiterSnapshot>) -> Cap {
    let quota = limiter.and_then(|limiter| limiter.dimensions.iter().find(|quota| quota.dimension.code == code));
    Cap {
        cap: code.into(),
        unit: unit.into(),
        limit,
        remaining: quota.map_or(limit as f64, |quota| rounded(quota.remaining)),
        full_in_s: quota.map_or(0.0, |quota| seconds(quota.full_in)),
    }
}

impl From<AppUsage> for Usage {
    fn from(used: AppUsage) -> Self {
        Self {
            requests: used.requests,
            prompt_tokens: used.prompt,
            cached_tokens: used.cached,
            completion_tokens: used.completion,
            cost_usd: usd(used.nano_usd),
        }
    }
}

impl Usage {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost_usd += other.cost_usd;
    }

    /// Order by cost, then tokens, then requests.
    fn rank(&self) -> (u64, u64, u64) {
        ((self.cost_usd * 1e6) as u64, self.prompt_tokens + self.completion_tokens, self.requests)
    }
}

fn usd(nano_usd: u64) -> f64 {
    nano_usd as f64 / 1e9
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        accounts::Amounts,
        config::Settings,
        telemetry::{self, Record},
    };

    fn shield(apps: &[config::App]) -> Arc<Shield> {
        Shield::new(Settings { app: apps.to_vec(), ..Settings::default() }).expect("no file to read")
    }

    fn request(shield: &Arc<Shield>, app: &str, model: &str, prompt: u64) {
        let mut record = Record::new(&shield.telemetry, "/openai/v1/chat/completions", tokio::time::Instant::now());
        (record.app, record.model, record.status) = (app.into(), model.into(), 200);
        record.usage = crate::groq::Usage { prompt, completion: Some(10), cached: 5 };
        record.nano_usd = 1_000_000 * prompt;
    }

    #[tokio::test]
    async fn apps_are_listed_by_use_with_their_models_caps_and_budgets() {
        let capped = config::App {
            name: "capped".into(),
            requests_per_minute: Some(30),
            tokens_per_day: Some(1000),
            cost_per_month: Some(2.0),
            ..Default::default()
        };
        let shield = shield(&[capped]);
        assert_eq!(list(&shield)[0].caps[0].remaining, 30.0, "full before its first request");
        request(&shield, "capped", "m", 10);
        request(&shield, "big", "m", 100);
        request(&shield, "big", "n", 500);
        let used = Amounts { requests: 1, tokens: 1200, nano_usd: 500_000_000 };
        shield.accounts.ledger().reserve(&"capped".into(), &[], used, now(), 1).expect("no budget").used(used);
        shield.telemetry.unpriced(&"capped".into(), &"m".into());
        let apps = list(&shield);
        assert_eq!(apps.iter().map(|app| &*app.app).collect::<Vec<_>>(), ["big", "capped"]);
        let big = &apps[0];
        let usage = Usage { requests: 2, prompt_tokens: 600, cached_tokens: 10, completion_tokens: 20, cost_usd: 0.6 };
        assert_eq!(big.usage, usage);
        assert_eq!(
            big.models.iter().map(|of| (&*of.model, of.usage.prompt_tokens)).collect::<Vec<_>>(),
            [("n", 500), ("m", 100)]
        );
        assert!(big.caps.is_empty() && big.budgets.is_empty());
        let [tokens, cost] = apps[1].budgets.as_slice() else { panic!("{:?}", apps[1].budgets) };
        assert_eq!((&*tokens.budget, tokens.limit, tokens.used, tokens.remaining), ("tokens_per_day", 1000.0, 1200.0, 0.0));
        assert_eq!((&*cost.budget, &*cost.unit, cost.used, cost.remaining), ("cost_per_month", "USD", 0.5, 1.5));
        assert!(tokens.resets_in_s <= 86_400.0 && cost.resets_in_s <= 31.0 * 86_400.0);
        assert_eq!(apps[1].unpriced_models, [Arc::<str>::from("m")]);
    }

    #[tokio::test]
    async fn client_chosen_apps_and_models_are_bounded() {
        let everyone =
            config::App { name: "*".into(), tokens_per_day: Some(1000), requests_per_minute: Some(5), ..Default::default() };
        let named = config::App { name: "named".into(), ..Default::default() };
        let shield = shield(&[everyone, named]);
        let used = Amounts { requests: 1, tokens: 7, nano_usd: 0 };
        for n in 0..3 * LISTED {
            let app: Arc<str> = format!("app-{n}").into();
            request(&shield, &app, &format!("model-{}", n % 30), 1);
            request(&shield, "busy", &format!("model-{n}"), 1);
            shield.accounts.ledger().reserve(&app, &[], used, now(), 1).expect("no budget").used(used);
        }
        request(&shield, "named", "m", 1);
        let apps = list(&shield);
        // 100 client-chosen names, the app with an entry, and `other`.
        assert_eq!(apps.len(), LISTED + 2);
        let rest = apps.last().expect("many");
        assert_eq!((&*rest.app, rest.budgets.len(), rest.caps.len()), (OTHER, 0, 0));
        assert_eq!(apps.iter().map(|app| app.usage.requests).sum::<u64>(), 6 * LISTED as u64 + 1, "every request is in one row");
        assert!(apps.iter().all(|app| app.models.len() <= MODELS));
        let busy = apps.iter().find(|app| &*app.app == "busy").expect("it came second");
        assert_eq!(busy.models.iter().map(|of| of.usage.requests).sum::<u64>(), busy.usage.requests);
        assert!(apps.iter().any(|app| &*app.app == "named"));
        let shown = serde_json::to_string(&apps).expect("JSON").len();
        assert!(shown < 500_000, "{shown} bytes");
        let metrics = shield.telemetry.metrics(
            telemetry::Gauges {
                budgets: budgets(&shield).into_iter().map(|(app, budget, used)| (app, budget, used.day.tokens)).collect(),
                ..Default::default()
            },
            telemetry::Format::Plain,
        );
        assert_eq!(
            metrics.matches("groq_shield_app_budget_used{").count(),
            LISTED,
            "99 apps with an account and a label of their own, and one row for the rest"
        );
    }

    #[tokio::test]
    async fn after_a_restart_the_apps_that_have_used_most_of_their_budgets_are_listed() {
        let everyone = config::App { name: "*".into(), tokens_per_day: Some(1000), ..Default::default() };
        let shield = shield(&[everyone]);
        for n in 0..2 * LISTED {
            let used = Amounts { requests: 1, tokens: n as u64, nano_usd: 0 };
            shield.accounts.ledger().reserve(&format!("app-{n}").into(), &[], used, now(), 1).expect("no budget").used(used);
        }
        let apps = list(&shield);
        assert_eq!(apps.len(), LISTED);
        assert!(apps.iter().all(|app| app.budgets[0].used >= LISTED as f64));
    }
}
