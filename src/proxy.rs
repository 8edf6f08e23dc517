//! What happens to one request? `handle` cannot fail; `forward` tells the whole story.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::Settings, error::Rejection, limits::Limits, relay, telemetry::Telemetry};

/// Everything that requests share.
pub struct Shield {
    /// The configuration in force; swapped on reload.
    pub settings: ArcSwap<Settings>,
    /// Levels and lines.
    pub limits: Limits,
    /// Logs and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled on SIGTERM: no new requests.
    pub draining: CancellationToken,
    /// Cancelled when `drain_timeout` is over: running streams end in an error frame.
    pub ending: CancellationToken,
    /// Every running connection.
    pub connections: TaskTracker,
}

impl Shield {
    /// A shield by these settings.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            limits: Limits::new(&settings.limits, &settings.queue),
            settings: ArcSwap::from_pointee(settings),
            telemetry: Arc::default(),
            draining: CancellationToken::new(),
            ending: CancellationToken::new(),
            connections: TaskTracker::new(),
        })
    }
}

/// Answers one request, whatever happens.
///
/// `ambiguous`: the head named both Content-Length and Transfer-Encoding, or a length twice; seen by the
/// connection in the head's bytes, since hyper hides it.
pub async fn handle<B>(shield: &Arc<Shield>, request: Request<B>, ambiguous: Option<&'static str>) -> Response<relay::Body>
where
    B: http_body::Body<Data = Bytes>,
{
    let _ = (shield, request, ambiguous);
    Rejection::Internal.into_response().map(relay::Body::from)
}
