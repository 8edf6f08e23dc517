//! The import graph of a crate's files, parsed from their text. Also used by the proxy's layout test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// For each module (a path like `queue::app`; empty for the root) the modules that its file imports.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// Finds a cycle of files that import each other.
///
/// `mod x; pub use x::T` in a parent is an edge from the parent to the child: a cycle only if the child uses an item of the
/// parent's own, or one that the parent re-exports.
pub(crate) fn cycle(graph: &Graph) -> Option<Vec<String>> {
    let mut left = graph.clone();
    while let Some(leaf) = left.iter().find(|(_, to)| to.iter().all(|to| !left.contains_key(to))) {
        let leaf = leaf.0.clone();
        left.remove(&leaf);
    }
    let mut at = left.keys().next()?.clone();
    let mut path = Vec::new();
    loop {
        if let Some(begin) = path.iter().position(|before| *before == at) {
            path.push(at);
            return Some(path.split_off(begin));
        }
        // Every remaining module imports another remaining one.
        let next = left[&at].iter().find(|to| left.contains_key(*to))?.clone();
        path.push(at);
        at = next;
    }
}

/// Reads the import graph of the files below a crate's `src`.
pub(crate) fn graph(root: &Path) -> Graph {
    let files = files(root);
    let modules: BTreeSet<String> = files.keys().cloned().collect();
    files.iter().map(|(module, code)| (module.clone(), imports(module, code, &modules))).collect()
}

/// Reads the code of every module below a crate's `src`, without comments and tests.
pub(crate) fn files(root: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    collect(root, root, &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    files
}

/// Collects the code of every module below `at`, without comments and tests.
fn collect(root: &Path, at: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(at).expect("src can be listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if name == "tests" {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            let relative = path.strip_prefix(root).expect("below src").with_extension("");
            let module: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).filter(|part| part != "lib").collect();
            files.insert(module.join("::"), code.join("\n"));
        }
    }
}

fn imports(module: &str, code: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let children: Vec<String> =
        modules.iter().filter(|other| parent(other) == Some(module)).map(|child| last(child).to_owned()).collect();
    let named = paths(code, module, &children).into_iter().map(|path| {
        let mut path = path.as_str();
        while !modules.contains(path) {
            path = parent(path).unwrap_or_default();
        }
        path.to_owned()
    });
    named.filter(|to| to != module).collect()
}

/// All paths in `code` that begin with `crate`, `super`, `self` or a child module, as paths from the crate's root.
pub(crate) fn paths(code: &str, module: &str, children: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let bases = [("crate::", ""), ("super::", parent(module).unwrap_or_default()), ("self::", module)];
    for (prefix, base) in bases {
        for (at, _) in code.match_indices(prefix).filter(|(at, _)| begins_path(&code[..*at])) {
            let (mut rest, mut base) = (&code[at + prefix.len()..], base);
            while let Some(further) = rest.strip_prefix("super::") {
                (rest, base) = (further, parent(base).unwrap_or_default());
            }
            tree(rest, base, &mut found);
        }
    }
    for child in children {
        let named = |(at, _): &(usize, &str)| begins_path(&code[..*at]);
        if code.match_indices(&format!("{child}::")).any(|hit| named(&hit)) {
            found.push(join(module, child));
        }
    }
    found
}

/// Parses a use tree like `a::{b, c::D}` relative to `base`. Returns the text after it.
fn tree<'a>(text: &'a str, base: &str, found: &mut Vec<String>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            match rest.strip_prefix('}') {
                Some(rest) => return rest,
                None if rest.is_empty() => return rest,
                None => rest = tree(rest, base, found),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    if end == 0 {
        return text.get(1..).unwrap_or_default();
    }
    let path = if &text[..end] == "self" { base.to_owned() } else { join(base, &text[..end]) };
    match text[end..].strip_prefix("::") {
        Some(rest) => tree(rest, &path, found),
        None => {
            found.push(path);
            &text[end..]
        }
    }
}

/// Whether an imported path can begin after `before`. The path in `pub(in …)` is not an import.
fn begins_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') && !before.ends_with("(in ")
}

fn parent(module: &str) -> Option<&str> {
    if module.is_empty() {
        return None;
    }
    Some(module.rsplit_once("::").map_or("", |(parent, _)| parent))
}

fn last(module: &str) -> &str {
    module.rsplit_once("::").map_or(module, |(_, last)| last)
}

fn join(base: &str, name: &str) -> String {
    if base.is_empty() { name.to_owned() } else { format!("{base}::{name}") }
}
