//! Outcomes of requests.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde_json::Value;

use super::{BoxError, client::Answer};

#[derive(Default)]
pub(super) struct Tally {
    pub(super) sent: AtomicU64,
    pub(super) abandoned: AtomicU64,
    pub(super) hung: AtomicU64,
    answers: Mutex<BTreeMap<String, u64>>,
    violations: Mutex<Vec<String>>,
}

impl Tally {
    /// Counts a response and checks it against the contract.
    pub(super) fn judge(&self, asked: &str, answered: Result<Answer, BoxError>) {
        let (kind, faults) = match &answered {
            Err(error) => ("no response".to_owned(), vec![error.to_string()]),
            Ok(answer) if answer.status >= 400 => {
                let error = answer.error();
                (format!("{} {}", answer.status, error["code"].as_str().unwrap_or("-")), answer.faults())
            }
            Ok(answer) if answer.header("content-type").starts_with("text/event-stream") => check_stream(&answer.body),
            Ok(answer) => {
                let whole = serde_json::from_str::<Value>(&answer.body).is_ok();
                (answer.status.to_string(), if whole { vec![] } else { vec!["a 2xx that is not JSON".into()] })
            }
        };
        *self.answers.lock().expect("no panic with it").entry(kind).or_default() += 1;
        if !faults.is_empty() {
            let line = asked.lines().next().unwrap_or_default();
            let violations = format!("{line}: {faults:?}: {answered:.800?}");
            eprintln!("violation of the contract: {violations}");
            self.violations.lock().expect("no panic with it").push(violations);
        }
    }

    /// Prints the outcomes. Returns whether every request has one and none hung or violated the contract.
    pub(super) fn print(&self) -> bool {
        let (sent, abandoned, hung) = (self.sent.load(Relaxed), self.abandoned.load(Relaxed), self.hung.load(Relaxed));
        let answers = self.answers.lock().expect("no panic with it");
        let violations = self.violations.lock().expect("no panic with it").len() as u64;
        let answered: u64 = answers.values().sum();
        for (kind, count) in answers.iter() {
            println!("{count:>8}  {kind}");
        }
        println!("requests sent             {sent}");
        println!("responses as contracted   {}", answered - violations);
        println!("abandoned by clients      {abandoned}");
        println!("contract violations       {violations}");
        println!("hung                      {hung}");
        violations + hung == 0 && answered + abandoned + hung == sent
    }
}

/// Checks that a stream ends in `[DONE]` or in an error frame.
fn check_stream(body: &str) -> (String, Vec<String>) {
    let last = body.trim_end().rsplit("data: ").next().unwrap_or_default();
    if last == "[DONE]" {
        return ("200 stream".into(), vec![]);
    }
    let error = serde_json::from_str::<Value>(last).map(|mut frame| frame["error"].take()).unwrap_or_default();
    let documented = error["message"].is_string() && error["type"].is_string() && error["status_code"].is_u64();
    let code = error["code"].as_str().unwrap_or("-");
    (format!("200 stream, then {code}"), if documented { vec![] } else { vec![format!("it ends in {last:?}")] })
}
