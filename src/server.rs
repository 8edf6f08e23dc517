//! Who listens, accepts and drains? One thread per core, each with a runtime of its own; one of them accepts for all.
//!
//! No work is stolen between cores: a connection stays on the thread that it was dealt to, in turn.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use crate::{admin, proxy::Shield};

mod connection;
mod deadline;
mod guard;
mod listen;
mod tls;
mod write_timeout;

pub use connection::serve as serve_connection;
pub use listen::Listeners;
use tls::Certificate;

/// After `drain_timeout`, what streams have to say their last frame before they are cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long accepting rests when the machine has no descriptor left.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);
/// Sockets are taken so many at once: what has come for more waits in the kernel until these have been moved on, for a request
/// that has to queue with a thousand others at each step has left the caches each time.
const ROUND: usize = 64;
/// Sockets are looked at again after so many polls of tasks: more than a round needs.
const ROUND_POLLS: u32 = 256;

/// A shield that serves: its addresses, and the way to end it.
pub struct Running {
    /// Where apps connect.
    pub app: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    shield: Arc<Shield>,
    certificate: Option<Arc<Certificate>>,
    over: CancellationToken,
    workers: Vec<thread::JoinHandle<()>>,
}

/// An accepted connection on its way to its worker.
struct Dealt {
    socket: std::net::TcpStream,
    /// Its place under `max_connections`.
    place: Option<OwnedSemaphorePermit>,
    /// A drain waits for it from here on.
    tracked: TaskTrackerToken,
}

/// Serves on these listeners in threads of its own, until drained.
///
/// # Errors
/// When the system gives no thread, runtime or address, and when `server.tls` cannot be used; the error says why.
pub fn start(shield: Arc<Shield>, listeners: Listeners) -> io::Result<Running> {
    let app = listeners.app.local_addr()?;
    let admin = listeners.admin.local_addr()?;
    let threads = shield.settings.load().server.threads;
    let certificate = shield.settings.load().server.tls.as_ref().map(Certificate::load).transpose()?.map(Arc::new);
    let threads = threads.or_else(|| thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1).max(1);
    let over = CancellationToken::new();
    // What was started ends with a failure to start the rest.
    let guard = over.clone().drop_guard();
    let mut workers = Vec::with_capacity(threads);
    let mut hands = Vec::with_capacity(threads);
    let mut accepting = None;
    for index in 0..threads {
        let (hand, dealt) = mpsc::unbounded_channel();
        hands.push(hand);
        let (send_accepting, to_accept) = oneshot::channel();
        accepting.get_or_insert(send_accepting);
        let runtime =
            Builder::new_current_thread().enable_all().event_interval(ROUND_POLLS).max_io_events_per_tick(ROUND).build()?;
        let worker = Worker { shield: shield.clone(), certificate: certificate.clone(), over: over.clone(), dealt };
        workers.push(thread::Builder::new().name(format!("shield-{index}")).spawn(move || worker.work(runtime, to_accept))?);
    }
    workers.push(operate(&shield, &over, listeners.admin)?);
    let door = Door { shield: shield.clone(), listener: listeners.app, hands, over: over.clone() };
    if let Some(accepting) = accepting {
        // The receiver is a thread that has just been started and waits for this.
        let _ = accepting.send(door);
    }
    guard.disarm();
    Ok(Running { app, admin, shield, certificate, over, workers })
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

    /// Ends the drain now: streams get their error frame, what waits gets its 503, and what is left a second later is cut.
    pub fn cut_off(&self) {
        self.shield.shutdown.cutoff.cancel();
    }

    /// Cuts everything that still runs.
    pub fn end(&self) {
        self.over.cancel();
    }

    /// Where apps connect, as a URL that works on this machine.
    pub fn url(&self) -> String {
        url(if self.certificate.is_some() { "https" } else { "http" }, self.app)
    }

    /// The addresses, and what apps are to be told.
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
        tracing::info!("draining: {requests} request{plural}, at most {drain_timeout} s, again to end at once");
    }

    /// Blocks until the drain is complete.
    pub fn join(self) {
        for worker in self.workers {
            if worker.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
        if let Err(error) = self.shield.limits.save_now() {
            tracing::warn!(%error, "the levels cannot be saved to limits.state_file");
        }
        self.shield.limits.leave();
    }

    /// Drains and waits for the end of it.
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
    /// This signal, a second one, cut the drain short.
    Signalled(SignalKind),
}

