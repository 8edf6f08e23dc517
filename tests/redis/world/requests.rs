//! Requests of a simulated replica: they arrive, are sent to an exact upstream, and end or are cancelled according to their jobs.

use std::time::Duration;

use groq_limiter::{
    ActualUsage,
    limiter::{Admission, Grant},
    request::Cost,
    types::{Ns, Observation, RemoteQuota},
};

use super::{Message, Replica, Step, World};
use crate::{
    history::Job,
    start::{MS, SECOND, request},
};

impl World<'_> {
    pub(super) fn advance(&mut self, to: Ns) {
        // A limiter's wake-up can be in the past.
        let to = to.max(self.now);
        self.now = to;
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= to) else {
            let woken: Vec<usize> =
                (0..self.replicas.len()).filter(|&n| self.replicas[n].limiter.wake().is_some_and(|at| at <= to)).collect();
            return woken.into_iter().for_each(|number| self.dispatch(number));
        };
        let jobs = self.plan.jobs;
        match entry.remove() {
            Step::Arrive(n) => self.arrive(n, &jobs[n]),
            Step::Cancel(n) => {
                for number in 0..self.replicas.len() {
                    let Replica { limiter, waiting, .. } = &mut self.replicas[number];
                    if let Some((&id, _)) = waiting.iter().find(|&(_, &waiter)| waiter == n) {
                        waiting.remove(&id);
                        limiter.cancel(id, to);
                        self.outcome.cancelled += 1;
                        self.dispatch(number);
                    }
                }
            }
            Step::End(n, grant) => {
                let (job, number) = (&jobs[n], n % self.replicas.len());
                let completion = job.completion();
                let usage = ActualUsage::Tokens { prompt: job.prompt, completion: Some(completion), prompt_total: job.prompt };
                let held = i128::from(job.prompt + job.output_limit);
                self.tokens.add(i128::from(job.prompt + completion) - held, to);
                self.replicas[number].limiter.settle(*grant, usage, to);
                self.dispatch(number);
            }
            Step::Reconnect(number) => {
                self.replicas[number].limiter.share(None, to);
                self.dispatch(number);
            }
        }
    }

    fn arrive(&mut self, n: usize, job: &Job) {
        let number = n % self.replicas.len();
        let Replica { limiter, waiting, .. } = &mut self.replicas[number];
        match limiter.submit(&request(job.app, job.prompt, job.output_limit), self.now, self.now + 60 * SECOND, None, || true) {
            Ok(Admission::Granted(grant)) => self.send(n, grant),
            Ok(Admission::Queued(id)) => {
                waiting.insert(id, n);
                if let Some(after) = job.cancelled_after {
                    self.plan_at(self.now + after * MS, Step::Cancel(n));
                }
            }
            Err(_) => self.outcome.rejected += 1,
        }
        self.dispatch(number);
    }

    /// Dispatches the requests that can be sent, and sends the resulting message to the store.
    pub(super) fn dispatch(&mut self, number: usize) {
        let mut events = Vec::new();
        loop {
            self.replicas[number].limiter.dispatch(self.now, &mut events);
            if events.is_empty() {
                break;
            }
            for event in std::mem::take(&mut events) {
                match event {
                    (id, Ok(grant)) => {
                        let n = self.replicas[number].waiting.remove(&id).expect("a waiting request");
                        self.send(n, grant);
                    }
                    (id, Err(_)) => {
                        self.replicas[number].waiting.remove(&id).expect("a waiting request");
                        self.outcome.rejected += 1;
                    }
                }
            }
        }
        let Replica { limiter, message, .. } = &mut self.replicas[number];
        if let Some(transaction) = limiter.sharing(self.now).and_then(|sharing| sharing.transaction()) {
            assert!(message.is_none(), "one message in flight");
            let idle = limiter.in_flight() == 0 && limiter.waiting() == 0;
            let outstanding: i64 = transaction.cells.iter().map(|cell| cell.outstanding).sum();
            assert!(outstanding == 0 || !idle, "{outstanding} µs are outstanding without a request");
            *message = Some((Message::Transaction(transaction), self.now));
        }
        let replica = &self.replicas[number];
        assert!(replica.limiter.waiting() == 0 || replica.limiter.wake().is_some(), "requests wait without a scheduled wake-up");
    }

    fn send(&mut self, n: usize, mut grant: Grant) {
        let (job, now, number) = (&self.plan.jobs[n], self.now, n % self.replicas.len());
        self.replicas[number].limiter.sent(&mut grant, now);
        self.outcome.sends += 1;
        self.outcome.last = now;
        let Cost { input, output, .. } = grant.cost();
        self.outcome.beyond += u64::from(input) + u64::from(output) - job.prompt - job.output_limit;
        let ok = self.requests.as_mut().is_none_or(|exact| exact.admit(1, now))
            && self.tokens.admit(job.prompt + job.output_limit, now);
        let remaining = self.plan.tokens.saturating_sub(self.tokens.units());
        let shown = RemoteQuota { limit: self.plan.tokens, remaining };
        let tokens = Some(shown).filter(|_| self.plan.headers);
        let state = Observation { tokens, ..Observation::default() };
        let limiter = &mut self.replicas[number].limiter;
        if ok {
            limiter.observe(&mut grant, &state, now);
            self.plan_at(now + job.latency_ms * MS, Step::End(n, Box::new(grant)));
        } else {
            self.outcome.refused_by_groq += 1;
            let _place = limiter.refused(grant, None, &state, Some(Duration::from_secs(1)), now);
        }
    }

    pub(super) fn plan_at(&mut self, at: Ns, step: Step) {
        self.order += 1;
        self.agenda.insert((at, self.order), step);
    }
}
