//! Caps of apps: each app stands in the place of a model, in limiters of their own.

use std::{borrow::Cow, sync::Arc};

use groq_limiter::{
    ActualUsage, AdmissionRequest, Permit,
    types::{Dimension, Observation},
};
use tokio::time::Instant;

const CAP: &str = "app ";

/// How a cap's dimension is called: `app TPM`.
pub(super) fn code(dimension: &Dimension) -> Cow<'static, str> {
    format!("{CAP}{}", dimension.code).into()
}

/// Whether a dimension is that of a cap.
pub(super) fn is_cap(dimension: &Dimension) -> bool {
    dimension.code.starts_with(CAP)
}

/// What a request asks of its app's caps, which stand in the place of a model's limits.
pub(super) fn admission(admission: &AdmissionRequest) -> AdmissionRequest {
    AdmissionRequest { organization: Arc::default(), model: admission.app.clone(), tier: Arc::default(), ..admission.clone() }
}

/// What a request has reserved of its app's caps before it is sent: it comes back where the limits refuse it after all, or its
/// client disconnects.
#[derive(Debug)]
pub(super) struct Unsent(Option<Permit>);

impl Unsent {
    /// Nobody else draws on a cap: there is no response to learn from, and none to wait for.
    pub(super) fn new(mut permit: Permit) -> Self {
        let now = Instant::now();
        permit.sent(now);
        permit.observe(&Observation::default(), now);
        Self(Some(permit))
    }

    /// The request is sent now.
    pub(super) fn send(mut self) -> Option<Permit> {
        self.0.take()
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.settle(ActualUsage::Nothing, Instant::now());
        }
    }
}
