//! Is the README true? Every command of it is run, every example of a file is checked, its failures and messages are the code's.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use tempfile::TempDir;

use crate::kit::{Process, binary, python};

const README: &str = include_str!("../../README.md");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// One fenced block with the comment before it that says how it is tested.
#[derive(Debug)]
struct Block {
    mark: &'static str,
    language: &'static str,
    text: &'static str,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shell = Shell::new(&directory);
    fs::write(directory.path().join("app.py"), "import os\nprint(os.environ['GROQ_BASE_URL'], os.environ['OPENAI_BASE_URL'])\n")
        .expect("written");
    fs::write(directory.path().join("groq-shield.toml"), "[queue]\nmax_wait = \"20s\"\n").expect("written");
    let mut shield = None;
    for block in blocks() {
        let shielded = || shield.as_ref().unwrap_or_else(|| panic!("no shield runs yet: {block:?}"));
        match (block.mark, block.language) {
            ("background", "sh") => {
                let arguments: Vec<_> = block.text.split_whitespace().skip_while(|word| *word != "--").skip(1).collect();
                assert!(block.text.starts_with("cargo run --release -- "), "{block:?}");
                shield = Some(Process::start(
                    &arguments,
                    &[("GROQ_SHIELD_LISTEN", "127.0.0.1:0"), ("GROQ_SHIELD_ADMIN", "127.0.0.1:0")],
                ));
            }
            ("run", "sh") => {
                let out = shell.succeeds(block.text, Some(shielded())).await;
                assert!(!out.is_empty() && !out.starts_with("{\"error\""), "{block:?}:\n{out}");
            }
            ("silent", "sh") => drop(shell.succeeds(block.text, Some(shielded())).await),
            ("python", "python") => {
                let (file, interpreter) = (directory.path().join("snippet.py"), python());
                fs::write(&file, pointed_at(block.text, shielded())).expect("written");
                let out = shell.succeeds(&format!("{} {}", interpreter.display(), file.display()), None).await;
                assert!(!out.trim().is_empty(), "{block:?}");
            }
            ("exec", "sh") => {
                let out = shell.succeeds(block.text, None).await;
                assert!(out.contains("http://127.0.0.1:") && out.contains("/openai/v1"), "{out}");
            }
            ("check", "sh") => {
                let out = shell.succeeds(block.text, None).await;
                assert!(out.contains("20s"), "{out}");
            }
            ("config", "toml") => {
                fs::write(directory.path().join("example.toml"), block.text).expect("written");
                shell.succeeds("groq-shield check --config example.toml", None).await;
            }
            ("demo", "sh") => {
                let command = block.text.replace("cargo run --release --", "groq-shield");
                let out = shell.succeeds(&command, None).await;
                let picture = README.split("```\n").find(|text| text.contains("the SDKs alone")).expect("the picture");
                // Its rows by name; the figures are of one run.
                for row in picture.lines().skip(2).map(|row| row.split("  ").find(|cell| !cell.is_empty()).unwrap_or_default()) {
                    assert!(out.contains(row.trim()), "{row}:\n{out}");
                }
            }
            // Installing takes a release build; that the package can be installed is cargo's affair, what it starts is ours.
            ("start", "sh") => {
                assert!(block.text.ends_with("groq-shield\n"), "{block:?}");
                let arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
                assert!(Process::start(&arguments, &[]).log().contains("127.0.0.1"));
            }
            // The command that runs this test, and the gate's.
            ("this", "sh") => {
                assert!(fs::read_to_string(file(".ci/run")).expect("the gate").contains(block.text.trim()), "{block:?}")
            }
            ("", "json" | "") => {}
            _ => panic!("how is this tested? {block:?}"),
        }
    }
}

#[test]
fn the_failures_are_the_codes() {
    let section = section("## What an app sees");
    let told: BTreeSet<_> = quoted(section).into_iter().filter(|word| is_code(word)).collect();
    let table = fs::read_to_string(file("src/proxy/error/table.rs")).expect("the failure table");
    let table = table.split("#[cfg(test)]").next().unwrap_or_default();
    let made: BTreeSet<_> = table.split('"').skip(1).step_by(2).filter(|word| is_code(word)).collect();
    let missing: Vec<_> = made.iter().filter(|code| !told.contains(*code)).collect();
    assert!(missing.is_empty(), "codes that the README does not explain: {missing:?}");
}

#[test]
fn the_messages_are_the_codes() {
    let mut source = String::new();
    read_all(Path::new(SOURCES), &mut source);
    let rows = section("## Troubleshooting").lines().filter(|line| line.starts_with("| `"));
    let messages: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(messages.len() > 8, "{messages:?}");
    for message in messages {
        assert!(source.contains(message), "nothing says {message:?} any more");
    }
}

#[test]
fn what_it_points_to_is_there() {
    for target in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")) {
        assert!(file(target).exists(), "{target}");
    }
}

/// Runs commands in a directory, with the tested binary first in the path.
struct Shell<'a> {
    directory: &'a TempDir,
    path: String,
}

impl<'a> Shell<'a> {
    fn new(directory: &'a TempDir) -> Self {
        let bin = Path::new(env!("CARGO_BIN_EXE_groq-shield")).parent().expect("the binary lies in a directory");
        // `python` is `python3` where nobody has said otherwise.
        let path =
            format!("{}:{}:{}", bin.display(), python().with_file_name("").display(), std::env::var("PATH").unwrap_or_default());
        Self { directory, path }
    }

    async fn succeeds(&self, script: &str, shield: Option<&Process>) -> String {
        let script = shield.map_or_else(|| script.to_owned(), |shield| pointed_at(script, shield));
        let mut command = tokio::process::Command::from({
            let mut clean = std::process::Command::new("bash");
            // The environment of `binary`: nothing of the developer's own.
            clean.envs(binary().get_envs().filter_map(|(name, value)| Some((name, value?))));
            for (name, _) in binary().get_envs().filter(|(_, value)| value.is_none()) {
                clean.env_remove(name);
            }
            clean
        });
        command.args(["-euo", "pipefail", "-c", &script]).current_dir(self.directory).env("PATH", &self.path);
        if let Some(shield) = shield {
            command.env("GROQ_SHIELD_ADMIN", shield.admin().to_string());
        }
        let run = tokio::time::timeout(std::time::Duration::from_secs(120), command.kill_on_drop(true).output()).await;
        let Output { status, stdout, stderr } = run.unwrap_or_else(|_| panic!("still running: {script}")).expect("bash runs");
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{script}\n{status}\n{out}\n{err}");
        out.into_owned()
    }
}

/// A script with the README's two addresses replaced by a shield's own.
fn pointed_at(script: &str, shield: &Process) -> String {
    script.replace("127.0.0.1:8787", &shield.address().to_string()).replace("127.0.0.1:8788", &shield.admin().to_string())
}

fn blocks() -> Vec<Block> {
    let mut parts = README.split("```");
    let mut found = Vec::new();
    while let (Some(before), Some(fenced)) = (parts.next(), parts.next()) {
        let (language, text) = fenced.split_once('\n').expect("a fence ends its line");
        let last = before.trim_end().lines().last().unwrap_or_default();
        let mark = last.strip_prefix("<!-- readme: ").and_then(|rest| rest.strip_suffix(" -->")).unwrap_or_default();
        found.push(Block { mark, language, text });
    }
    assert!(found.len() > 8, "{found:?}");
    found
}

/// The text below a heading, up to the next of its rank.
fn section(heading: &str) -> &'static str {
    let from = README.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let rest = &README[from + heading.len()..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// Everything between single backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
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

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
