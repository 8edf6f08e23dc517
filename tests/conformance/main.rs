//! Conformance: raw requests, malformed answers and HTTP/2 frames, each tied to a clause of RFC 9110, 9112, 9113 or a related
//! one, judged by what comes back.
//!
//! The gate runs every row against a shield of this build, and allows the deviations of `deviations.rs` only. Against other
//! servers: `CONFORMANCE_ADDRESS=127.0.0.1:8080 cargo test --test conformance -- --ignored address --nocapture`.

mod case;
mod cases;
mod deviations;
mod http2;
mod probe;
mod response_rule;
mod rule;
mod servers;
mod upstream;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use case::Case;
use cases::{REQUESTS, RESPONSES};
use deviations::{DEVIATIONS, Deviation, expected};
use probe::{TimeLimits, probe};
use rule::{Exchange, Verdict};
use servers::{INSTANCES, Instance, Server};
use tokio::task::JoinSet;

const QUICK: TimeLimits = TimeLimits { answer: Duration::from_secs(2), more: Duration::from_millis(250) };
/// For a second attempt after an unexpected verdict: the machine may have been busy.
const SLOW: TimeLimits = TimeLimits { answer: Duration::from_secs(10), more: Duration::from_secs(2) };

/// Verdicts by case name, and what the server did.
type Results = BTreeMap<&'static str, (Verdict, String)>;

fn rows(tables: &'static [&'static [Case]]) -> impl Iterator<Item = &'static Case> {
    tables.iter().copied().flatten()
}

async fn run(instance: &Instance, case: &Case, time_limits: TimeLimits) -> io::Result<Exchange> {
    let before = instance.seen.as_ref().map(|seen| seen.load(Relaxed));
    let mut exchange = probe(instance.address, case, time_limits).await?;
    exchange.reached = instance.seen.as_ref().zip(before).map(|(seen, before)| seen.load(Relaxed) - before);
    Ok(exchange)
}

/// Runs every row against this server.
async fn all(server: &Server) -> io::Result<Results> {
    let mut results = requests(&server.instances).await?;
    if let Some(address) = server.responses {
        let instances: Vec<Instance> = server.instances.iter().map(|_| Instance { address, seen: None }).collect();
        results.extend(go(&instances, RESPONSES).await?);
    }
    if let Some(address) = server.http2 {
        results.extend(frames(address).await?);
    }
    Ok(results)
}

