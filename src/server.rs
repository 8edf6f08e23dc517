//! The server: its threads, its listeners, its shutdown.
//!
//! There is one worker thread per core, each with a runtime of its own and without work stealing: a connection stays on the
//! thread that it was given to when it was accepted. The admin listener has a thread of its own.
//!
//! | file | what it does |
//! |---|---|
//! | `listener` | binds or takes over sockets, accepts connections, drains |
//! | `worker` | one worker thread |
//! | `tls` | the certificate, which can be reloaded |
//! | `connection` | hyper's connection (HTTP/1.1 or HTTP/2), its time limits, its end |
//! | `guard` | what hyper reads and writes over HTTP/1.1 |

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    sync::Arc,
    thread,
};

use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{accounts, admin, config::Settings, proxy::Shield};

mod connection;
mod deadline;
mod guard;
mod listener;
mod tls;
mod worker;
mod write_timeout;

pub use connection::serve as serve_connection;
use listener::Acceptor;
pub use listener::Listeners;
use tls::Certificate;
use worker::Worker;

/// Maximum I/O events per tick. The requests of a batch take turns at each step, so a large batch evicts their state from the
/// cache between two steps: with 64 events instead of 16 a request took 3 to 10 % more CPU at 256 connections.
const EVENTS_PER_TICK: usize = 16;
/// Task polls between two polls for I/O events: more than a batch needs.
const EVENT_INTERVAL: u32 = 256;

/// A running shield: its addresses, and the handle to stop it.
pub struct Running {
    /// The address for apps.
    pub app: SocketAddr,
    /// The admin address.
    pub admin: SocketAddr,
    shield: Arc<Shield>,
    certificate: Option<Arc<Certificate>>,
    /// Stops every thread.
    stopped: CancellationToken,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Whether the certificate of `server.tls`, if any, can be used with its key.
///
/// # Errors
/// What is wrong with the files.
pub fn check_tls(settings: &Settings) -> io::Result<()> {
    settings.server.tls.as_ref().map_or(Ok(()), |files| Certificate::load(files).map(drop))
}

/// Serves on these listeners in threads of its own until drained.
///
/// # Errors
/// If a thread or runtime cannot be started, or `server.tls` cannot be used.
pub fn start(shield: Arc<Shield>, listeners: Listeners) -> io::Result<Running> {
    let app = listeners.app.local_addr()?;
    let admin = listeners.admin.local_addr()?;
    let threads = shield.settings.load().server.threads;
    let certificate = shield.settings.load().server.tls.as_ref().map(Certificate::load).transpose()?.map(Arc::new);
    let threads = threads.or_else(|| thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1).max(1);
    let stopped = CancellationToken::new();
    // If a later step fails, the threads that were started before it stop.
    let guard = stopped.clone().drop_guard();
    let mut handles = Vec::with_capacity(threads);
    let mut workers = Vec::with_capacity(threads);
    let mut first = None;
    for index in 0..threads {
        let (sender, accepted) = mpsc::unbounded_channel();
        workers.push(sender);
        let (give, task) = oneshot::channel();
        first.get_or_insert(give);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .max_io_events_per_tick(EVENTS_PER_TICK)
            .build()?;
        let worker = Worker { shield: shield.clone(), certificate: certificate.clone(), stopped: stopped.clone(), accepted };
        handles.push(thread::Builder::new().name(format!("shield-{index}")).spawn(move || worker.run(runtime, task))?);
    }
    handles.push(serve_admin(&shield, &stopped, listeners.admin)?);
    let acceptor = Acceptor { shield: shield.clone(), listener: listeners.app, workers, stopped: stopped.clone() };
    if let Some(first) = first {
        // The receiver is the first worker, which has just been started and waits for it.
        let _ = first.send(acceptor.run());
    }
    guard.disarm();
    Ok(Running { app, admin, shield, certificate, stopped, threads: handles })
}

impl Running {
    /// Stops accepting; running requests finish within `drain_timeout`.
    pub fn drain(&self) {
        self.shield.shutdown.draining.cancel();
    }

    /// Reads the certificate and its key again; a bad file keeps the old ones.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn reload_certificate(&self) -> io::Result<()> {
        self.certificate.as_ref().map_or(Ok(()), |certificate| certificate.reload())
    }

    /// Ends the drain now: streams get their error frame, waiting requests a 503, and what is left a second later is aborted.
    pub fn cut_off(&self) {
        self.shield.shutdown.cutoff.cancel();
    }

    /// Aborts everything that is still running.
    pub fn end(&self) {
        self.stopped.cancel();
    }

