//! A running mean with its mean absolute deviation.

/// A mean and a mean absolute deviation that follow the last few dozen samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningMean {
    mean: f32,
    deviation: f32,
    samples: u32,
}

impl RunningMean {
    /// Adds a sample.
    pub fn learn(&mut self, sample: f32) {
        self.samples = self.samples.saturating_add(1);
        let gain = (1.0 / self.samples as f32).max(0.05);
        let off = sample - self.mean;
        self.mean += gain * off;
        if self.samples > 1 {
            self.deviation += gain * (off.abs() - self.deviation);
        }
    }

    /// Returns the mean; `None` before the first sample.
    pub fn mean(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean)
    }

    /// Returns the mean less two deviations, which few samples fall below; `None` before the first sample.
    pub fn low(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean - 2.0 * self.deviation)
    }

    /// Returns the mean plus two deviations, which few samples exceed; `None` before the first sample.
    pub fn high(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean + 2.0 * self.deviation)
    }
}
