//! Layering rules that the compiler cannot check: which module may use which, and what pure cores may not name.

mod docs;
#[path = "../../crates/groq-limiter/tests/graph/mod.rs"]
mod graph;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each module and the modules it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("accounts", &[]),
    ("cli", &["admin", "config", "groq", "proxy", "server", "telemetry", "upstream"]),
    ("server", &["accounts", "admin", "config", "proxy", "shutdown", "telemetry"]),
    ("admin", &["accounts", "config", "groq", "proxy", "telemetry"]),
    ("proxy", &["accounts", "config", "estimate", "groq", "headers", "shutdown", "telemetry", "upstream", "wall_clock"]),
    ("telemetry", &["accounts", "config", "groq"]),
    ("upstream", &["config"]),
    ("estimate", &["groq"]),
    ("config", &["accounts", "groq"]),
    ("groq", &["headers"]),
    ("headers", &[]),
    ("shutdown", &[]),
    ("wall_clock", &[]),
    ("sim", &[]),
];

/// Pure cores use no sockets and take time as an argument.
const CORES: &[&str] = &["proxy/retry", "proxy/breaker", "groq", "estimate"];
const NOT_IN_CORES: &[&str] = &["tokio::net", "std::net", "hyper", "Instant::now()", "SystemTime::now()"];

#[test]
fn modules_use_only_allowed_modules() {
    let arrows: BTreeMap<_, BTreeSet<_>> = ARROWS.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let from = source.module();
        let allowed = arrows.get(from.as_str()).unwrap_or_else(|| panic!("src/{from}: a module that the arrows do not name"));
        for to in used_modules(&source.code) {
            if to != from && !allowed.contains(to.as_str()) {
                wrong.push(format!("{}: uses crate::{to}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not drawn:\n{}", wrong.join("\n"));
}

#[test]
fn allowed_uses_have_no_cycle() {
    let mut left: BTreeMap<_, Vec<_>> = ARROWS.iter().map(|(from, to)| (*from, to.to_vec())).collect();
    while let Some(leaf) = left.iter().find(|(_, to)| to.iter().all(|to| !left.contains_key(to))).map(|(from, _)| *from) {
        left.remove(leaf);
    }
    assert!(left.is_empty(), "a circle among {:?}", left.keys());
}

#[test]
fn files_import_each_other_in_no_cycle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_eq!(graph::cycle(&graph::graph(&root)), None, "move what both use into a file of its own");
}

#[test]
fn cores_use_no_sockets_and_no_clocks() {
    let mut wrong = Vec::new();
    for source in sources().into_iter().filter(|s| CORES.iter().any(|core| s.path.with_extension("").starts_with(core))) {
        for name in NOT_IN_CORES {
            for (number, _) in source.code.lines().enumerate().filter(|(_, line)| line.contains(name)) {
                wrong.push(format!("{}:{}: {name}", source.path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_has_a_module_doc() {
    let silent: Vec<_> = sources().into_iter().filter(|s| !s.text.starts_with("//! ")).map(|s| s.path).collect();
    assert!(silent.is_empty(), "files without a `//!` module doc: {silent:?}");
}

struct Source {
    path: PathBuf,
    text: String,
    /// Without comments and without the tests at the end.
    code: String,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> String {
        let first = self.path.components().next().expect("a path relative to src is not empty");
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).expect("src can be listed").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("src/lib.rs") && !is_test(&path) {
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let code = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
            found.push(Source { path: path.strip_prefix(&root).expect("below src").to_owned(), text, code });
        }
    }
    assert!(found.len() > 10, "only {} sources found", found.len());
    found
}

/// Test modules may use anything.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs") == "tests")
}

/// Every `m` of `crate::m` and of `crate::{m::…, n}`.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(first_segments(group)),
            None => used.extend(identifier(rest)),
        }
    }
    used
}

/// The first segments of a brace group's members, up to its closing brace.
fn first_segments(group: &str) -> BTreeSet<String> {
    let (mut depth, mut expecting, mut found) = (0, true, BTreeSet::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expecting = true,
            c if expecting && c.is_alphabetic() => {
                found.extend(identifier(&group[at..]));
                expecting = false;
            }
            _ => {}
        }
    }
    found
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let name = &text[..end];
    // A macro or a type of the crate root is not a module.
    name.starts_with(|c: char| c.is_lowercase()).then(|| name.to_owned())
}

#[test]
fn used_modules_reads_groups_and_single_uses() {
    let code = "use crate::{a::{B, C}, d, e::F};\nuse crate::g::H;\nfn f() { crate::i::j() }";
    assert_eq!(used_modules(code).into_iter().collect::<Vec<_>>(), ["a", "d", "e", "g", "i"]);
}