    /// The URL for apps on this machine.
    pub fn url(&self) -> String {
        url(if self.certificate.is_some() { "https" } else { "http" }, self.app)
    }

    /// Logs the addresses and the URLs for apps.
    pub fn log_ready(&self) {
        let url = self.url();
        tracing::info!(
            app = %self.app,
            admin = %self.admin,
            GROQ_BASE_URL = %url,
            OPENAI_BASE_URL = %format_args!("{url}/openai/v1"),
            page = %format_args!("{}/", self::url("http", self.admin)),
            "ready"
        );
    }

    fn log_draining(&self) {
        let requests = self.shield.telemetry.in_flight();
        let drain_timeout = self.shield.settings.load().server.drain_timeout.as_secs_f64();
        let plural = if requests == 1 { "" } else { "s" };
        tracing::info!("draining: {requests} request{plural} in flight, at most {drain_timeout} s; signal again to end at once");
    }

    /// Blocks until the drain is complete.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a server thread panicked");
            }
        }
        if let Some(file) = self.shield.ledger_file()
            && let Err(error) = accounts::file::save(self.shield.accounts.ledger(), &file)
        {
            tracing::warn!(%error, "cannot save the usage of apps beside limits.state_file");
        }
        match Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime.block_on(self.shield.accounts.clone().flush()),
            Err(error) => tracing::warn!(%error, "cannot report the last usage of apps to other replicas"),
        }
        if let Err(error) = self.shield.limits.close() {
            tracing::warn!(%error, "cannot save quotas to limits.state_file");
        }
        if let Err(error) = self.shield.caps.close() {
            tracing::warn!(%error, "cannot save the caps of apps beside limits.state_file");
        }
    }

    /// Drains, and waits for its end.
    pub async fn drained(self) {
        self.drain();
        if tokio::task::spawn_blocking(|| self.join()).await.is_err() {
            tracing::error!("the drain panicked");
        }
    }
}

/// How [`run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The drain was completed.
    Drained,
    /// A second signal, this one, ended the drain early.
    Signalled(SignalKind),
}

/// Serves until SIGTERM or SIGINT has drained it. A second signal ends what still runs, with an error frame in streams; a third
/// does not wait for that. SIGHUP calls `reload`.
///
/// Notifies systemd when the shield is ready and when it stops.
///
/// # Errors
/// As [`start`], and when signals cannot be listened to.
pub fn run(shield: Arc<Shield>, listeners: Listeners, mut reload: impl FnMut()) -> io::Result<Ended> {
    let running = start(shield, listeners)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hup = signal(SignalKind::hangup())?;
        running.log_ready();
        notify_systemd(&[sd_notify::NotifyState::Ready]);
        let mut ended = Ended::Drained;
        loop {
            let signal = tokio::select! {
                _ = term.recv() => SignalKind::terminate(),
                _ = int.recv() => SignalKind::interrupt(),
                _ = hup.recv() => {
                    reload();
                    if let Err(error) = running.reload_certificate() {
                        tracing::error!(%error, "the certificate was not reloaded, the old one stays in use");
                    }
                    continue;
                }
                () = running.stopped.cancelled() => return io::Result::Ok(ended),
            };
            let shutdown = &running.shield.shutdown;
            if !shutdown.draining.is_cancelled() {
                running.log_draining();
                notify_systemd(&[sd_notify::NotifyState::Stopping]);
                running.drain();
            } else if ended == Ended::Drained {
                tracing::warn!("second signal: ending at once");
                ended = Ended::Signalled(signal);
                running.cut_off();
            } else {
                running.end();
            }
        }
    })?;
    running.join();
    tracing::info!("stopped");
    Ok(ended)
}

/// The URL of a listening address; loopback in place of an address for all interfaces.
fn url(scheme: &str, mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    format!("{scheme}://{address}")
}

/// Notifies systemd, if it started this process.
fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Serves the admin listener in a separate thread, so a scrape does not delay requests. Stops last.
fn serve_admin(
    shield: &Arc<Shield>,
    stopped: &CancellationToken,
    listener: std::net::TcpListener,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let (shield, stopped) = (shield.clone(), stopped.clone());
    thread::Builder::new().name("shield-admin".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = admin::serve(listener, shield.clone()) => {}
                // The limiters' timer; their state is saved once a second.
                () = shield.limits.run() => {}
                () = shield.caps.run() => {}
                () = accounts::file::keep_saved(shield.accounts.ledger().clone(), shield.ledger_file()) => {}
                () = shield.accounts.clone().synchronize() => {}
                () = shield.upstream.reap_idle() => {}
            }
        });
    })
}
