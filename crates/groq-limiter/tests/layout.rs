//! The map of the crate's files: which imports which, without cycles, as docs/limiter.md shows it.
//!
//! `UPDATE_DOCS=1 cargo test -p groq-limiter --test layout` writes the map again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Modules by path (`queue::app`; the root is empty), and those that each one's file names.
type Graph = BTreeMap<String, BTreeSet<String>>;

const BEGIN: &str = "<!-- files: begin -->";
const END: &str = "<!-- files: end -->";

#[test]
fn imports_make_no_cycle() {
    let mut left = graph(&source("src"));
    while let Some(leaf) = left.iter().find(|(_, to)| to.iter().all(|to| !left.contains_key(to))) {
        let leaf = leaf.0.clone();
        left.remove(&leaf);
    }
    assert!(left.is_empty(), "files that import each other in a cycle, or use one: {}", cycle(&left).join(" -> "));
}

#[test]
fn the_map_is_up_to_date() {
    let path = source("../../docs/limiter.md");
    let page = fs::read_to_string(&path).expect("docs/limiter.md can be read");
    let (head, rest) = page.split_once(BEGIN).expect("the map's begin");
    let (_, tail) = rest.split_once(END).expect("the map's end");
    let fresh = format!("{head}{BEGIN}\n```text\n{}```\n{END}{tail}", map(&graph(&source("src"))));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, fresh).expect("docs/limiter.md can be written");
    } else {
        assert!(fresh == page, "docs/limiter.md is stale: UPDATE_DOCS=1 cargo test -p groq-limiter --test layout");
    }
}

#[test]
fn paths_are_read_in_every_form() {
    let code = "use crate::{a::{b::C, D}, e};\nuse self::f::G;\nuse super::h;\nfn x() { crate::i::j(); k::l() }";
    let mut found = paths(code, "m::n", &["k".into()]);
    found.sort();
    assert_eq!(found, ["a::D", "a::b::C", "e", "i::j", "m::h", "m::n::f::G", "m::n::k"]);
}

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One cycle of a graph in which every node leads to one.
fn cycle(graph: &Graph) -> Vec<String> {
    let Some(mut at) = graph.keys().next().cloned() else { return Vec::new() };
    let mut way = Vec::new();
    loop {
        if let Some(begin) = way.iter().position(|before| *before == at) {
            way.push(at);
            return way.split_off(begin);
        }
        let next = graph[&at].iter().find(|to| graph.contains_key(*to)).expect("it leads on").clone();
        way.push(at);
        at = next;
    }
}

/// One line a file, importers before what they import.
fn map(graph: &Graph) -> String {
    let (mut lines, mut left) = (Vec::new(), graph.clone());
    while !left.is_empty() {
        let leaves: Vec<String> =
            left.iter().filter(|(_, to)| to.iter().all(|to| !left.contains_key(to))).map(|(from, _)| from.clone()).collect();
        assert!(!leaves.is_empty(), "a cycle: {}", cycle(&left).join(" -> "));
        for leaf in leaves {
            let to: Vec<String> = left[&leaf].iter().map(|to| to.replace("::", "/")).collect();
            let name = if leaf.is_empty() { "lib".into() } else { leaf.replace("::", "/") };
            lines.push(format!("{name:24} {}", to.join(", ")).trim_end().to_owned() + "\n");
            left.remove(&leaf);
        }
    }
    lines.into_iter().rev().collect()
}

fn graph(root: &Path) -> Graph {
    let mut files = BTreeMap::new();
    collect(root, root, &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    let modules: BTreeSet<String> = files.keys().cloned().collect();
    files.iter().map(|(module, code)| (module.clone(), imports(module, code, &modules))).collect()
}

/// The code of every module below, without comments and tests.
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

/// Every path that begins with `crate`, `super`, `self` or a child module, from the crate's root.
fn paths(code: &str, module: &str, children: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let bases = [("crate::", ""), ("super::", parent(module).unwrap_or_default()), ("self::", module)];
    for (prefix, base) in bases {
        for (at, _) in code.match_indices(prefix).filter(|(at, _)| begins_path(&code[..*at])) {
            let rest = &code[at + prefix.len()..];
            // Of `super::super::` the last step counts.
            if !rest.starts_with("super::") {
                tree(rest, base, &mut found);
            }
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

/// Reads `a::{b, c::D}` after `base`; what follows it.
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

/// Whether a path can begin after this.
fn begins_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
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
