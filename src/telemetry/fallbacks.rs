//! Counts requests that other models have served or, in observe mode, would have served.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::Telemetry;
use crate::config::FallbackReason;

/// A request that another model served, by the models and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fallback {
    /// The model that it named.
    pub from: String,
    /// The model that served it.
    pub to: String,
    /// `daily_limit`, `too_large`, `decommissioned`, `unavailable`, `wait`
    pub reason: &'static str,
}

/// Counts by models and reason. Bounded by the configuration, which names both models.
#[derive(Debug, Default)]
pub(super) struct FallbackCounts(Mutex<BTreeMap<Fallback, u64>>);

impl FallbackCounts {
    fn add(&self, from: &str, to: &str, reason: FallbackReason) {
        let fallback = Fallback { from: from.to_owned(), to: to.to_owned(), reason: reason.as_str() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(fallback).or_default() += 1;
    }

    fn list(&self) -> Vec<(Fallback, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(fallback, n)| (fallback.clone(), *n)).collect()
    }
}

impl Telemetry {
    /// Counts a request that another model served.
    pub fn fell_back(&self, from: &str, to: &str, reason: FallbackReason) {
        self.fallbacks.add(from, to, reason);
    }

    /// How often another model served a request, in order of names.
    pub fn fallbacks(&self) -> Vec<(Fallback, u64)> {
        self.fallbacks.list()
    }

    /// Observe mode: counts a request that another model would have served.
    pub fn observed_fallback(&self, from: &str, to: &str, reason: FallbackReason) {
        self.observed_fallbacks.add(from, to, reason);
    }

    /// Observe mode: how often another model would have served a request, in order of names.
    pub fn observed_fallbacks(&self) -> Vec<(Fallback, u64)> {
        self.observed_fallbacks.list()
    }
}
