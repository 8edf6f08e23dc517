//! The configuration as it is written: the file's tree, with flags and variables laid over it, read into settings.
//!
//! serde ends at the first error. To tell every fault in one go, the value that it could not read is taken out of the tree, so
//! that its default applies, and the tree is read again. Two things hide others: a line that is not TOML hides faults on the
//! same line, and a bracket or string that is never closed all that follows, since toml's parser cannot tell where it ends.

use std::collections::{BTreeMap, BTreeSet};

use garde::Validate;
use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, Deserializer},
};

use super::{
    Settings,
    faults::{Fault, Origin},
    node::Node,
    rules,
    schema::{choices, example, under},
    syntax,
};

/// More faults than this are not looked for: the file is none of ours.
const MOST_FAULTS: usize = 100;

/// A file's tree, flags and variables, and what is wrong with them so far.
///
/// Paths are written as serde_path_to_error and garde write them: `queue.max_wait`, `app[0].name`, `limits.model.a/b`.
pub(super) struct Document<'a> {
    text: &'a str,
    tree: DeTable<'a>,
    /// Where the values come from that are not the file's.
    given: BTreeMap<String, Origin>,
    /// Keys whose values were taken out.
    refused: BTreeSet<String>,
    faults: Vec<Fault>,
    /// Lines that are not TOML. A fault on one of them is most often a consequence.
    broken: BTreeSet<usize>,
    /// The line from which on nothing could be told.
    end: usize,
}

impl<'a> Document<'a> {
    /// Parses a file's text.
    pub(super) fn parse(text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut tree = root.into_inner();
        remove_empty(&mut tree);
        let (faults, end) = syntax::faults(text, &errors);
        let broken = faults.iter().filter_map(|fault| fault.line(text)).collect();
        Self { text, tree, given: BTreeMap::new(), refused: BTreeSet::new(), faults, broken, end }
    }

    /// Adds a fault.
    pub(super) fn fault(&mut self, origin: Origin, message: impl Into<String>, help: Option<String>) {
        self.faults.push(Fault { origin, message: message.into(), help });
    }

