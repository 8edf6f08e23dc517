//! The crate's files import each other without cycles, and docs/limiter.md has an up-to-date list of the imports.
//!
//! `UPDATE_DOCS=1 cargo test -p groq-limiter --test layout` updates the list.

mod graph;

use std::{collections::BTreeMap, fs, path::Path};

use graph::{Graph, cycle, files, graph, paths};

const BEGIN: &str = "<!-- files: begin -->";
const END: &str = "<!-- files: end -->";

#[test]
fn imports_have_no_cycle() {
    let found = cycle(&graph(&source("src")));
    assert_eq!(found, None, "files that import each other in a cycle");
}

/// All methods of a type stand in one file. Implementations of traits may stand with the trait.
#[test]
fn no_type_has_methods_in_several_files() {
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (file, code) in files(&source("src")) {
        for line in code.lines().filter(|line| line.starts_with("impl") && !line.contains(" for ")) {
            let generic = line.strip_prefix("impl<").and_then(|line| line.split_once("> "));
            let name = generic.map_or_else(|| line.trim_start_matches("impl "), |(_, name)| name);
            let name = name.split(['<', ' ']).next().unwrap_or_default();
            let before = places.insert(name.to_owned(), file.clone());
            assert!(before.as_ref().is_none_or(|before| *before == file), "{name}: {before:?} and {file}");
        }
    }
    assert!(places.contains_key("Limiter") && places.contains_key("Timer"), "{places:?}");
}

#[test]
fn the_list_of_imports_is_up_to_date() {
    let path = source("../../docs/limiter.md");
    let page = fs::read_to_string(&path).expect("docs/limiter.md can be read");
    let (head, rest) = page.split_once(BEGIN).expect("the begin mark");
    let (_, tail) = rest.split_once(END).expect("the end mark");
    let fresh = format!("{head}{BEGIN}\n```text\n{}```\n{END}{tail}", import_list(&graph(&source("src"))));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, fresh).expect("docs/limiter.md can be written");
    } else {
        assert!(fresh == page, "docs/limiter.md is stale: UPDATE_DOCS=1 cargo test -p groq-limiter --test layout");
    }
}

#[test]
fn paths_are_parsed_in_every_form() {
    let code =
        "use crate::{a::{b::C, D}, e};\nuse self::f::G;\nuse super::h;\npub(in crate::o) fn x() { super::super::i::j(); k::l() }";
    let mut found = paths(code, "m::n", &["k".into()]);
    found.sort();
    assert_eq!(found, ["a::D", "a::b::C", "e", "i::j", "m::h", "m::n::f::G", "m::n::k"]);
}

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One line per file with its imports. A file comes before those that it imports.
fn import_list(graph: &Graph) -> String {
    let (mut lines, mut left) = (Vec::new(), graph.clone());
    while !left.is_empty() {
        let leaves: Vec<String> =
            left.iter().filter(|(_, to)| to.iter().all(|to| !left.contains_key(to))).map(|(from, _)| from.clone()).collect();
        assert!(!leaves.is_empty(), "a cycle: {}", cycle(&left).unwrap_or_default().join(" -> "));
        for leaf in leaves {
            let to: Vec<String> = left[&leaf].iter().map(|to| to.replace("::", "/")).collect();
            let name = if leaf.is_empty() { "lib".into() } else { leaf.replace("::", "/") };
            lines.push(format!("{name:24} {}", to.join(", ")).trim_end().to_owned() + "\n");
            left.remove(&leaf);
        }
    }
    lines.into_iter().rev().collect()
}
