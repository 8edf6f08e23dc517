//! The configuration as it is written: the file's tree, with flags and variables laid over it, read into settings.
//!
//! All faults of a file are told in one go, with two exceptions: a line that is not TOML hides faults on the same line, and a
//! bracket or string that is never closed all that follows, since toml's parser cannot tell where it ends.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    check::Check,
    faults::{Fault, Origin, Wrong},
    schema::choices,
    settings::Settings,
    syntax,
};

/// More faults than this are not told: the file is none of ours.
const MOST_FAULTS: usize = 100;

/// A file's tree, flags and variables, and what is wrong with them so far.
///
/// Paths are written `queue.max_wait`, `app[0].name`, `limits.model.a/b`.
pub(super) struct Document<'a> {
    text: &'a str,
    tree: DeTable<'a>,
    /// Where the values come from that are not the file's.
    given: BTreeMap<String, Origin>,
    /// Where each value comes from, once the tree has been read.
    pub(super) origins: BTreeMap<String, Origin>,
    /// The paths of values that are wrong or missing.
    refused: BTreeSet<String>,
    pub(super) faults: Vec<Fault>,
    /// Lines that are not TOML. A fault on one of them is most often a consequence.
    broken: BTreeSet<usize>,
    /// The line from which on nothing could be told.
    end: usize,
}

impl<'a> Document<'a> {
    /// Parses a file's text.
    pub(super) fn parse(text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let (faults, end) = syntax::faults(text, &errors);
        let broken = faults.iter().filter_map(|fault| fault.line(text)).collect();
        let (given, origins, refused) = Default::default();
        Self { text, tree: root.into_inner(), given, origins, refused, faults, broken, end }
    }

    /// Sets the key at this path to what a variable or a flag says, over the file.
    pub(super) fn set(&mut self, path: &str, schema: &Value, text: &'a str, origin: Origin) {
        // Text has no types: where the key takes none, it is read as the file would be.
        let literal = (schema["type"] != "string" && choices(schema).is_empty()).then(|| DeValue::parse(text).ok()).flatten();
        let value = literal.unwrap_or_else(|| Spanned::new(0..0, DeValue::String(text.into())));
        let (tables, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.tree;
        for name in tables.split('.') {
            let inner = table.entry(Spanned::new(0..0, name.to_owned().into()));
            match inner.or_insert_with(|| Spanned::new(0..0, DeValue::Table(DeTable::new()))).get_mut() {
                DeValue::Table(inner) => table = inner,
                // A fault of the file's own, told when it is read.
                _ => return,
            }
        }
        table.insert(Spanned::new(0..0, name.to_owned().into()), value);
        self.given.insert(path.to_owned(), origin);
    }

    /// Reads the settings as far as they are right.
    pub(super) fn settings(&mut self) -> Settings {
        let mut check = Check { given: std::mem::take(&mut self.given), ..Check::default() };
        let value = check.tree(&self.tree);
        let is_told = |line| line < self.end && !self.broken.contains(&line);
        self.faults.extend(check.faults.into_iter().filter(|fault| fault.line(self.text).is_none_or(is_told)));
        (self.origins, self.refused) = (check.origins, check.refused);
        serde_json::from_value(value).unwrap_or_else(|why| {
            self.faults.push(Fault::new(Origin::Whole, why.to_string()));
            Settings::default()
        })
    }

    /// Adds a fault of the value at this path.
    pub(super) fn refuse(&mut self, path: &str, wrong: impl Into<Wrong>) {
        self.faults.push(Fault::new(self.origin(path), wrong));
    }

    /// Whether the key at this path has a value other than its default.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    /// Whether the value at this path, or one inside of it, was wrong.
    pub(super) fn is_refused(&self, path: &str) -> bool {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.refused.iter().any(|refused| refused.strip_prefix(path).is_some_and(inside))
    }

    /// Where the value at this path came from, or the closest table around it.
    pub(super) fn origin(&self, path: &str) -> Origin {
        let mut around = std::iter::successors(Some(path), |path| Some(path.rsplit_once(['.', '['])?.0));
        around.find_map(|path| self.origins.get(path)).cloned().unwrap_or(Origin::Whole)
    }

    /// Everything that is wrong, in the order of the file, then variables and flags.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|fault| match &fault.origin {
            Origin::File(span) => (0, span.start),
            Origin::Variable(_) => (1, 0),
            Origin::Flag(_) => (2, 0),
            Origin::Whole => (3, 0),
        });
        if self.faults.len() > MOST_FAULTS {
            self.faults.truncate(MOST_FAULTS);
            self.faults.push(Fault::new(Origin::Whole, "these are not all: the search ends here"));
        }
        self.faults
    }
}
