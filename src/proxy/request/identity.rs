//! Identifies a request: the organization by its key, the app by its token or by `x-shield-app`; and chooses the key that goes to
//! Groq.

use std::sync::Arc;

use foldhash::HashMap;
use http::{HeaderMap, HeaderValue, Method, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    accounts::Budget,
    config::{Class, Settings},
    headers,
    proxy::error::Rejection,
};

type Digest = [u8; 32];

const EVERYONE_ELSE: &str = crate::config::App::EVERYONE_ELSE;

const APP: &str = "x-shield-app";
const CLASS: &str = "x-shield-class";
const FALLBACK: &str = "x-shield-fallback";

/// Maximum bytes of an app name in a header.
const MAX_APP_NAME: usize = 64;

/// The known keys, tokens and apps. Keys and tokens are stored as digests only, except the key that the shield itself uses.
pub struct IdentityIndex {
    organizations: HashMap<Digest, Arc<str>>,
    apps: Vec<App>,
    /// `[[app]] name = "*"`, which applies to each app without an entry.
    everyone_else: Option<App>,
    /// The key to use if the app sends none: the header value, its organization and its number.
    held: Option<(HeaderValue, Arc<str>, u32)>,
    tokens_needed: bool,
    unnamed: Arc<str>,
}

struct App {
    name: Arc<str>,
    token: Option<Digest>,
    weight: f64,
    class: Class,
    fallback: bool,
    budgets: Option<Arc<[Budget]>>,
    is_capped: bool,
}

/// The origin of a request.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The organization whose limits apply: a configured name, or `key-` and the beginning of the key's digest.
    pub organization: Arc<str>,
    /// The beginning of the digest of the key that goes to Groq; 0 without one.
    pub key_number: u32,
    /// The app.
    pub app: Arc<str>,
    /// The app's share relative to other apps.
    pub weight: f64,
    /// The app's priority class, or the one that the request asks for.
    pub class: Class,
    /// Whether another model may serve the request: forbidden by the app's entry or by `x-shield-fallback: off`.
    pub fallback: bool,
    /// The budgets of its app, if any.
    pub budgets: Option<Arc<[Budget]>>,
    /// Whether its app has caps.
    pub is_capped: bool,
    /// The `authorization` to send instead of the app's own.
    key: Option<HeaderValue>,
}

impl IdentityIndex {
    /// The index for these settings; `env` reads an environment variable. An unset variable is an absent key.
    pub fn new(settings: &Settings, env: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let mut organizations = HashMap::default();
        for organization in &settings.organization {
            let name: Arc<str> = Arc::from(organization.name.as_str());
            let from_env = organization.api_key_env.iter().filter_map(|name| value(name)).map(|key| digest(key.as_bytes()));
            let digests = from_env.chain(organization.api_key_sha256.iter().map(|digest| digest.0));
            organizations.extend(digests.map(|digest| (digest, name.clone())));
        }
        let app = |app: &crate::config::App| App {
            name: Arc::from(app.name.as_str()),
            token: app
                .token_sha256
                .map(|digest| digest.0)
                .or_else(|| app.token_env.as_deref().and_then(value).map(|token| digest(token.as_bytes()))),
            weight: app.weight,
            class: app.class,
            fallback: app.fallback,
            is_capped: app.is_capped(),
            budgets: Some(app.budgets()).filter(|budgets| !budgets.is_empty()).map(Arc::from),
        };
        let mut index = Self {
            organizations,
            apps: settings.app.iter().filter(|app| app.name != EVERYONE_ELSE).map(app).collect(),
            everyone_else: settings.app.iter().find(|app| app.name == EVERYONE_ELSE).map(app),
            held: None,
            // A token whose variable is not set still makes tokens mandatory.
            tokens_needed: settings.app.iter().any(|app| app.token_env.is_some() || app.token_sha256.is_some()),
            unnamed: Arc::from("default"),
        };
        index.held = settings.upstream.api_key_env.as_deref().and_then(value).and_then(|key| {
            let mut header = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
            header.set_sensitive(true);
            let (organization, number) = index.organization(key.as_bytes());
            Some((header, organization, number))
        });
        index
    }

    /// The budgets of an app, from its own entry or from `"*"`.
    pub fn budgets_of(&self, app: &str) -> &[Budget] {
        let policy = self.apps.iter().find(|known| &*known.name == app).or(self.everyone_else.as_ref());
        policy.and_then(|app| app.budgets.as_deref()).unwrap_or_default()
    }

