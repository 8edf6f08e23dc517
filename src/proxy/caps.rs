//! Caps of apps: each app stands in the place of a model, in limiters of their own.

use std::{borrow::Cow, sync::Arc};

use groq_limiter::{AdmissionRequest, types::Dimension};

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
