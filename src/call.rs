//! PLACEHOLDER of the seam that the proxy expects; the owner of this file replaces all of it.
use crate::{config::*, error::Rejection, groq::Endpoint, limits::Pool};
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
pub struct Facts {
    pub model: Arc<str>,
    pub tier: Arc<str>,
    pub pool: Pool,
    pub fingerprint: u64,
    pub stream: bool,
    pub wants_text: bool,
}
impl Facts {
    pub fn of(_e: Endpoint, _h: &HeaderMap, b: &Bytes) -> Result<Self, Rejection> {
        let v: serde_json::Value = serde_json::from_slice(b).unwrap_or_default();
        Ok(Self {
            model: v["model"].as_str().unwrap_or("").into(),
            tier: "on_demand".into(),
            pool: Pool::Tokens { prompt: b.len() as u64 / 4, ceiling: None },
            fingerprint: 0,
            stream: v["stream"] == true,
            wants_text: false,
        })
    }
}
pub struct IdentityIndex;
pub struct Identity {
    pub organisation: Arc<str>,
    pub app: Arc<str>,
    pub weight: f64,
    pub class: Class,
}
impl IdentityIndex {
    pub fn new(_s: &Settings, _e: impl Fn(&str) -> Option<String>) -> Self {
        Self
    }
    pub fn resolve(&self, _m: &Method, _h: &HeaderMap) -> Result<Identity, Rejection> {
        Ok(Identity { organisation: "o".into(), app: "a".into(), weight: 1.0, class: Class::Interactive })
    }
}
impl Identity {
    pub fn authorise(&self, _h: &mut HeaderMap) {}
}
pub struct Bodies;
impl Bodies {
    pub fn new(_m: u64) -> Self {
        Self
    }
}
pub struct Held;
pub async fn collect<B: http_body::Body<Data = Bytes>>(
    b: B,
    _h: &HeaderMap,
    _m: u64,
    _t: Duration,
    _b: &Bodies,
) -> Result<(Bytes, Held), Rejection> {
    Ok((b.collect().await.map_err(|_| Rejection::Internal)?.to_bytes(), Held))
}
pub fn is_client_retry(_h: &HeaderMap) -> bool {
    false
}
pub fn patience(_h: &HeaderMap, q: &Queue, _u: Duration) -> Duration {
    q.max_wait
}
pub fn with_ceiling(_e: Endpoint, b: &Bytes, _to: u64) -> Bytes {
    b.clone()
}
