//! Default values of the settings.

use std::{net::SocketAddr, time::Duration};

use http::Uri;

use super::{Admin, App, Breaker, Class, Log, LogFormat, Queue, Retry, Server, Store, StoreKind, Upstream};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            reuse_port: false,
            threads: None,
            max_connections: 4096,
            max_body: 100 << 20,
            header_timeout: secs(30),
            body_timeout: secs(30),
            drain_timeout: secs(25),
            tls: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8788)) }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            base_url: Uri::from_static("https://api.groq.com"),
            connect_timeout: secs(5),
            response_timeout: secs(300),
            idle_timeout: secs(120),
            http2: true,
            proxy: None,
            ca_file: None,
            api_key_env: None,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_wait: secs(50), max_waiting: 1000, max_bytes: 256 << 20, stream_keepalive: None }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 4, base_delay: Duration::from_millis(250), max_delay: secs(8), budget: 0.2 }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, open: secs(5), max_wait: None }
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            name: String::new(),
            token_env: None,
            token_sha256: None,
            weight: 1.0,
            class: Class::default(),
            fallback: true,
            requests_per_minute: None,
            tokens_per_minute: None,
            requests_per_day: None,
            tokens_per_day: None,
            cost_per_day: None,
            cost_per_month: None,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Local,
            url: None,
            ca_file: None,
            prefix: "groq-shield".into(),
            timeout: Duration::from_millis(250),
            replicas: 1,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text, otlp_endpoint: None }
    }
}
