//! Caps of apps: separate limiters, keyed by app where Groq's are keyed by model.

use std::{borrow::Cow, sync::Arc};

use groq_limiter::{
    ActualUsage, AdmissionRequest, Permit,
    types::{Dimension, Observation},
};
use tokio::time::Instant;

const CAP: &str = "app ";

/// The name of a cap's dimension: `app TPM`.
pub(super) fn code(dimension: &Dimension) -> Cow<'static, str> {
    format!("{CAP}{}", dimension.code).into()
}

/// Whether a dimension belongs to a cap.
pub(super) fn is_cap(dimension: &Dimension) -> bool {
    dimension.code.starts_with(CAP)
}

/// The admission request for the app's caps, with the app as the model.
pub(super) fn admission(admission: &AdmissionRequest) -> AdmissionRequest {
    AdmissionRequest { organization: Arc::default(), model: admission.app.clone(), tier: Arc::default(), ..admission.clone() }
}

/// The cap permit of a request that has not been sent yet. Dropping it returns the reservation, for example if Groq's limits
/// refuse the request or its client disconnects.
#[derive(Debug)]
pub(super) struct Unsent(Option<Permit>);

impl Unsent {
    /// Marks the permit as sent and observed: only this shield uses the cap, so no response can correct it.
    pub(super) fn new(mut permit: Permit) -> Self {
        let now = Instant::now();
        permit.sent(now);
        permit.observe(&Observation::default(), now);
        Self(Some(permit))
    }

    /// The permit of a request that is sent now.
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
