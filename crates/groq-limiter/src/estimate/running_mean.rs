//! A mean and a mean deviation that follow the newest samples.

/// A mean and a mean deviation that follow the newest few dozen samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningMean {
    mean: f32,
    deviation: f32,
    samples: u32,
}

impl RunningMean {
    /// One more sample.
    pub fn learn(&mut self, sample: f32) {
        self.samples = self.samples.saturating_add(1);
        let gain = (1.0 / self.samples as f32).max(0.05);
        let off = sample - self.mean;
        self.mean += gain * off;
        if self.samples > 1 {
            self.deviation += gain * (off.abs() - self.deviation);
        }
    }

    /// The mean, once there is one.
    pub fn mean(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean)
    }

    /// Few samples are below.
    pub fn low(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean - 2.0 * self.deviation)
    }

    /// Few samples are above.
    pub fn high(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean + 2.0 * self.deviation)
    }
}
