//! The documents name only what exists: files, links, commands, codes, messages; and each figure is maintained in one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// First components of paths in the documents.
const ROOTS: [&str; 10] = ["src/", "crates/", "tests/", "config/", "deploy/", "docs/", "benches/", "examples/", "fuzz/", ".ci/"];

#[test]
fn files_named_in_documents_exist() {
    let mut missing = Vec::new();
    for (name, text) in documents() {
        for word in quoted(&text).into_iter().flat_map(str::split_whitespace).map(|word| word.trim_start_matches("./")) {
            let path = word.trim_end_matches('/');
            if ROOTS.iter().any(|root| word.starts_with(root)) && path.len() > 4 && !path.contains('*') && !root(path).exists() {
                missing.push(format!("{name}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The answers to ARCHITECTURE's questions name functions (`Class::of`) of the files beside them.
#[test]
fn architectures_answers_name_existing_functions() {
    let documents = documents();
    let rows: Vec<_> =
        after(&documents["ARCHITECTURE.md"], "## Ten questions").lines().filter(|line| line.contains(".rs`")).collect();
    assert_eq!(rows.len(), 10, "ten questions");
    let mut missing = Vec::new();
    for row in rows {
        let (names, files): (Vec<_>, Vec<_>) =
            quoted(row).into_iter().filter(|word| !word.contains(' ')).partition(|word| word.contains("::"));
        let source: String = files.iter().filter_map(|file| fs::read_to_string(root(file)).ok()).collect();
        for name in names {
            let item = name.rsplit("::").next().unwrap_or_default();
            if !source.contains(&format!("fn {item}(")) && !source.contains(&format!("::{item}")) {
                missing.push(format!("{name}: {row}"));
            }
        }
    }
    assert!(missing.is_empty(), "functions that are in none of the files beside them:\n{}", missing.join("\n"));
}

#[test]
fn links_in_documents_resolve() {
    let mut broken = Vec::new();
    let documents = documents();
    let headings: BTreeMap<_, BTreeSet<_>> = documents.iter().map(|(name, text)| (name.clone(), anchors(text))).collect();
    for (name, text) in &documents {
        let folder = Path::new(name).parent().expect("a file has a folder");
        for link in links(text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { name.clone() } else { folder.join(path).display().to_string() };
            if !root(&target).exists() || (!anchor.is_empty() && !headings.get(&target).is_some_and(|all| all.contains(anchor))) {
                broken.push(format!("{name}: {link}"));
            }
            // The book contains the files under docs and nothing else.
            if name.starts_with("docs/") && path.starts_with("..") {
                broken.push(format!("{name}: {link} leads out of the book; name the file instead"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_book_contains_every_document() {
    let summary = fs::read_to_string(root("docs/SUMMARY.md")).expect("the book's contents");
    let listed: BTreeSet<_> = links(&summary).into_iter().map(|link| format!("docs/{link}")).collect();
    let found = documents().into_keys().filter(|name| name.starts_with("docs/") && name != "docs/SUMMARY.md").collect();
    assert_eq!(listed, found);
}

/// `--test wire`, `--bench shield`, `--example soak`, `fuzz run sse`, `just lint`: each names an existing target.
#[test]
fn commands_in_documents_name_existing_targets() {
    let recipes = fs::read_to_string(root("justfile")).expect("the justfile");
    let mut missing = Vec::new();
    for (name, text) in documents() {
        for command in quoted(&text).into_iter().chain(fenced(&text)) {
            let words: Vec<_> = command.split_whitespace().collect();
            for pair in words.windows(2) {
                let there = |folders: &[&str], file: &str| {
                    folders.iter().any(|folder| {
                        root(&format!("{folder}/{file}.rs")).exists() || root(&format!("{folder}/{file}/main.rs")).exists()
                    })
                };
                let is_there = match (pair[0], pair[1]) {
                    ("--test", file) => there(&["tests", "crates/groq-limiter/tests"], file),
                    ("--bench", file) => there(&["benches", "crates/groq-limiter/benches"], file),
                    ("--example", file) => there(&["examples"], file),
                    ("run", file) if command.contains("fuzz") => there(&["fuzz/fuzz_targets"], file),
                    ("just", recipe) => recipes.lines().any(|line| line.split([' ', ':']).next() == Some(recipe)),
                    _ => true,
                };
                if !is_there {
                    missing.push(format!("{name}: {} {}", pair[0], pair[1]));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The gate runs every test target, in parts that the justfile has too, and CONTRIBUTING lists their times.
#[test]
fn the_gate_runs_every_test_target() {
    let gate = fs::read_to_string(root(".ci/run")).expect("the gate");
    let list = gate.split("\nall=(").nth(1).and_then(|rest| rest.split(')').next()).expect("the list of parts");
    let recipes = fs::read_to_string(root("justfile")).expect("the justfile");
    let contributing = &documents()["CONTRIBUTING.md"];
    for part in list.split_whitespace() {
        assert!(gate.contains(&format!("\n{part}() {{")), "no function {part}");
        assert!(recipes.contains(&format!("\n{part}: (ci \"{part}\")\n")), "no recipe {part}");
        assert!(contributing.contains(&format!("\n| `{part}` | ")), "CONTRIBUTING.md does not list {part}");
    }
    for folder in ["tests", "crates/groq-limiter/tests", "crates/groq-sim/tests"] {
        for entry in fs::read_dir(root(folder)).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_target = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists();
            assert!(!is_target || gate.contains(&format!("--test {name}")), "{folder}/{name} is in no part of .ci/run");
        }
    }
}

#[test]
fn every_error_code_is_documented() {
    let documents = documents();
    let told: BTreeSet<_> = quoted(after(&documents["docs/errors.md"], "<!-- codes -->")).into_iter().collect();
    let table = fs::read_to_string(root("src/proxy/error/table.rs")).expect("the failure table");
    let table = table.split("#[cfg(test)]").next().unwrap_or_default();
    let made: BTreeSet<_> = table.split('"').skip(1).step_by(2).filter(|word| is_code(word)).collect();
    assert!(made.len() > 15, "{made:?}");
    let missing: Vec<_> = made.iter().filter(|code| !told.contains(*code)).collect();
    assert!(missing.is_empty(), "codes that docs/errors.md does not explain: {missing:?}");
}

#[test]
fn every_documented_message_exists() {
    let mut source = String::new();
    read_all(&root("src"), &mut source);
    let documents = documents();
    let rows = after(&documents["docs/troubleshooting.md"], "<!-- messages -->").lines().filter(|line| line.starts_with("| `"));
    let messages: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(messages.len() > 12, "{messages:?}");
    for message in messages {
        assert!(source.contains(message), "nothing says {message:?} any more");
    }
}

/// The README's figures are copies of those in the documents that say how they were measured.
/// `UPDATE_README=1 cargo test --test layout figures` writes them.
#[test]
fn the_readme_has_the_figures_of_the_documents() {
    let documents = documents();
    let readme = &documents["README.md"];
    let (before, rest) = readme.split_once("<!-- figures -->\n").expect("the README marks its figures");
    let (_, rest) = rest.split_once("\n\nHow, when").expect("they end before the links");
    let cell = |document: &str, row: &str, column: &str| cell(&documents[document], row, column);
    let limiter = |row: &str, column: &str| cell("docs/figures.md", row, column);
    let cost = |row: &str, column: &str| cell("docs/performance.md", row, column);
    let first = |cell: String| cell.split_whitespace().next().unwrap_or_default().to_owned();
    let lines = [
        ("", "", ""),
        ("---", "---", "---"),
        (
            "limit used at 3 times the load",
            &format!("{} %", limiter("bucket-3x-M", "used %")),
            &format!("{} %", limiter("A-3x-M", "used %")),
        ),
        (
            "refused by Groq, of 1000 sends",
            &first(limiter("bucket-3x-M", "429 ‰ (of sends)")),
            &first(limiter("A-3x-M", "429 ‰ (of sends)")),
        ),
        (
            "a light app's wait p50 / p99, s; failed, %",
            &limiter("bucket-3x-M", "watched p50 / p99 / failed %"),
            &limiter("A-3x-M", "watched p50 / p99 / failed %"),
        ),
        ("with a fifth of the limit used outside the shield: refused", &first(limiter("foreign-M", "429 ‰ (of sends)")), ""),
        ("CPU of a 1 KB request, beside a bare hyper proxy", &cost("CPU a request 1k@64, µs", "ratio to bare hyper"), "1"),
        ("memory when idle, MB", &cost("memory idle, MB", "shield"), ""),
    ];
    let table: Vec<_> = lines
        .iter()
        .map(|(what, shield, other)| match *what {
            "" => "| | through the shield | without it |".to_owned(),
            "---" => "|---|---|---|".to_owned(),
            what => format!("| {what} | {shield} | {other} |").replace("|  |", "| |"),
        })
        .collect();
    let expected = format!("{before}<!-- figures -->\n\n{}\n\nHow, when{rest}", table.join("\n"));
    let demo = |text: &str| after(text, "<!-- demo -->").split("```").nth(1).expect("the demo's table").to_owned();
    let expected = expected.replacen(&demo(readme), &demo(&documents["docs/figures.md"]), 1);
    if std::env::var_os("UPDATE_README").is_some() {
        return fs::write(root("README.md"), &expected).expect("the README is written");
    }
    assert!(
        *readme == expected,
        "README's figures should be:\n{}\nUPDATE_README=1 cargo test --test layout figures",
        table.join("\n")
    );
}

/// The README's other text and the changelog state no measured figures, which would have to be kept in step with the documents.
#[test]
fn figures_stand_only_in_the_documents_that_say_how_they_were_measured() {
    let readme = &documents()["README.md"];
    let (before, rest) = readme.split_once("<!-- figures -->").expect("the README marks its figures");
    let (_, after) = rest.split_once("\n\nHow, when").expect("they end before the links");
    let changelog = fs::read_to_string(root("CHANGELOG.md")).expect("the changelog");
    let mut found = Vec::new();
    for (name, text) in [("README.md", before), ("README.md", after), ("CHANGELOG.md", changelog.as_str())] {
        let prose = text.split("```").step_by(2).flat_map(str::lines);
        found.extend(prose.filter(|line| has_measured_figure(line)).map(|line| format!("{name}: {line}")));
    }
    assert!(
        found.is_empty(),
        "figures outside of docs/figures.md, docs/performance.md and docs/limiter.md:\n{}",
        found.join("\n")
    );
}

/// Whether a number stands before a unit of measurement.
fn has_measured_figure(line: &str) -> bool {
    const UNITS: [&str; 9] = ["%", "‰", "ns", "µs", "us", "ms", "KB", "MB", "GB"];
    line.match_indices(|c: char| c.is_ascii_digit()).any(|(at, _)| {
        let rest = line[at..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ',');
        let unit = rest.trim_start().split(|c: char| c.is_whitespace() || ";,.)".contains(c)).next().unwrap_or_default();
        UNITS.contains(&unit)
    })
}

#[test]
fn measured_figures_are_recognized() {
    for line in ["used 99.1 % of it", "9 MB when idle", "takes 1.25 µs, or more", "(4 ms)"] {
        assert!(has_measured_figure(line), "{line}");
    }
    for line in ["`breaker.open` (5 s)", "2000 tokens a minute", "HTTP/2 and HTTP/1.1", "at most 200 models"] {
        assert!(!has_measured_figure(line), "{line}");
    }
}

/// Every figure can be measured again: a table of figures stands below a line with date, commit and command.
#[test]
fn every_table_of_figures_says_how_it_was_measured() {
    let documents = documents();
    let mut silent = Vec::new();
    for name in ["docs/figures.md", "docs/performance.md", "docs/limiter.md"] {
        let mut section = "";
        let mut measured = false;
        for line in documents[name].lines() {
            if line.starts_with('#') {
                (section, measured) = (line, false);
            }
            measured |= is_measured(line);
            if line.starts_with("|---") && !measured {
                silent.push(format!("{name}: {section}"));
            }
        }
    }
    assert!(silent.is_empty(), "tables without `Measured: DATE, COMMIT, COMMAND`:\n{}", silent.join("\n"));
}

/// `Measured: 28 November 2026, commit 0123abc, …`
fn is_measured(line: &str) -> bool {
    let Some(rest) = line.trim_start_matches(['*', '_']).strip_prefix("Measured: ") else { return false };
    let mut parts = rest.splitn(3, ", ");
    let (date, commit, how) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let year = date.split_whitespace().last().unwrap_or_default();
    let commit = commit.strip_prefix("commit `").and_then(|rest| rest.strip_suffix('`')).unwrap_or_default();
    year.len() == 4
        && year.chars().all(|c| c.is_ascii_digit())
        && commit.len() >= 7
        && commit.chars().all(|c| c.is_ascii_hexdigit())
        && how.is_some_and(|how| how.contains('`'))
}

/// The cell of the first table with such a row, by its first cell and the beginning of its column's name.
fn cell(text: &str, row: &str, column: &str) -> String {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut header = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if lines.peek().is_some_and(|next| next.starts_with("|---")) {
            header = cells(line);
        } else if line.starts_with('|') && cells(line)[0] == row {
            let at =
                header.iter().position(|name| name.starts_with(column)).unwrap_or_else(|| panic!("{row}: no column {column}"));
            return cells(line)[at].clone();
        }
    }
    panic!("no row {row}");
}

/// Every document by its path from the root.
fn documents() -> BTreeMap<String, String> {
    let mut names: Vec<_> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(str::to_owned).into();
    for entry in fs::read_dir(root("docs")).expect("docs can be listed") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    assert!(names.len() > 12, "{names:?}");
    let read = |name: String| {
        let text = fs::read_to_string(root(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// The targets of links within the repository.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// The headings of a document as GitHub and mdBook name them in links.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// Everything between single backticks, outside of fenced blocks.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(str::lines).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The lines of fenced blocks.
fn fenced(text: &str) -> Vec<&str> {
    text.split("```").skip(1).step_by(2).flat_map(str::lines).collect()
}

/// The table below a mark.
fn after<'a>(text: &'a str, mark: &str) -> &'a str {
    let (_, rest) = text.split_once(mark).unwrap_or_else(|| panic!("no {mark}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// Codes are words in snake case; other strings of the failure table are sentences, types, members or header names.
fn is_code(word: &str) -> bool {
    let snake = word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    snake && !["invalid_request_error", "internal_server_error", "status_code"].contains(&word)
}

fn read_all(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).expect("sources can be listed") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => read_all(&path, into),
            false => into.push_str(&fs::read_to_string(&path).unwrap_or_default()),
        }
    }
}

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
