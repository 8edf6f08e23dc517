//! The map of the crate's files: which imports which, without cycles, as docs/limiter.md shows it.
//!
//! `UPDATE_DOCS=1 cargo test -p groq-limiter --test layout` writes the map again.

mod graph;

use std::{fs, path::Path};

use graph::{Graph, cycle, graph, paths};

const BEGIN: &str = "<!-- files: begin -->";
const END: &str = "<!-- files: end -->";

#[test]
fn imports_make_no_cycle() {
    let found = cycle(&graph(&source("src")));
    assert_eq!(found, None, "files that import each other in a cycle");
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
    let code =
        "use crate::{a::{b::C, D}, e};\nuse self::f::G;\nuse super::h;\npub(in crate::o) fn x() { super::super::i::j(); k::l() }";
    let mut found = paths(code, "m::n", &["k".into()]);
    found.sort();
    assert_eq!(found, ["a::D", "a::b::C", "e", "i::j", "m::h", "m::n::f::G", "m::n::k"]);
}

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One line a file, importers before what they import.
fn map(graph: &Graph) -> String {
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
