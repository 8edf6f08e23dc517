//! The fields of a log line without colours.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::{RecordFields, VisitOutput as _},
    fmt::{
        FormatFields,
        format::{DefaultVisitor, Writer},
    },
};

const MESSAGE: &str = "message";

/// Writes what tracing-subscriber's own formatter writes. For numbers and texts, of which an access line has fifteen, it does so
/// without the styles of a coloured line, which that one formats even if they are empty.
pub(super) struct PlainFields;

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn write(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let is_first = std::mem::take(&mut self.is_empty);
        let writer = &mut self.writer;
        let all = || {
            if !is_first {
                writer.write_char(' ')?;
            }
            writer.write_str(field.name())?;
            writer.write_char('=')?;
            write(writer)
        };
        self.result = self.result.and_then(|()| all());
    }
}

impl Visit for Visitor<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, |writer| writer.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |writer| writer.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.write(field, |writer| write!(writer, "{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let is_first = std::mem::take(&mut self.is_empty);
        let mut visitor = DefaultVisitor::new(self.writer.by_ref(), is_first);
        visitor.record_debug(field, value);
        self.result = self.result.and(visitor.finish());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let is_first = std::mem::take(&mut self.is_empty);
        let mut visitor = DefaultVisitor::new(self.writer.by_ref(), is_first);
        visitor.record_error(field, value);
        self.result = self.result.and(visitor.finish());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("unpoisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(
        layer: impl FnOnce(Lines) -> Box<dyn tracing_subscriber::Layer<tracing_subscriber::Registry> + Send + Sync>,
    ) -> String {
        let lines = Lines::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(lines.clone())), || {
            let error: &(dyn std::error::Error + 'static) = &io::Error::other("it \u{1b}[31mbroke");
            tracing::info!(
                text = "a \"b\"\n\u{1b}",
                number = -7_i64,
                count = u64::MAX,
                yes = true,
                none = None::<i64>,
                "a message"
            );
            tracing::warn!(error, shown = %"x \u{7}", debug = ?Some("y"), part = 0.5, r#type = "t", "{} \u{1b}", "another");
            tracing::error!(message = "only a message");
            tracing::info!(first = 1);
        });
        let bytes = lines.0.lock().expect("unpoisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn lines_are_those_of_the_default_formatter() {
        use tracing_subscriber::{Layer as _, fmt};
        let layer = |lines| fmt::layer().with_writer(lines).without_time().with_ansi(false);
        let (plain, default) =
            (logged(|lines| layer(lines).fmt_fields(PlainFields).boxed()), logged(|lines| layer(lines).boxed()));
        assert_eq!(plain, default);
        assert_eq!(plain.lines().count(), 4, "{plain}");
    }
}