/// Runs the rows of HTTP/2.
async fn frames(address: SocketAddr) -> io::Result<Results> {
    let left = Arc::new(Mutex::new(VecDeque::from(http2::cases())));
    let results: Arc<Mutex<Results>> = Arc::default();
    let mut running = JoinSet::new();
    for _ in 0..INSTANCES {
        let (left, results) = (left.clone(), results.clone());
        running.spawn(async move {
            loop {
                let Some(case) = left.lock().expect("no panic with it").pop_front() else { return Ok::<_, io::Error>(()) };
                let mut result = http2::probe(address, &case, QUICK.answer).await?;
                if result.0 != expected(case.name) {
                    result = http2::probe(address, &case, SLOW.answer).await?;
                }
                results.lock().expect("no panic with it").insert(case.name, result);
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.expect("no panic")?;
    }
    Ok(std::mem::take(&mut *results.lock().expect("no panic with it")))
}

async fn requests(instances: &[Instance]) -> io::Result<Results> {
    go(instances, REQUESTS).await
}

async fn go(instances: &[Instance], tables: &'static [&'static [Case]]) -> io::Result<Results> {
    let left: Arc<Mutex<VecDeque<&'static Case>>> = Arc::new(Mutex::new(rows(tables).collect()));
    let results: Arc<Mutex<Results>> = Arc::default();
    let mut running = JoinSet::new();
    for instance in instances {
        let instance = Instance { address: instance.address, seen: instance.seen.clone() };
        let (left, results) = (left.clone(), results.clone());
        running.spawn(async move {
            loop {
                let Some(case) = left.lock().expect("no panic with it").pop_front() else { return Ok::<_, io::Error>(()) };
                let mut exchange = run(&instance, case, QUICK).await?;
                if case.rule.judge(&exchange) != expected(case.name) {
                    exchange = run(&instance, case, SLOW).await?;
                }
                let result = (case.rule.judge(&exchange), exchange.to_text());
                results.lock().expect("no panic with it").insert(case.name, result);
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.expect("no panic")?;
    }
    Ok(std::mem::take(&mut *results.lock().expect("no panic with it")))
}

fn counts(results: &Results) -> [usize; 3] {
    [Verdict::Pass, Verdict::Warn, Verdict::Fail].map(|this| results.values().filter(|(verdict, _)| *verdict == this).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shield_deviates_only_where_documented() {
    let server = servers::shield().await.expect("it starts");
    let results = all(&server).await.expect("it listens");
    let mut wrong = String::new();
    for (name, (verdict, told)) in &results {
        let expected = expected(name);
        if *verdict != expected {
            let _ = writeln!(wrong, "{name}: {verdict:?} and not {expected:?}: {told}");
        }
    }
    println!("{:?} of {}", counts(&results), results.len());
    assert!(wrong.is_empty(), "deviations that are not in deviations.rs, or no longer there:\n{wrong}");
}

/// A 401 must name the scheme (RFC 9110 §15.5.2). The shield of the tables holds the key and never sends one.
#[tokio::test]
async fn a_401_names_its_scheme() {
    let (address, _running) = servers::keyless().await.expect("it starts");
    let exchange = probe(address, &cases::UNAUTHORIZED, SLOW).await.expect("it listens");
    assert_eq!(exchange.first.status(), 401);
    assert_eq!(cases::UNAUTHORIZED.rule.judge(&exchange), Verdict::Pass, "{}", exchange.to_text());
}

#[test]
fn case_names_are_unique_and_deviations_name_cases() {
    let frames = http2::cases();
    let names = rows(REQUESTS).chain(rows(RESPONSES)).map(|case| case.name);
    let mut names: Vec<_> = names.chain(frames.iter().map(|case| case.name)).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    assert_eq!((rows(REQUESTS).count(), frames.len()), (215, 147));
    for case in DEVIATIONS.iter().flat_map(|deviation| deviation.cases) {
        assert!(names.contains(case), "{case}");
        let reasons = DEVIATIONS.iter().filter(|deviation| deviation.cases.contains(case) && !deviation.reason.is_empty());
        assert_eq!(reasons.count(), 1, "{case}");
    }
}

/// Probes the server at `CONFORMANCE_ADDRESS`.
#[tokio::test]
#[ignore = "needs the address of a server"]
async fn address() {
    let address = std::env::var("CONFORMANCE_ADDRESS").expect("CONFORMANCE_ADDRESS=127.0.0.1:8080");
    let server = servers::at(address.parse().expect("an address and a port"));
    let results = all(&server).await.expect("it listens");
    for (name, (verdict, told)) in &results {
        println!("{verdict:?} {name}: {told}");
    }
    println!("pass, warn, fail: {:?} of {}", counts(&results), results.len());
}

/// The table of all servers. `UPDATE_CONFORMANCE=1` writes it to `docs/conformance.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nginx and HAProxy"]
async fn compare() {
    let servers = [
        servers::shield().await.expect("it starts"),
        servers::nginx().await.expect("nginx starts"),
        servers::haproxy().await.expect("HAProxy starts"),
        servers::hyper().await.expect("it starts"),
    ];
    let mut columns = Vec::new();
    for server in &servers {
        columns.push((server.name.as_str(), all(server).await.expect("it listens")));
    }
    let told = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().expect("git and date are there");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let (day, commit) = (told("date", &["-u", "+%-d %B %Y"]), told("git", &["rev-parse", "--short", "HEAD"]));
    let table = table(&columns, &format!("on {day}, at commit {commit}"));
    println!("{table}");
    if std::env::var_os("UPDATE_CONFORMANCE").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/conformance.md");
        std::fs::write(file, table).expect("it can be written");
    }
}

/// A row of a table in `docs/conformance.md`.
struct Row {
    name: &'static str,
    clause: &'static str,
    sent: String,
    allowed: String,
}

impl From<&Case> for Row {
    fn from(case: &Case) -> Self {
        let sent = case.answer.map_or_else(|| case.sent(), |answer| answer.escape_ascii().to_string());
        Self { name: case.name, clause: case.clause, sent, allowed: case.rule.allowed.into() }
    }
}

impl From<&http2::Case> for Row {
    fn from(case: &http2::Case) -> Self {
        Self { name: case.name, clause: case.clause, sent: case.sent(), allowed: case.allowed.text() }
    }
}

fn table(columns: &[(&str, Results)], ran: &str) -> String {
    let mut text = format!(
        "# Conformance, row by row\n\nWritten by `UPDATE_CONFORMANCE=1 cargo test --test conformance -- --ignored compare` {ran}. \
         [promises.md](promises.md#conformance) explains the tables and sums them up.\n",
    );
    let tables: [(&str, Vec<Row>); 3] = [
        ("Requests", rows(REQUESTS).map(Row::from).collect()),
        ("Answers of the upstream", rows(RESPONSES).map(Row::from).collect()),
        ("HTTP/2", http2::cases().iter().map(Row::from).collect()),
    ];
    for (title, rows) in &tables {
        let columns: Vec<_> =
            columns.iter().filter(|(_, results)| rows.iter().all(|row| results.contains_key(row.name))).collect();
        let _ = writeln!(text, "\n## {title}\n");
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let _ = writeln!(text, "| case | clause | sent | allowed | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|---|---|---|{}", "---|".repeat(names.len()));
        for Row { name, clause, sent, allowed } in rows {
            let told = |(_, results): &&(&str, Results)| {
                let (verdict, told) = &results[name];
                format!("{verdict:?}: {told}").to_lowercase()
            };
            let told: Vec<_> = columns.iter().map(told).collect();
            let _ = writeln!(text, "| {name} | {clause} | `{sent}` | {allowed} | {} |", told.join(" | "));
        }
        let total = |this: Verdict| {
            let count = |(_, results): &&(&str, Results)| rows.iter().filter(|row| results[row.name].0 == this).count();
            columns.iter().map(|column| count(column).to_string()).collect::<Vec<_>>().join(" | ")
        };
        for verdict in [Verdict::Pass, Verdict::Warn, Verdict::Fail] {
            let _ = writeln!(text, "| **{verdict:?}** | | | | {} |", total(verdict));
        }
    }
    let _ = writeln!(text, "\n## Deviations of the shield\n\n| rows | verdict | why |\n|---|---|---|");
    for Deviation { reason, verdict, cases } in DEVIATIONS {
        let _ = writeln!(text, "| {} | {verdict:?} | {reason} |", cases.join(", "));
    }
    text
}
