//! Conversion of the configuration into the limiter's settings.

use groq_limiter::settings;

use super::settings::{App, Settings, StoreKind};

impl Settings {
    /// The limiter's settings.
    pub fn limiter(&self) -> settings::Settings {
        let limits = settings::LimitSettings {
            plan: self.limits.plan,
            headroom: self.limits.headroom,
            exact: false,
            default: self.limits.default,
            models: self.limits.model.clone(),
        };
        let redis = || settings::RedisSettings {
            url: self.store.url.clone().unwrap_or_default(),
            ca_file: self.store.ca_file.clone(),
            prefix: self.store.prefix.clone(),
            timeout: self.store.timeout,
            replicas: self.store.replicas,
        };
        settings::Settings {
            limits: limits.into(),
            queue: settings::QueueSettings { max_waiting: self.queue.max_waiting, max_bytes: self.queue.max_bytes },
            state_file: self.limits.state_file.clone(),
            redis: (self.store.kind == StoreKind::Redis).then(redis),
        }
    }

    /// The limiters of observe mode, beside those that track actual usage. They are neither saved nor shared: a replica
    /// sees its own part of the traffic, and observes with its part of the limits.
    pub fn observed(&self, settings: settings::Settings) -> settings::Settings {
        let replicas = if self.store.kind == StoreKind::Redis { self.store.replicas.max(1) } else { 1 };
        let mut limits = settings::LimitSettings::clone(&settings.limits);
        limits.headroom = 1.0 - (1.0 - limits.headroom) / f64::from(replicas);
        settings::Settings { limits: limits.into(), state_file: None, redis: None, ..settings }
    }

    /// The limiters of apps' caps: keyed by app where Groq's are keyed by model, and kept beside them.
    pub fn caps(&self) -> settings::Settings {
        let caps = |app: &App| settings::ModelLimits {
            requests_per_minute: app.requests_per_minute,
            tokens_per_minute: app.tokens_per_minute,
            assumed_completion_tokens: Some(0),
            ..settings::ModelLimits::default()
        };
        let limits = settings::LimitSettings {
            plan: settings::Plan::None,
            headroom: 0.0,
            exact: true,
            default: self.app.iter().find(|app| app.name == App::EVERYONE_ELSE).map(caps).unwrap_or_default(),
            models: self.app.iter().map(|app| (app.name.clone(), caps(app))).collect(),
        };
        let mut settings = settings::Settings { limits: limits.into(), ..self.limiter() };
        if let Some(file) = &mut settings.state_file {
            file.as_mut_os_string().push(".caps");
        }
        if let Some(redis) = &mut settings.redis {
            redis.prefix.push_str(":caps");
        }
        settings
    }
}