    /// Sets the key at this path to what a variable or a flag says, over the file.
    pub(super) fn set(&mut self, path: &str, schema: &Value, text: &'a str, origin: Origin) {
        // Text has no types: where the key takes none, it is read as the file would be.
        let literal = (schema["type"] != "string" && choices(schema).is_empty()).then(|| DeValue::parse(text).ok()).flatten();
        let value = literal.unwrap_or_else(|| Spanned::new(0..0, DeValue::String(text.into())));
        let mut table = &mut self.tree;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let key = Spanned::new(0..0, name.to_owned().into());
            if names.peek().is_none() {
                table.insert(key, value);
                break;
            }
            let inner = table.entry(key).or_insert_with(|| Spanned::new(0..0, DeValue::Table(DeTable::new())));
            match inner.get_mut() {
                DeValue::Table(inner) => table = inner,
                // A fault of the file's own, told when it is read.
                _ => return,
            }
        }
        self.given.insert(path.to_owned(), origin);
    }

    /// Whether the key at this path has a value other than its default.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.given.contains_key(path) || self.nodes().contains_key(path)
    }

    /// Whether the value at this path, or one inside of it, was wrong.
    pub(super) fn is_refused(&self, path: &str) -> bool {
        self.refused
            .iter()
            .any(|refused| refused.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
    }

    /// Where each key that is set got its value.
    pub(super) fn origins(&self) -> BTreeMap<String, Origin> {
        let file = self.nodes().into_iter().map(|(path, node)| (path, Origin::File(node.span)));
        file.chain(self.given.clone()).collect()
    }

    /// Where the value at this path came from, or the closest table around it.
    pub(super) fn origin(&self, path: &str) -> Origin {
        let nodes = self.nodes();
        let mut path = path;
        loop {
            if let Some(origin) = self.given.get(path) {
                return origin.clone();
            }
            if let Some(node) = nodes.get(path).filter(|node| !node.span.is_empty()) {
                return Origin::File(node.span.clone());
            }
            // A variable may have made the table.
            let inside = self.given.iter().find(|(given, _)| given.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')));
            if let Some((_, origin)) = inside {
                return origin.clone();
            }
            let Some(at) = path.rfind(['.', '[']) else { return Origin::Whole };
            path = &path[..at];
        }
    }

    /// Reads all of it: the settings as far as they could be read.
    pub(super) fn read(&mut self) -> Settings {
        // serde takes an array for a struct whose fields it holds in turn.
        let lists: Vec<_> =
            self.nodes().iter().filter(|(_, node)| node.is_list_for_table()).map(|(path, _)| path.clone()).collect();
        for path in lists {
            self.refuse(&path, "");
            remove(&mut self.tree, "", &path);
        }
        let settings = loop {
            let tree = Deserializer::from(Spanned::new(0..self.text.len(), self.tree.clone()));
            match serde_path_to_error::deserialize::<_, Settings>(tree) {
                Ok(settings) => break settings,
                Err(_) if self.refused.len() >= MOST_FAULTS => {
                    self.fault(Origin::Whole, "these are not all: the search ends here", None);
                    break Settings::default();
                }
                Err(error) => {
                    let path = error.path().to_string();
                    self.refuse(&path, error.inner().message());
                    if !remove(&mut self.tree, "", &path) {
                        break Settings::default();
                    }
                }
            }
        };
        if let Err(report) = settings.validate() {
            for (path, error) in report.iter() {
                self.refuse(&path.to_string(), error.message());
            }
        }
        for (path, message, help) in rules::between_keys(&settings, self) {
            self.fault(self.origin(&path), message, help);
        }
        settings
    }

    /// Everything that is wrong, in the order of the file, then variables and flags.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|fault| match &fault.origin {
            Origin::File(span) => (0, span.start),
            Origin::Variable(_) => (1, 0),
            Origin::Flag(_) => (2, 0),
            Origin::Whole => (3, 0),
        });
        self.faults
    }

    /// Records what is wrong with the value at a path. What serde or garde say is used where the schema does not say it better.
    fn refuse(&mut self, path: &str, message: &str) {
        if !self.refused.insert(path.to_owned()) {
            return;
        }
        let nodes = self.nodes();
        let fault = match nodes.get(path) {
            Some(node) => {
                let (message, help) = node.describe(message);
                let origin = self.given.get(path).cloned().unwrap_or_else(|| Origin::File(node.place()));
                Fault { origin, message, help }
            }
            None => {
                let (table, key) = path.rsplit_once('.').unwrap_or_default();
                let schema = nodes.get(table).and_then(|node| under(node.schema?, key));
                let help = schema.and_then(example).map(|example| format!("such as {key} = {example}"));
                Fault { origin: self.origin(path), message: format!("`{key}` is missing"), help }
            }
        };
        if fault.line(self.text).is_none_or(|line| line < self.end && !self.broken.contains(&line)) {
            self.faults.push(fault);
        }
    }

    /// Every value by its path.
    fn nodes(&self) -> BTreeMap<String, Node<'_>> {
        Node::all(&self.tree)
    }
}

/// Takes the value at a path out. False: there is none.
fn remove(table: &mut DeTable<'_>, prefix: &str, path: &str) -> bool {
    let here = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    let found = table.keys().find(|name| here(name.get_ref()) == path).cloned();
    if let Some(name) = found {
        return table.remove(&name).is_some();
    }
    table.iter_mut().any(|(name, value)| {
        let here = here(name.get_ref());
        path.starts_with(&here)
            && match value.get_mut() {
                DeValue::Table(inner) => remove(inner, &here, path),
                DeValue::Array(items) => remove_item(items, &here, path),
                _ => false,
            }
    })
}

fn remove_item(items: &mut DeArray<'_>, prefix: &str, path: &str) -> bool {
    let rest = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('['));
    let Some((index, rest)) = rest.and_then(|rest| rest.split_once(']')) else { return false };
    let Ok(index) = index.parse::<usize>() else { return false };
    match items.get_mut(index).map(Spanned::get_mut) {
        Some(_) if rest.is_empty() => {
            *items = items.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, item)| item.clone()).collect();
            true
        }
        Some(DeValue::Table(inner)) => remove(inner, &format!("{prefix}[{index}]"), path),
        _ => false,
    }
}

/// Takes out the values that toml's parser puts where it found none.
fn remove_empty(table: &mut DeTable<'_>) {
    let empty = table.iter().filter(|(_, value)| value.span().is_empty()).map(|(name, _)| name.clone());
    for name in empty.collect::<Vec<_>>() {
        table.remove(&name);
    }
    for (_, value) in table.iter_mut() {
        match value.get_mut() {
            DeValue::Table(inner) => remove_empty(inner),
            DeValue::Array(items) => items.iter_mut().for_each(|item| {
                if let DeValue::Table(inner) = item.get_mut() {
                    remove_empty(inner);
                }
            }),
            _ => {}
        }
    }
}
