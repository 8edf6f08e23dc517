//! The store: the real script in a real Redis, with virtual time and a network whose outages depend on the seed.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use groq_limiter::store::{
    protocol::{Answer, State, Transaction},
    redis::SCRIPT,
    simulated::StoreEnd,
};
use redis::Connection;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The timeout of a transaction, like `store.timeout`.
const TIMEOUT: Duration = Duration::from_millis(250);
/// Interval of attempts to reach an unreachable store.
const RECONNECT: Duration = Duration::from_millis(500);
/// Start of the server's clock in µs.
const EPOCH: u64 = 1_790_000_000_000_000;

/// A redis-server process; killed on drop.
pub(crate) struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a free port").port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("redis-server is installed");
        let mut said = BufReader::new(process.stdout.take().expect("piped")).lines();
        assert!(said.any(|line| line.is_ok_and(|line| line.contains("Ready to accept connections"))), "redis-server serves");
        Self { process, port }
    }

    /// Deletes all data and returns a connection.
    pub(crate) fn emptied(&self) -> Connection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        redis::cmd("FLUSHALL").exec(&mut connection).expect("flushed");
        connection
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("ended");
    }
}

/// A period in which the store is unreachable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    from: Instant,
    until: Instant,
    /// Whether connections are closed at once; otherwise bytes are dropped.
    breaks: bool,
    /// Whether the store has lost its data at the end.
    emptied: bool,
}

/// A few consecutive outages within `span`.
pub(crate) fn outages(random: &mut Rng, span: Duration) -> Vec<Outage> {
    let mut from = Instant::now();
    let outages = (0..random.usize(1..4)).map(|_| {
        from += span.mul_f64(random.f64() / 3.0);
        let until = from + Duration::from_millis(random.u64(100..10_000));
        let outage = Outage { from, until, breaks: random.bool(), emptied: random.bool() };
        from = until;
        outage
    });
    outages.collect()
}

/// Counts of transactions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried {
    pub(crate) answered: Arc<AtomicU64>,
    pub(crate) lost: Arc<AtomicU64>,
}

/// The store and the network to it.
struct Store {
    redis: Mutex<Connection>,
    start: Instant,
    outages: Vec<Outage>,
}

/// Serves the limiters' transactions.
pub(crate) async fn serve(mut end: StoreEnd, redis: Connection, mut random: Rng, outages: Vec<Outage>, carried: Carried) {
    let store = Store { redis: redis.into(), start: Instant::now(), outages };
    let store = Arc::new(store);
    let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
    let mut breaks: Vec<_> = store.outages.iter().filter(|outage| outage.breaks).map(|outage| outage.from).collect();
    breaks.reverse();
    let mut look = Instant::now();
    loop {
        let broken = breaks.last().copied();
        tokio::select! {
            biased;
            Some(()) = failures.recv() => end.lost(),
            () = sleep_until(broken.unwrap_or(look)), if broken.is_some() => {
                breaks.pop();
                end.lost();
            }
            () = sleep_until(look) => {
                if store.outage().is_none() {
                    end.reached();
                }
                look += RECONNECT;
            }
            call = end.next() => {
                let Some(call) = call else { return };
                let (store, failed, carried) = (store.clone(), failed.clone(), carried.clone());
                let latencies = [0, 0].map(|_| Duration::from_micros(random.u64(100..30_000)));
                tokio::spawn(async move {
                    let there_and_back = store.carry(call.transaction(), call.limiter(), latencies);
                    match timeout(TIMEOUT, there_and_back).await {
                        Ok(answer) => {
                            carried.answered.fetch_add(1, Relaxed);
                            call.answer(Some(&answer));
                        }
                        Err(_) => {
                            carried.lost.fetch_add(1, Relaxed);
                            // Fails only if the run is over and the loop above has ended.
                            let _ = failed.send(());
                            call.answer(None);
                        }
                    }
                });
            }
        }
    }
}

impl Store {
    fn outage(&self) -> Option<&Outage> {
        let now = Instant::now();
        self.outages.iter().find(|outage| (outage.from..outage.until).contains(&now))
    }

    /// Never returns if the store is unreachable when the request or its reply arrives.
    async fn carry(&self, transaction: &Transaction, limiter: u64, [there, back]: [Duration; 2]) -> Answer {
        sleep(there).await;
        self.pass().await;
        let answer = self.run(transaction, limiter);
        sleep(back).await;
        self.pass().await;
        answer
    }

    async fn pass(&self) {
        if self.outage().is_some() {
            std::future::pending().await
        }
    }

    /// Runs the script at the virtual time.
    fn run(&self, transaction: &Transaction, limiter: u64) -> Answer {
        let time = EPOCH + u64::try_from(self.start.elapsed().as_micros()).expect("within 584,000 years");
        // After a loss of data the store is another one, so its keys have another prefix.
        let now = Instant::now();
        let life = self.outages.iter().filter(|outage| outage.emptied && outage.until <= now).count();
        let script = format!(
            "local real = redis
            local redis = setmetatable({{ call = function(name, ...)
                if name == 'TIME' then return {{ ARGV[4], ARGV[5] }} end
                return real.call(name, ...)
            end }}, {{ __index = real }})
            {SCRIPT}"
        );
        let key = format!("{{{life}:{limiter}}}");
        let request = serde_json::to_string(transaction).expect("JSON");
        let script = redis::Script::new(&script);
        let mut call = script.key(&key);
        call.arg(request).arg("replica").arg("news").arg(time / 1_000_000).arg(time % 1_000_000);
        let (granted, wait, state): (bool, i64, State) =
            call.invoke(&mut *self.redis.lock().expect("no panic while locked")).expect("the script runs");
        Answer { granted, wait, state: state.seen_by("replica") }
    }
}