    /// Identifies the sender of a request.
    ///
    /// # Errors
    /// [`Rejection::NoKey`], [`Rejection::UnknownToken`]. A browser's preflight (OPTIONS) needs neither key nor token.
    pub fn resolve(&self, method: &Method, headers: &HeaderMap) -> Result<Identity, Rejection> {
        let [authorization, named, class, fallback] =
            headers::first(headers, [header::AUTHORIZATION.as_str(), APP, CLASS, FALLBACK]);
        let bearer = authorization.and_then(bearer);
        let app = match bearer {
            Some(token) if self.tokens_needed => self.by_token(token),
            _ => None,
        };
        if method != Method::OPTIONS {
            match bearer {
                Some(_) if self.tokens_needed && app.is_none() => return Err(Rejection::UnknownToken),
                None if self.tokens_needed || self.held.is_none() => return Err(Rejection::NoKey),
                _ => {}
            }
        }
        let key = self.held.as_ref().filter(|_| app.is_some() || bearer.is_none());
        let (organization, key_number) = match (key, bearer) {
            (Some((_, organization, number)), _) => (organization.clone(), *number),
            (None, Some(key)) => self.organization(key),
            (None, None) => (Arc::from("none"), 0),
        };
        // An app with a token is identified by it alone, so no other client can use its name. Names of entries may contain
        // characters that are not allowed in other names.
        let raw = named.map(|value| value.as_bytes().trim_ascii());
        let named = raw.and_then(name);
        let is_named = |app: &&App| Some(app.name.as_bytes()) == raw || Some(app.name.as_ref()) == named.as_deref();
        let app = app.or_else(|| self.apps.iter().filter(|app| app.token.is_none()).find(is_named));
        let policy = app.or(self.everyone_else.as_ref());
        let class = match class.map(HeaderValue::as_bytes) {
            Some(class) if class.eq_ignore_ascii_case(b"batch") => Class::Batch,
            Some(class) if class.eq_ignore_ascii_case(b"interactive") => Class::Interactive,
            _ => policy.map(|app| app.class).unwrap_or_default(),
        };
        Ok(Identity {
            organization,
            key_number,
            app: app.map_or_else(|| named.map_or_else(|| self.unnamed.clone(), Arc::from), |app| app.name.clone()),
            weight: policy.map_or(1.0, |app| app.weight),
            is_capped: policy.is_some_and(|app| app.is_capped),
            budgets: policy.and_then(|app| app.budgets.clone()),
            fallback: policy.is_none_or(|app| app.fallback)
                && fallback.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"off")),
            class,
            key: key.map(|(key, ..)| key.clone()),
        })
    }

    /// Compares every token in constant time, so the duration reveals nothing about them.
    fn by_token(&self, token: &[u8]) -> Option<&App> {
        let token = digest(token);
        self.apps.iter().fold(None, |found, app| {
            let same = app.token.is_some_and(|known| known.ct_eq(&token).into());
            if same { found.or(Some(app)) } else { found }
        })
    }

    /// The organization of a key, and the key's number.
    fn organization(&self, key: &[u8]) -> (Arc<str>, u32) {
        let digest = digest(key);
        let organization = match self.organizations.get(&digest) {
            Some(name) => name.clone(),
            None => {
                // `format!` took four times the instructions.
                let mut name = *b"key-............";
                for (place, digit) in name[4..].iter_mut().zip(digest.iter().flat_map(|byte| [byte >> 4, byte & 15])) {
                    *place = b"0123456789abcdef"[usize::from(digit)];
                }
                std::str::from_utf8(&name).expect("it is ASCII").into()
            }
        };
        let [a, b, c, d, ..] = digest;
        (organization, u32::from_be_bytes([a, b, c, d]))
    }
}

impl Identity {
    /// Replaces `authorization` by the key for Groq, unless the app's own key is used.
    pub fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(key) = &self.key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
    }
}

fn digest(text: &[u8]) -> Digest {
    Sha256::digest(text).into()
}

/// The key or token of `Authorization: Bearer …`.
fn bearer(authorization: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = authorization.as_bytes().split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// A name chosen by a client, if it is short enough and safe in logs and labels.
fn name(value: &[u8]) -> Option<String> {
    let plain = |b: &u8| if b.is_ascii_alphanumeric() || b"-_.:/@+".contains(b) { char::from(*b) } else { '_' };
    let name: String = value.iter().take(MAX_APP_NAME).map(plain).collect();
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
