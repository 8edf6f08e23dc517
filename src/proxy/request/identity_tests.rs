//! Keys, tokens and names, and the organizations and apps that they identify.

use proptest::prelude::*;

use super::*;
use crate::{config, headers::text};

fn env(name: &str) -> Option<String> {
    let value = match name {
        "KEY_A" => "gsk_a",
        "HELD" => " gsk_held\n",
        "TOKEN" => "app-token",
        _ => return None,
    };
    Some(value.to_owned())
}

fn app(name: &str, token_env: Option<&str>) -> config::App {
    config::App {
        name: name.into(),
        token_env: token_env.map(Into::into),
        weight: 3.0,
        class: Class::Batch,
        ..config::App::default()
    }
}

fn settings(held: bool, apps: Vec<config::App>) -> Settings {
    let mut settings = Settings { app: apps, ..Settings::default() };
    settings.upstream.api_key_env = held.then(|| "HELD".into());
    settings.organization = vec![config::Organization {
        name: "acme".into(),
        api_key_env: vec!["KEY_A".into(), "UNSET".into()],
        api_key_sha256: vec![config::Digest(digest(b"gsk_b"))],
    }];
    settings
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&'static str, &'static str)| (header::HeaderName::from_static(name), HeaderValue::from_static(value));
    pairs.iter().map(pair).collect()
}

fn resolve(settings: &Settings, pairs: &[(&'static str, &'static str)]) -> Result<Identity, Rejection> {
    IdentityIndex::new(settings, env).resolve(&Method::POST, &headers(pairs))
}

/// The key that is sent to Groq.
fn sent(identity: &Identity, pairs: &[(&'static str, &'static str)]) -> Option<String> {
    let mut headers = headers(pairs);
    identity.authorize(&mut headers);
    text(&headers, "authorization").map(str::to_owned)
}

#[test]
fn keys_of_one_organization_share_it() {
    let settings = settings(false, vec![]);
    for key in ["Bearer gsk_a", "bearer gsk_b", "BEARER   gsk_b "] {
        let identity = resolve(&settings, &[("authorization", key)]).expect("known");
        assert_eq!(identity.organization.as_ref(), "acme", "{key}");
        assert_eq!(sent(&identity, &[("authorization", key)]).as_deref(), Some(key));
    }
    let number = |key| resolve(&settings, &[("authorization", key)]).expect("a key").key_number;
    assert!(number("Bearer gsk_b") == number("bearer gsk_b") && number("Bearer gsk_a") != number("Bearer gsk_b"));
    let own = resolve(&settings, &[("authorization", "Bearer gsk_c")]).expect("a key");
    // printf gsk_c | sha256sum
    let hex: String = digest(b"gsk_c").iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(own.organization.as_ref(), format!("key-{}", &hex[..12]));
    assert!(!own.organization.contains("gsk_c"));
}

#[test]
fn no_key_is_refused_unless_the_shield_holds_one() {
    for pairs in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Basic gsk_a")], &[("authorization", "x")]] {
        assert!(matches!(resolve(&settings(false, vec![]), pairs), Err(Rejection::NoKey)));
        let identity = resolve(&settings(true, vec![]), pairs).expect("held");
        assert_eq!(sent(&identity, pairs).as_deref(), Some("Bearer gsk_held"));
    }
    let own = [("authorization", "Bearer gsk_a")];
    let identity = resolve(&settings(true, vec![]), &own).expect("a key");
    assert_eq!((identity.organization.as_ref(), sent(&identity, &own).as_deref()), ("acme", Some("Bearer gsk_a")));
}

#[test]
fn tokens_are_needed_where_there_are_any() {
    let settings = settings(true, vec![app("open", None), app("web", Some("TOKEN"))]);
    let good = [("authorization", "Bearer app-token"), ("x-shield-app", "open")];
    let identity = resolve(&settings, &good).expect("known");
    assert_eq!((identity.app.as_ref(), identity.weight, identity.class), ("web", 3.0, Class::Batch));
    assert_eq!(sent(&identity, &good).as_deref(), Some("Bearer gsk_held"));
    assert!(matches!(resolve(&settings, &[("authorization", "Bearer gsk_a")]), Err(Rejection::UnknownToken)));
    assert!(matches!(resolve(&settings, &[]), Err(Rejection::NoKey)));
    let unset = self::settings(true, vec![app("web", Some("UNSET"))]);
    assert!(matches!(resolve(&unset, &[("authorization", "Bearer app-token")]), Err(Rejection::UnknownToken)));
}

#[test]
fn a_preflight_needs_no_key() {
    for settings in [settings(false, vec![]), settings(true, vec![app("web", Some("TOKEN"))])] {
        let index = IdentityIndex::new(&settings, env);
        assert!(index.resolve(&Method::OPTIONS, &HeaderMap::new()).is_ok());
        assert!(index.resolve(&Method::OPTIONS, &headers(&[("authorization", "Bearer x")])).is_ok());
    }
}

#[test]
fn apps_without_tokens_go_by_their_word() {
    let settings = settings(true, vec![app("nightly", None)]);
    let identity = resolve(&settings, &[("x-shield-app", "nightly")]).expect("held");
    assert_eq!((identity.app.as_ref(), identity.weight, identity.class), ("nightly", 3.0, Class::Batch));
    let urgent = resolve(&settings, &[("x-shield-app", "nightly"), ("x-shield-class", "Interactive")]).expect("held");
    assert_eq!(urgent.class, Class::Interactive);
    let other = resolve(&settings, &[("x-shield-app", "a b\"{}"), ("x-shield-class", "nonsense")]).expect("held");
    assert_eq!((other.app.as_ref(), other.weight, other.class), ("a_b___", 1.0, Class::Interactive));
    assert_eq!(resolve(&settings, &[]).expect("held").app.as_ref(), "default");
    assert_eq!(resolve(&settings, &[("x-shield-app", " ")]).expect("held").app.as_ref(), "default");
}

/// Regression: client-chosen names are sanitized for labels, so entries whose names contain such characters were never matched.
#[test]
fn entries_are_known_by_their_names_whatever_their_letters() {
    let long: &'static str = "a-name-of-more-than-sixty-four-letters-that-somebody-has-written-down-for-an-app";
    for name in ["say \"a\"", "a b", "a,b;c=d", "{x}", long] {
        let settings = settings(true, vec![app(name, None)]);
        let identity = resolve(&settings, &[("x-shield-app", name)]).expect("held");
        assert_eq!((identity.app.as_ref(), identity.weight), (name, 3.0));
    }
    let index = IdentityIndex::new(&settings(true, vec![app("größe", None)]), env);
    let headers = [(header::HeaderName::from_static(APP), HeaderValue::from_bytes("größe".as_bytes()).expect("obs-text"))]
        .into_iter()
        .collect();
    assert_eq!(index.resolve(&Method::POST, &headers).expect("held").app.as_ref(), "größe");
}

proptest! {
    #[test]
    fn any_headers(key in proptest::collection::vec(any::<u8>(), 0..80), app in proptest::collection::vec(any::<u8>(), 0..200)) {
        let index = IdentityIndex::new(&settings(true, vec![]), env);
        let values = [("authorization", key), ("x-shield-app", app)];
        let pairs = values.into_iter().filter_map(|(name, v)| Some((header::HeaderName::from_static(name), HeaderValue::from_bytes(&v).ok()?)));
        let identity = index.resolve(&Method::POST, &pairs.collect()).expect("the shield holds a key");
        prop_assert!(identity.app.len() <= MAX_APP_NAME && identity.app.is_ascii());
    }
}
