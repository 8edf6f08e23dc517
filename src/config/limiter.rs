//! Conversion of the configuration into the limiter's settings.

use groq_limiter::{settings, types::Priority};

use super::{Class, ModelLimits, Plan, Settings, StoreKind};

impl Settings {
    /// What the limiter is to know.
    pub fn limiter(&self) -> settings::Settings {
        let limits = settings::LimitSettings {
            plan: self.limits.plan.into(),
            headroom: self.limits.headroom,
            default: self.limits.default.into(),
            models: self.limits.model.iter().map(|(model, limits)| (model.clone(), (*limits).into())).collect(),
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
}

impl From<Plan> for settings::Plan {
    fn from(plan: Plan) -> Self {
        match plan {
            Plan::Auto => Self::Auto,
            Plan::Free => Self::Free,
            Plan::Developer => Self::Developer,
            Plan::None => Self::None,
        }
    }
}

impl From<ModelLimits> for settings::ModelLimits {
    fn from(limits: ModelLimits) -> Self {
        let ModelLimits {
            requests_per_minute,
            requests_per_day,
            tokens_per_minute,
            tokens_per_day,
            input_tokens_per_minute,
            output_tokens_per_minute,
            audio_seconds_per_hour,
            audio_seconds_per_day,
            assumed_completion_tokens,
        } = limits;
        Self {
            requests_per_minute,
            requests_per_day,
            tokens_per_minute,
            tokens_per_day,
            input_tokens_per_minute,
            output_tokens_per_minute,
            audio_seconds_per_hour,
            audio_seconds_per_day,
            assumed_completion_tokens,
        }
    }
}

impl From<Class> for Priority {
    fn from(class: Class) -> Self {
        match class {
            Class::Interactive => Self::Interactive,
            Class::Batch => Self::Batch,
        }
    }
}

impl From<Priority> for Class {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Interactive => Self::Interactive,
            Priority::Batch => Self::Batch,
        }
    }
}
