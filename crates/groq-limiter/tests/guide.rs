//! Runs the example of the crate's documentation against the simulated Groq, as one process and as two that share a Redis.

use std::{
    env,
    process::{Child, Command},
};

use groq_sim::{ModelLimits, Options, Plan, Sim, Stats};

#[path = "../examples/call_groq.rs"]
mod call_groq;

/// Not a test: the other tests run this function in processes of their own.
#[test]
fn program() {
    if env::var_os("GROQ_BASE_URL").is_some() {
        call_groq::main().expect("every call succeeds");
    }
}

fn start(base: &str, redis: Option<&str>) -> Child {
    let mut program = Command::new(env::current_exe().expect("a path"));
    program.args(["--exact", "program"]).env("GROQ_BASE_URL", base).env("GROQ_API_KEY", "gsk_test");
    match redis {
        Some(url) => program.env("REDIS_URL", url),
        None => program.env_remove("REDIS_URL"),
    };
    program.spawn().expect("it starts")
}

/// Runs `count` processes and returns the statistics of the simulated Groq. One process uses most of the limit; two have to wait.
async fn run_processes(count: usize, redis: Option<&str>) -> Stats {
    let limits = ModelLimits { requests_per_minute: Some(30), tokens_per_minute: Some(8000), ..ModelLimits::default() };
    let sim = Sim::new(Options { plan: Plan::uniform(limits), ..Options::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = tokio::spawn({
        let sim = sim.clone();
        async move { sim.serve(listener).await }
    });
    let mut programs: Vec<Child> = (0..count).map(|_| start(&base, redis)).collect();
    while let Some(mut program) = programs.pop() {
        let ended = tokio::task::spawn_blocking(move || program.wait()).await.expect("waited").expect("it ends");
        assert!(ended.success(), "{ended}");
    }
    serving.abort();
    sim.stats()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process() {
    let stats = run_processes(1, None).await;
    let [scope] = &stats.scopes[..] else { panic!("{stats:?}") };
    assert_eq!((scope.admitted, scope.refused.len()), (12, 0), "{stats:?}");
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_the_limits() {
    use std::{process::Stdio, time::Duration};

    use tokio::time::Instant;

    let folder = tempfile::tempdir().expect("a folder");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("an address").port();
    drop(socket);
    let mut server = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server starts: install Debian's package redis-server");
    let url = format!("redis://127.0.0.1:{port}");
    let client = redis::Client::open(url.as_str()).expect("a URL");
    let start = Instant::now();
    while client.get_connection().is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "redis-server does not serve");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = run_processes(2, Some(&url)).await;
    let mut connection = client.get_connection().expect("a connection");
    let records: Vec<String> = redis::cmd("KEYS").arg("groq-shield:limits:{*}").query(&mut connection).expect("keys");
    server.kill().expect("killed");
    server.wait().expect("ended");
    let [scope] = &stats.scopes[..] else { panic!("{stats:?}") };
    assert_eq!((scope.admitted, scope.refused.len()), (24, 0), "{stats:?}");
    assert_eq!(records.len(), 1, "the record of one limiter: {records:?}");
}