/// Serves until SIGTERM or SIGINT has drained it. A second signal ends what still runs, with an error frame in streams; a third
/// does not wait for that. SIGHUP calls `reload`.
///
/// Tells systemd when it is ready and when it stops.
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
        tell_systemd(&[sd_notify::NotifyState::Ready]);
        let mut ended = Ended::Drained;
        loop {
            let signal = tokio::select! {
                _ = term.recv() => SignalKind::terminate(),
                _ = int.recv() => SignalKind::interrupt(),
                _ = hup.recv() => {
                    reload();
                    if let Err(error) = running.reload_certificate() {
                        tracing::error!(%error, "the old certificate stays");
                    }
                    continue;
                }
                () = running.over.cancelled() => return io::Result::Ok(ended),
            };
            let shutdown = &running.shield.shutdown;
            if !shutdown.draining.is_cancelled() {
                running.log_draining();
                tell_systemd(&[sd_notify::NotifyState::Stopping]);
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

/// The URL of a listening address; for one that stands for every interface, that of loopback.
fn url(scheme: &str, mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    format!("{scheme}://{address}")
}

/// Without systemd this does nothing.
fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// Serves operators in a thread of its own, drain included: a scrape takes no time from requests.
fn operate(
    shield: &Arc<Shield>,
    over: &CancellationToken,
    listener: std::net::TcpListener,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let (shield, over) = (shield.clone(), over.clone());
    thread::Builder::new().name("shield-admin".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = over.cancelled() => {}
                () = admin::serve(listener, shield.clone()) => {}
                // The lines' timers, and levels saved once a second.
                () = shield.limits.run() => {}
                () = shield.upstream.reap_idle() => {}
            }
        });
    })
}

/// What the accepting thread has.
struct Door {
    shield: Arc<Shield>,
    listener: std::net::TcpListener,
    hands: Vec<mpsc::UnboundedSender<Dealt>>,
    over: CancellationToken,
}

/// One worker thread: serves what it is dealt; the first one also opens the door.
struct Worker {
    shield: Arc<Shield>,
    certificate: Option<Arc<Certificate>>,
    over: CancellationToken,
    dealt: mpsc::UnboundedReceiver<Dealt>,
}

impl Worker {
    fn work(mut self, runtime: Runtime, to_accept: oneshot::Receiver<Door>) {
        runtime.block_on(async {
            let over = self.over.clone();
            let accepting = async {
                if let Ok(door) = to_accept.await {
                    door.keep().await;
                }
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = async { tokio::join!(self.serve(), accepting); over.cancelled().await } => {}
            }
        });
        // A name look-up that hangs must not hold the end up.
        runtime.shutdown_background();
    }

    async fn serve(&mut self) {
        while let Some(Dealt { socket, place, tracked }) = self.dealt.recv().await {
            let socket = socket.set_nodelay(true).and_then(|()| TcpStream::from_std(socket));
            let socket = match socket {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "an accepted connection cannot be served");
                    continue;
                }
            };
            let (shield, held) = (self.shield.clone(), (place, tracked));
            match self.certificate.clone() {
                None => tokio::spawn(connection::serve(socket, shield, held)),
                Some(certificate) => tokio::spawn(serve_tls(socket, certificate, shield, held)),
            };
        }
    }
}

async fn serve_tls<T>(socket: TcpStream, certificate: Arc<Certificate>, shield: Arc<Shield>, held: T) {
    let header_timeout = shield.settings.load().server.header_timeout;
    match Box::pin(timeout(header_timeout, certificate.accept(socket))).await {
        Ok(Ok(socket)) => connection::serve(socket, shield, held).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS with a client"),
        Err(_) => tracing::debug!("a client did not finish its TLS handshake in time"),
    }
}

impl Door {
    /// Accepts until draining, then waits for what runs, then ends every worker.
    async fn keep(self) {
        let Self { shield, listener, hands, over } = self;
        let drain_timeout = shield.settings.load().server.drain_timeout;
        if let Err(error) = accept(listener, &shield, hands).await {
            tracing::error!(%error, "the listener cannot be used");
            shield.shutdown.draining.cancel();
        }
        shield.connections.close();
        tokio::select! {
            () = shield.connections.wait() => {}
            () = shield.shutdown.cutoff.cancelled() => {}
            () = sleep(drain_timeout) => {
                tracing::warn!(connections = shield.connections.len(), "drain_timeout is over: ending streams");
                shield.shutdown.cutoff.cancel();
            }
        }
        let cut_off = shield.shutdown.cutoff.is_cancelled();
        if cut_off && timeout(LAST_WORDS, shield.connections.wait()).await.is_err() {
            tracing::warn!(connections = shield.connections.len(), "connections cut");
        }
        over.cancel();
    }
}

/// Deals connections to the workers in turn, until draining. At `max_connections` the next ones wait in the listener's backlog.
async fn accept(listener: std::net::TcpListener, shield: &Shield, hands: Vec<mpsc::UnboundedSender<Dealt>>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(shield.settings.load().server.max_connections));
    let mut turns = hands.iter().cycle();
    let mut deal = |socket: std::net::TcpStream, place| {
        let tracked = shield.connections.token();
        if let Some(hand) = turns.next() {
            // A worker that is gone takes its connection with it: the process is ending.
            let _ = hand.send(Dealt { socket, place, tracked });
        }
    };
    let next = async || {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (socket, _) = listener.accept().await?;
        io::Result::Ok((socket.into_std()?, Some(place)))
    };
    loop {
        let next = tokio::select! {
            biased;
            next = next() => next,
            () = shield.shutdown.draining.cancelled() => break,
        };
        match next {
            Ok((socket, place)) => deal(socket, place),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(NO_DESCRIPTORS).await;
            }
        }
    }
    // Who is in the backlog already would be reset by the close.
    let listener = listener.into_std()?;
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true)?;
        deal(socket, None);
    }
    Ok(())
}
