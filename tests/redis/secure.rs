//! Redis over TLS with a private certificate authority and a user with restricted permissions: the connection works with correct
//! credentials, and errors are clear otherwise.

use std::{path::PathBuf, time::Duration};

use groq_limiter::{Limiters, settings::RedisSettings};
use groq_shield::accounts::{Amounts, Budget, Period, SharedLedger, Unit};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::{Instant, sleep};

use crate::{
    kit::{LONG_TIMEOUT, Redis, admission, replica_of, store, tokens, until},
    process::{Shield, Simulator},
};

/// The permissions listed in docs/operations.md, for keys that begin with `test`.
fn documented_permissions() -> String {
    let operations =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).expect("the documentation");
    let command = operations.split("ACL SETUSER shield on >password ").nth(1).expect("the documented command");
    command.split("```").next().expect("a first part").replace("groq-shield:", "test:")
}

/// A Redis with a TLS port, whose certificate is signed by a private authority.
struct Secure {
    redis: Redis,
    folder: tempfile::TempDir,
}

impl Secure {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut authority = CertificateParams::new(Vec::new()).expect("an authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signed");
        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &authority).expect("signed");
        let files = [("ca.pem", authority.pem()), ("redis.pem", certificate.pem()), ("redis.key", key.serialize_pem())];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let file = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let [ca, cert, key] = ["ca.pem", "redis.pem", "redis.key"].map(file);
        let options = |port: u16| {
            let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
            let rest = ["--tls-auth-clients", "no", "--tls-port", &port.to_string()].map(str::to_owned);
            files.map(str::to_owned).into_iter().chain(rest).collect()
        };
        let redis = Redis::with_second(options).await;
        let secure = Self { redis, folder };
        secure.user("p@ss/word", &documented_permissions());
        secure
    }

    fn user(&self, password: &str, rights: &str) {
        let password = format!(">{password}");
        let mut words = vec!["ACL", "SETUSER", "shield", "reset", "on", &password];
        words.extend(rights.split_whitespace());
        self.redis.command(&words);
    }

    fn url(&self, password: &str) -> String {
        format!("rediss://shield:{password}@127.0.0.1:{}", self.redis.second_port())
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn store(&self, password: &str, ca: Option<PathBuf>) -> RedisSettings {
        RedisSettings { ca_file: ca, ..store(&self.url(password), LONG_TIMEOUT) }
    }
}

const RIGHT: &str = "p%40ss%2Fword";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_authority_and_a_restricted_user() {
    let redis = Secure::start().await;
    let replicas = [(); 2].map(|()| replica_of(redis.store(RIGHT, Some(redis.ca())), tokens(1000)));
    until(false, &replicas).await;
    let soon = || Instant::now() + Duration::from_secs(5);
    let mut held = replicas[0].reserve(&admission("a", 1, 890), soon(), None).await.expect("room under the limit");
    held.sent(Instant::now());
    let other = replicas[1].reserve(&admission("a", 1, 890), soon(), None).await;
    assert!(other.is_err(), "the quota is shared: {other:?}");
    let budget = [Budget { unit: Unit::Requests, period: Period::Month, limit: 1 }];
    let amounts = Amounts { requests: 1, ..Amounts::default() };
    let accounts = [0, 1].map(|n: usize| SharedLedger::new(replicas[n].store(), "test"));
    let month = accounts[0].reserve(&"a".into(), &budget, amounts, 0).await.expect("nothing is used");
    let other = accounts[1].reserve(&"a".into(), &budget, amounts, 0).await;
    assert!(other.is_err(), "the budget is shared: {other:?}");
    drop(month);
    let caps = replica_of(RedisSettings { prefix: "test:caps".into(), ..redis.store(RIGHT, Some(redis.ca())) }, tokens(1000));
    until(false, &[caps]).await;
    let [one, two] = replicas;
    drop(held);
    one.close().expect("no state file to write");
    assert!(!two.store().expect("a store").is_degraded());
}

/// Waits until the replica reports why the store cannot be reached.
async fn store_error(replica: &Limiters) -> String {
    let start = Instant::now();
    loop {
        let store = replica.store().expect("a store");
        assert!(store.is_degraded(), "the store is available");
        if let Some(why) = store.why() {
            return why.as_ref().into();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no error is reported");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_errors_are_explained_without_secrets() {
    let redis = Secure::start().await;
    let nowhere = redis.folder.path().join("nowhere.pem");
    let empty = redis.folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").expect("written");
    for (password, ca, word) in [
        ("hunter2", Some(redis.ca()), "WRONGPASS"),
        (RIGHT, None, "certificate"),
        (RIGHT, Some(nowhere), "store.ca_file"),
        (RIGHT, Some(empty), "store.ca_file"),
    ] {
        let replica = replica_of(redis.store(password, ca), tokens(1000));
        let said = store_error(&replica).await;
        assert!(said.contains(word), "{word} is not in: {said}");
        assert!(!said.contains("hunter2") && !said.contains("word@"), "{said}");
        // Requests are admitted without the store.
        let granted = replica.reserve(&admission("a", 1, 10), Instant::now() + Duration::from_secs(5), None).await;
        assert!(granted.is_ok(), "{granted:?}");
    }
    redis.user("p@ss/word", "~other:* +@all");
    let replica = replica_of(redis.store(RIGHT, Some(redis.ca())), tokens(1000));
    let said = store_error(&replica).await;
    assert!(said.contains("permissions"), "{said}");
    // The replica reconnects once the permissions are granted.
    redis.user("p@ss/word", &documented_permissions());
    until(false, std::slice::from_ref(&replica)).await;
    assert_eq!(replica.store().and_then(|store| store.why()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_status_explain_store_errors() {
    let redis = Secure::start().await;
    let simulator = Simulator::generous();
    let url = redis.url("hunter2");
    let config = format!("[store]\nkind = \"redis\"\nprefix = \"test\"\nca_file = {:?}\n", redis.ca());
    let shield = Shield::with(simulator.process.address(), &config, &[("GROQ_SHIELD_STORE_URL", &url)]);
    let status = async || crate::client::Client::new(shield.process.admin()).plain("/status", None).await.json();
    let start = Instant::now();
    let said = loop {
        if let Some(why) = status().await["store"]["why"].as_str() {
            break why.to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{}", shield.process.log());
        sleep(Duration::from_millis(50)).await;
    };
    assert!(said.contains("WRONGPASS"), "{said}");
    let log = shield.process.log();
    assert!(log.contains("the store is unreachable") && log.contains("WRONGPASS"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    redis.user("hunter2", &documented_permissions());
    while status().await["store"]["degraded"] != false {
        assert!(start.elapsed() < Duration::from_secs(30), "{}", shield.process.log());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(status().await["store"]["why"].is_null());
}
