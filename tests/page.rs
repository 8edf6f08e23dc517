//! The page in a real Chromium; and no page of another origin can read the admin listener.

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc, time::Duration};

use groq_limiter::{AdmissionRequest, CostEstimate};
use groq_shield::{
    admin,
    config::{App, Class, FallbackReason, ModelLimits, Settings},
    groq::Usage,
    proxy::Shield,
    telemetry::{ObservedRefusal, Record},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Instant, sleep, timeout},
};

/// Longest time for a browser run, its start included, on a slow machine.
const BROWSER: Duration = Duration::from_secs(90);
/// Between two polls.
const PAUSE: Duration = Duration::from_millis(50);

async fn shield_with_admin() -> (Arc<Shield>, SocketAddr) {
    shield_with_admin_and(Settings::default()).await
}

async fn shield_with_admin_and(mut settings: Settings) -> (Arc<Shield>, SocketAddr) {
    let limits = ModelLimits { requests_per_minute: Some(10), tokens_per_minute: Some(100_000), ..ModelLimits::default() };
    settings.limits.model.insert("busy".into(), limits);
    let shield = Shield::new(settings).expect("the defaults name no file");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(admin::serve(listener, shield.clone()));
    (shield, address)
}

/// Queues more requests of one app than its limit lets through at once; they wait as long as the test runs.
fn queue_requests(shield: &Arc<Shield>, app: &str) {
    for _ in 0..30 {
        let (limits, app) = (shield.limits.clone(), Arc::from(app));
        tokio::spawn(async move {
            let request = AdmissionRequest {
                organization: "acme".into(),
                key: 0,
                model: "busy".into(),
                tier: "on_demand".into(),
                app,
                weight: 1.0,
                class: Class::Batch,
                cost: CostEstimate::Tokens { prompt: 100, max_completion_tokens: Some(100) },
                bytes: 400,
            };
            let mut reservation = limits.reserve(&request, Instant::now() + 5 * BROWSER, None).await.expect("a long max wait");
            reservation.sent(Instant::now());
            sleep(5 * BROWSER).await;
        });
    }
}

