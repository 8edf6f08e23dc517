//! Progress on standard error: two bars on a terminal, else a line every few seconds.

use std::{sync::Arc, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::tally::Tally;

const FRAME: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(5);

/// The two sides while they run.
pub(super) struct View {
    ways: [(&'static str, Arc<Tally>); 2],
    /// Empty if standard error is not a terminal.
    bars: Vec<ProgressBar>,
}

impl View {
    pub(super) fn new(ways: [(&'static str, Arc<Tally>); 2], requests: usize, terminal: bool) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:>18} {bar:24.green/dim} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |name: &'static str| all.add(ProgressBar::new(requests as u64).with_style(style.clone()).with_prefix(name));
        let bars = if terminal { ways.iter().map(|(name, _)| bar(name)).collect() } else { Vec::new() };
        Self { ways, bars }
    }

    /// Draws until it is dropped.
    pub(super) async fn run(&self, began: Instant) {
        loop {
            self.draw(began);
            sleep(if self.bars.is_empty() { LINE } else { FRAME }).await;
        }
    }

    pub(super) fn finish(&self) {
        self.bars.iter().for_each(ProgressBar::abandon);
    }

    fn draw(&self, began: Instant) {
        for (index, (name, tally)) in self.ways.iter().enumerate() {
            let counts = tally.counts();
            let served = counts.waits.len();
            let text = format!(
                "{:>4.0} s  asked {:>4}  served {served:>4}  failed {:>4}  waiting {:>4}  refused by Groq {:>4}  used {:>3.0} %",
                began.elapsed().as_secs_f64(),
                counts.arrived,
                counts.failed,
                counts.arrived - served - counts.failed,
                tally.refused(),
                100.0 * tally.used()
            );
            match self.bars.get(index) {
                Some(bar) => {
                    bar.set_position((served + counts.failed) as u64);
                    bar.set_message(text);
                }
                None => eprintln!("{name:>18} {text}"),
            }
        }
    }
}
