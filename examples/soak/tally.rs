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
    pub(super) left: AtomicU64,
    pub(super) hung: AtomicU64,
    answers: Mutex<BTreeMap<String, u64>>,
    off: Mutex<Vec<String>>,
}

impl Tally {
    /// Checks an answer against the contract.
    pub(super) fn judge(&self, asked: &str, answered: Result<Answer, BoxError>) {
        let (kind, faults) = match &answered {
            Err(error) => ("no answer".to_owned(), vec![error.to_string()]),
            Ok(answer) if answer.status >= 400 => {
                let error = answer.error();
                (format!("{} {}", answer.status, error["code"].as_str().unwrap_or("-")), answer.faults())
            }
            Ok(answer) if answer.header("content-type").starts_with("text/event-stream") => ended(&answer.body),
            Ok(answer) => {
                let whole = serde_json::from_str::<Value>(&answer.body).is_ok();
                (answer.status.to_string(), if whole { vec![] } else { vec!["a success that is not JSON".into()] })
            }
        };
        *self.answers.lock().expect("no panic with it").entry(kind).or_default() += 1;
        if !faults.is_empty() {
            let line = asked.lines().next().unwrap_or_default();
            let off = format!("{line}: {faults:?}: {answered:.800?}");
            eprintln!("off the contract: {off}");
            self.off.lock().expect("no panic with it").push(off);
        }
    }

    /// Prints the outcomes; whether every request has one, and none breaks the contract or hangs.
    pub(super) fn tell(&self) -> bool {
        let (sent, left, hung) = (self.sent.load(Relaxed), self.left.load(Relaxed), self.hung.load(Relaxed));
        let answers = self.answers.lock().expect("no panic with it");
        let off = self.off.lock().expect("no panic with it").len() as u64;
        let answered: u64 = answers.values().sum();
        for (kind, count) in answers.iter() {
            println!("{count:>8}  {kind}");
        }
        println!("requests sent             {sent}");
        println!("answered as contracted    {}", answered - off);
        println!("left by their clients     {left}");
        println!("off the contract          {off}");
        println!("hung                      {hung}");
        off + hung == 0 && answered + left + hung == sent
    }
}

/// Checks that a stream ends in `[DONE]` or in an error frame.
fn ended(body: &str) -> (String, Vec<String>) {
    let last = body.trim_end().rsplit("data: ").next().unwrap_or_default();
    if last == "[DONE]" {
        return ("200 stream".into(), vec![]);
    }
    let error = serde_json::from_str::<Value>(last).map(|mut frame| frame["error"].take()).unwrap_or_default();
    let documented = error["message"].is_string() && error["type"].is_string() && error["status_code"].is_u64();
    let code = error["code"].as_str().unwrap_or("-");
    (format!("200 stream, then {code}"), if documented { vec![] } else { vec![format!("it ends in {last:?}")] })
}