/// The page's document after its scripts have run, and the browser's console output.
async fn rendered(url: &str, picture: Option<&Path>) -> (String, String) {
    let browser = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
    });
    let browser = browser.expect("no Chromium on the PATH: install it (apt-get install chromium), as .ci/run does");
    let profile = TempDir::new().expect("a folder");
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .args(["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=4000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match picture {
        Some(picture) => command.arg("--window-size=390,1600").arg(format!("--screenshot={}", picture.display())),
        None => command.arg("--dump-dom"),
    };
    let output = timeout(BROWSER, command.arg(url).output()).await.expect("the browser ends").expect("the browser starts");
    let log = String::from_utf8_lossy(&output.stderr);
    let console = log.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_state_and_escapes_names() {
    let (shield, address) = shield_with_admin().await;
    let mut record = Record::new(&shield.telemetry, "/openai/v1/chat/completions", Instant::now());
    (record.model, record.status, record.truncated) = ("m".into(), 200, true);
    drop(record);
    queue_requests(&shield, "<b>app</b>");
    // The first request of a limiter is its probe. The others wait for its response first, then for a limit.
    let blocked = async {
        while shield.limits.snapshot().iter().all(|limiter| limiter.blocked_by.is_none()) {
            sleep(PAUSE).await
        }
    };
    timeout(BROWSER, blocked).await.expect("the queue waits for RPM");
    shield.telemetry.account_blocked(&"acme".into(), "blocked_api_access");
    shield.telemetry.reload_refused("line 3: unknown key <img src=x onerror=alert(1)>");
    let (page, console) = rendered(&format!("http://{address}/"), None).await;
    assert_eq!(console, "", "{page}");
    assert!(page.contains(r#"data-state="live""#), "{page}");
    assert!(page.contains("The configuration was rejected at"), "{page}");
    assert!(page.contains("Groq has blocked the organization acme (blocked_api_access) since"), "{page}");
    assert!(page.contains("1 response of m had no content, the last one at"), "{page}");
    assert!(page.contains("unknown key &lt;img src=x onerror=alert(1)&gt;"), "{page}");
    assert!(page.contains(r#"aria-label="Requests over the last 15 minutes: ended 1""#), "{page}");

    for shown in
        ["busy", "&lt;b&gt;app&lt;/b&gt;", "the queue waits for this", "Waiting for RPM; the next one is sent in", " waiting · "]
    {
        assert!(page.contains(shown), "{shown} in {page}");
    }

    for shown in ["Last requests", "<td class=\"\" data-name=\"Status\" title=\"200\"", "<option value=\"m\">m</option>"] {
        assert!(page.contains(shown), "{shown} in {page}");
    }

    let folder = TempDir::new().expect("a folder");
    let picture = folder.path().join("page.png");
    rendered(&format!("http://{address}/"), Some(&picture)).await;
    let picture = std::fs::read(picture).expect("a picture");
    // A blank page compresses to almost nothing.
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{} bytes", picture.len());
}

/// A finished request of `app`.
fn request(shield: &Arc<Shield>, app: &str, model: &str) {
    let mut record = Record::new(&shield.telemetry, "/openai/v1/chat/completions", Instant::now());
    (record.app, record.model, record.status) = (app.into(), model.into(), 200);
    record.usage = Usage { prompt: 1200, cached: 200, completion: Some(300) };
    record.nano_usd = 2_500_000_000;
}

/// A shield with an app that has caps and budgets, and one with the most hostile name that configuration and headers allow.
async fn with_apps() -> (Arc<Shield>, SocketAddr) {
    let hostile = format!("\"><img src=x onerror=alert(1)>\n{}", "w".repeat(10_000));
    let app = App {
        name: "nightly".into(),
        tokens_per_minute: Some(20_000),
        tokens_per_day: Some(1000),
        cost_per_month: Some(10.0),
        ..App::default()
    };
    let everyone_else = App { name: "*".into(), tokens_per_day: Some(1000), ..App::default() };
    let (shield, address) = shield_with_admin_and(Settings { app: vec![app, everyone_else], ..Settings::default() }).await;
    for (app, model) in [("nightly", "m"), ("nightly", "n"), (&hostile, "m")] {
        request(&shield, app, model);
    }
    shield.telemetry.fell_back("m", "n", FallbackReason::DailyLimit);
    shield.telemetry.unpriced(&"nightly".into(), &"m".into());
    (shield, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_usage_and_remaining_budgets_of_apps() {
    let (shield, address) = with_apps().await;
    shield.telemetry.observed_wait("m", Duration::from_secs(2));
    shield.telemetry.observed_refusal(ObservedRefusal::AppBudget);
    shield.telemetry.observed_fallback("m", "n", FallbackReason::TooLarge);
    let (page, console) = rendered(&format!("http://{address}/"), None).await;
    assert_eq!(console, "", "{page}");
    for shown in [
        "2 requests · 2,400 prompt (400 cached) and 600 completion tokens",
        "$5.00",
        "tokens per minute",
        "20,000 left of 20,000",
        "tokens per day",
        "1,000 left of 1,000",
        "$10.00 left of $10.00",
        "resets in ",
        "2 models",
        "without a price, not counted in its budgets in USD: m",
        "&lt;img src=x onerror=alert(1)&gt;",
        "m → n",
        "daily limit",
        "would have been refused",
        "app budget",
        "of these by another model",
        "m → n, too large",
    ] {
        assert!(page.contains(shown), "{shown} in {page}");
    }
    assert!(!page.contains("<img"), "{page}");
}

/// Renders the page in a frame 375 px wide, a phone's width, since browser windows cannot be that narrow. The frame comes from a
/// server that relays the admin listener without its anti-framing headers.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_phone() {
    let (shield, admin) = with_apps().await;
    for n in 0..30 {
        request(&shield, &format!("app-{n}"), "a-model-with-a-rather-long-name/instruct-preview-0905");
    }
    let frame = r#"<!doctype html><iframe id="phone" src="/" scrolling="no" style="width: 375px; height: 800px; border: 0"></iframe><pre id="widths"></pre><script>
        setTimeout(() => {
          const page = document.getElementById("phone").contentDocument;
          const apps = page.querySelectorAll(".account");
          const cut = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > 375.5).map(e => e.tagName + "." + e.className);
          document.getElementById("widths").textContent = page.documentElement.scrollWidth + " of 375, " + apps.length + " apps, beyond: " + cut;
        }, 3000);
        </script>"#;
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/phone", server.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = server.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 8192];
                let Ok(length) = socket.read(&mut head).await else { return };
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let body = if path == "/phone" { frame.to_owned() } else { body_of(admin, path).await };
                let kind = if path == "/status" || path == "/requests" { "application/json" } else { "text/html; charset=utf-8" };
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // The browser may close its connection early.
                let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    let (page, _) = rendered(&url, None).await;
    let widths = page.split("<pre id=\"widths\">").nth(1).and_then(|rest| rest.split("</pre>").next()).expect("the widths");
    assert_eq!(widths, "375 of 375, 20 apps, beyond: ");
}

/// The body of an admin response.
async fn body_of(admin: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(admin).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_cannot_read_the_admin_listener() {
    let (shield, address) = shield_with_admin().await;
    shield.telemetry.reload_refused("canary");
    let other_origin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", other_origin.local_addr().expect("an address"));
    let attack = format!(
        r#"<!doctype html><iframe id="frame" src="http://{address}/"></iframe><pre id="learnt"></pre><script>
        const learnt = document.getElementById("learnt");
        const say = text => learnt.append(text + "\n");
        (async () => {{
          for (const path of ["status", "metrics", "", "livez"]) {{
            await fetch("http://{address}/" + path).then(r => r.text()).then(t => say("READ " + path + t), () => say("refused " + path));
            await fetch("http://{address}/" + path, {{ mode: "no-cors" }}).then(r => say("opaque " + r.type), () => say("blocked " + path));
          }}
          try {{ say("READ frame " + document.getElementById("frame").contentDocument.body.textContent); }} catch {{ say("refused frame"); }}
          say("done");
        }})();
        </script>"#
    );
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = other_origin.accept().await {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                attack.len()
            );
            let mut request = [0; 4096];
            // The browser may close its connection early.
            if socket.read(&mut request).await.is_ok() {
                let _ = socket.write_all(head.as_bytes()).await;
                let _ = socket.write_all(attack.as_bytes()).await;
            }
        }
    });
    let (page, _) = rendered(&url, None).await;
    let learnt = page.split("<pre id=\"learnt\">").nth(1).and_then(|rest| rest.split("</pre>").next()).expect("the attack's log");
    assert!(learnt.contains("done") && learnt.contains("refused status") && learnt.contains("blocked status"), "{learnt}");
    assert!(!learnt.contains("READ") && !learnt.contains("opaque") && !learnt.contains("canary"), "{learnt}");
}
