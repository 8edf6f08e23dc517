//! Organizations that Groq has blocked or restricted: shown until one of their requests succeeds again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::access;

/// Maximum number of organizations and reasons. Each unlisted key is an organization, so clients can create any number.
const MAX_ROWS: usize = 100;

/// An organization that Groq has blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedAccount {
    /// The organization.
    pub organization: String,
    /// The code of Groq's error: `blocked_api_access`, `spend_…` or `organization_restricted`.
    pub reason: String,
    /// When its first request was answered with that code.
    pub since: SystemTime,
}

/// Since when, by organization and reason; `None` once it is no longer blocked.
type Rows = BTreeMap<(Arc<str>, String), Option<SystemTime>>;

#[derive(Debug, Default)]
pub(super) struct BlockedAccounts {
    rows: Mutex<Rows>,
    /// Whether any organization is blocked: otherwise a success takes no lock.
    any: AtomicBool,
}

impl BlockedAccounts {
    /// Records an error response with the code `reason` to a request of `organization`.
    pub(super) fn blocked(&self, organization: &Arc<str>, reason: &str) {
        let row = (organization.clone(), access::clean(reason, access::NAME).into_owned());
        let mut rows = self.rows();
        if rows.get(&row).is_some_and(Option::is_some) {
            return;
        }
        // An organization has one reason at a time.
        rows.iter_mut().filter(|((other, _), _)| other == organization).for_each(|(_, since)| *since = None);
        if rows.len() >= MAX_ROWS && !rows.contains_key(&row) {
            let over = rows.iter().find(|(_, since)| since.is_none()).map(|(row, _)| row.clone());
            let Some(over) = over else { return };
            rows.remove(&over);
        }
        rows.insert(row, Some(SystemTime::now()));
        self.any.store(true, Ordering::Relaxed);
        drop(rows);
        tracing::warn!(organization = &*access::clean(organization, access::NAME), reason, "Groq has blocked this organization");
    }

    /// Records the success of a request of `organization`.
    pub(super) fn succeeded(&self, organization: &Arc<str>) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut rows = self.rows();
        let blocked = rows.iter_mut().filter(|((this, _), since)| this == organization && since.is_some());
        let unblocked = blocked.map(|(_, since)| *since = None).count();
        self.any.store(rows.values().any(Option::is_some), Ordering::Relaxed);
        drop(rows);
        if unblocked > 0 {
            tracing::info!(organization = &*access::clean(organization, access::NAME), "Groq serves this organization again");
        }
    }

    /// The organizations that are blocked now.
    pub(super) fn list(&self) -> Vec<BlockedAccount> {
        let rows = self.rows();
        let account = |((organization, reason), since): (&(Arc<str>, String), &Option<SystemTime>)| {
            since.map(|since| BlockedAccount { organization: organization.to_string(), reason: reason.clone(), since })
        };
        rows.iter().filter_map(account).collect()
    }

    /// Every organization and reason so far, and whether it is blocked now.
    pub(super) fn states(&self) -> Vec<(String, String, bool)> {
        self.rows()
            .iter()
            .map(|((organization, reason), since)| (organization.to_string(), reason.clone(), since.is_some()))
            .collect()
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lasts_until_the_next_success_of_its_organization() {
        let (accounts, acme, other) = (BlockedAccounts::default(), Arc::from("acme"), Arc::from("other"));
        accounts.blocked(&acme, "blocked_api_access");
        let since = accounts.list()[0].since;
        accounts.blocked(&acme, "blocked_api_access");
        accounts.succeeded(&other);
        assert_eq!(accounts.list()[0].since, since, "the first answer counts");
        accounts.blocked(&acme, "organization_restricted");
        let state = |reason: &str, blocked| ("acme".to_owned(), reason.to_owned(), blocked);
        assert_eq!(accounts.states(), [state("blocked_api_access", false), state("organization_restricted", true)]);
        accounts.succeeded(&acme);
        assert!(accounts.list().is_empty());
        assert_eq!(accounts.states().len(), 2, "the gauge says 0 from now on");
    }

    #[test]
    fn as_many_organizations_as_clients_like_take_a_bounded_room() {
        let accounts = BlockedAccounts::default();
        let organization = |n: usize| Arc::from(format!("o{n}"));
        for n in 0..2 * MAX_ROWS {
            accounts.blocked(&organization(n), "spend_limit_reached");
        }
        assert_eq!(accounts.list().len(), MAX_ROWS);
        accounts.succeeded(&organization(3));
        accounts.blocked(&organization(500), "spend_limit_reached");
        assert!(accounts.list().iter().any(|account| account.organization == "o500"));
        assert_eq!(accounts.states().len(), MAX_ROWS);
    }
}
