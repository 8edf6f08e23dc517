//! `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers): every known limit of a request, including those
//! that Groq never reports and those of its app. Both are structured fields (RFC 9651): lists of strings with parameters.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use groq_limiter::{AdmissionRequest, CostEstimate, DimensionSnapshot, types::Unit};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{caps, shield::Shield};
use crate::accounts::{Budget, Period, Unit as BudgetUnit};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Largest integer of a structured field.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// What limits a request.
pub(super) struct Limited<'a> {
    pub(super) admission: &'a AdmissionRequest,
    pub(super) is_capped: bool,
    pub(super) budgets: Option<&'a [Budget]>,
}

impl Limited<'_> {
    /// Adds both fields with what is left now, unless nothing limits the request. The upstream's own fields stay: a list field
    /// may be split over several lines.
    pub(super) fn add_to(&self, headers: &mut HeaderMap, shield: &Shield) {
        if self.admission.cost == CostEstimate::Free {
            return;
        }
        let mut fields = Fields { policy: String::with_capacity(256), limit: String::with_capacity(192) };
        shield.limits.dimensions(self.admission).iter().for_each(|quota| fields.dimension("", quota));
        if self.is_capped {
            let caps = shield.caps.dimensions(&caps::admission(self.admission));
            caps.iter().for_each(|quota| fields.dimension("app-", quota));
        }
        if let Some(budgets) = self.budgets {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let usage = shield.accounts.ledger().usage(&self.admission.app, now);
            for budget in budgets {
                let used = usage.used(budget.period).of(budget.unit).saturating_add(usage.reserved.of(budget.unit));
                fields.budget(*budget, used, budget.period.time_left(now));
            }
        }
        if fields.policy.is_empty() {
            return;
        }
        for (name, value) in [(POLICY, fields.policy), (LIMIT, fields.limit)] {
            headers.append(name, HeaderValue::try_from(value).expect("names and numbers"));
        }
    }
}

struct Fields {
    policy: String,
    limit: String,
}

impl Fields {
    fn dimension(&mut self, of: &str, quota: &DimensionSnapshot) {
        let DimensionSnapshot { dimension, limit, remaining, full_in, .. } = quota;
        let (unit, quota_unit) = match dimension.unit {
            Unit::Requests => ("requests", ""),
            Unit::Tokens => ("tokens", "tokens"),
            Unit::InputTokens => ("input-tokens", "tokens"),
            Unit::OutputTokens => ("output-tokens", "tokens"),
            Unit::AudioSeconds => ("audio-seconds", "audio-seconds"),
        };
        let window = dimension.period.as_secs().max(1);
        let remaining = (remaining.max(0.0) as u64).min(*limit);
        let seconds = full_in.as_millis().div_ceil(1000) as u64;
        let other;
        let period = match window {
            60 => "minute",
            3600 => "hour",
            86_400 => "day",
            _ => {
                other = format!("{window}s");
                &other
            }
        };
        self.add([of, unit, period], quota_unit, *limit, Some(window), remaining, seconds);
    }

    fn budget(&mut self, budget: Budget, used: u64, resets_in: Duration) {
        // In billionths of a USD, integers could exceed the maximum.
        let (quota_unit, scale) = match budget.unit {
            BudgetUnit::Requests => ("", 1),
            BudgetUnit::Tokens => ("tokens", 1),
            BudgetUnit::Cost => ("micro-usd", 1000),
        };
        let window = match budget.period {
            Period::Day => Some(86_400),
            Period::Month => None,
        };
        let name = ["app-", budget.unit.as_str(), budget.period.as_str()];
        let (limit, left) = (budget.limit / scale, budget.limit.saturating_sub(used) / scale);
        self.add(name, quota_unit, limit, window, left, resets_in.as_secs());
    }

    /// `quota_unit` is empty for requests, the default. `format!` took three times the instructions.
    fn add(
        &mut self,
        [of, unit, period]: [&str; 3],
        quota_unit: &str,
        limit: u64,
        window: Option<u64>,
        remaining: u64,
        seconds: u64,
    ) {
        let Self { policy, limit: left } = self;
        for field in [&mut *policy, &mut *left] {
            field.push_str(if field.is_empty() { "\"" } else { ", \"" });
            [of, unit, "-per-", period, "\""].into_iter().for_each(|part| field.push_str(part));
        }
        let parameter = |field: &mut String, key: &str, value: u64| {
            field.push_str(key);
            field.push_str(itoa::Buffer::new().format(value.min(MAX_INTEGER)));
        };
        parameter(policy, ";q=", limit);
        if let Some(window) = window {
            parameter(policy, ";w=", window);
        }
        if !quota_unit.is_empty() {
            [";qu=\"", quota_unit, "\""].into_iter().for_each(|part| policy.push_str(part));
        }
        parameter(left, ";r=", remaining);
        parameter(left, ";t=", seconds);
    }
}
