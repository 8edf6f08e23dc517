//! Runs every command and checks every configuration example of the documentation.
//!
//! A comment `<!-- test: MARK -->` before a block determines how it is tested. `tests/layout` checks links, names and figures.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use tempfile::TempDir;

use crate::kit::{Process, binary, python};

/// Documents for developers of the shield, whose commands take minutes or need special machines. `tests/layout` checks that the
/// targets in them exist.
const FOR_DEVELOPERS: [&str; 6] = ["SUMMARY", "performance", "figures", "limiter", "promises", "conformance"];

/// One fenced block with its mark.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    mark: String,
    language: String,
    text: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shell = Shell::new(&directory);
    fs::write(directory.path().join("app.py"), "import os\nprint(os.environ['GROQ_BASE_URL'], os.environ['OPENAI_BASE_URL'])\n")
        .expect("written");
    fs::write(directory.path().join("groq-shield.toml"), "[queue]\nmax_wait = \"20s\"\n").expect("written");
    let shield = simulated(&["serve", "--simulate"]);
    let blocks: BTreeSet<_> = documents().iter().flat_map(|path| blocks(path)).collect();
    assert!(blocks.len() > 20, "{blocks:?}");
    for block in &blocks {
        match (block.mark.as_str(), block.language.as_str()) {
            ("background", "sh") => {
                let arguments: Vec<_> = block.text.split_whitespace().skip_while(|word| *word != "--").skip(1).collect();
                assert!(block.text.starts_with("cargo run --release -- "), "{block:?}");
                drop(simulated(&arguments));
            }
            ("run", "sh") => {
                let out = shell.succeeds(&block.text, Some(&shield)).await;
                assert!(!out.is_empty() && !out.starts_with("{\"error\""), "{block:?}:\n{out}");
            }
            ("usage", "sh") => {
                let request = "curl -sS --fail http://127.0.0.1:8787/openai/v1/chat/completions -H 'authorization: Bearer a-key' \
                    -H 'x-shield-app: nightly' -H 'content-type: application/json' \
                    -d '{\"model\": \"openai/gpt-oss-20b\", \"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}'";
                shell.succeeds(request, Some(&shield)).await;
                let out = shell.succeeds(&block.text, Some(&shield)).await;
                assert!(out.contains("app, since the start") && out.lines().any(|line| line.starts_with("nightly ")), "{out}");
                assert!(out.contains(r#"tokens_total{app="nightly",model="openai/gpt-oss-20b",kind="prompt"}"#), "{out}");
            }
            ("silent", "sh") => drop(shell.succeeds(&block.text, Some(&shield)).await),
            ("python", "python") => {
                let (file, interpreter) = (directory.path().join("snippet.py"), python());
                fs::write(&file, pointed_at(&block.text, &shield)).expect("written");
                let out = shell.succeeds(&format!("{} {}", interpreter.display(), file.display()), None).await;
                assert!(!out.trim().is_empty(), "{block:?}");
            }
            ("exec", "sh") => {
                let out = shell.succeeds(&block.text, None).await;
                assert!(out.contains("http://127.0.0.1:") && out.contains("/openai/v1"), "{out}");
            }
            ("check", "sh") => {
                let out = shell.succeeds(&block.text, None).await;
                assert!(out.contains("20s"), "{out}");
            }
            ("digest", "sh") => {
                let out = shell.succeeds(&format!("TOKEN=abc\n{}", block.text), None).await;
                assert!(out.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "{out}");
            }
            ("config", "toml") => {
                fs::write(directory.path().join("example.toml"), &block.text).expect("written");
                shell.succeeds("groq-shield check --config example.toml", None).await;
            }
            ("manifest", "yaml") => {
                use saphyr::{LoadableYamlNode as _, Yaml};
                let manifest = &Yaml::load_from_str(&block.text).expect("YAML")[0];
                assert_eq!(manifest["kind"].as_str(), Some("NetworkPolicy"), "{block:?}");
                assert!(manifest["spec"]["ingress"][0]["ports"][0]["port"].as_integer() == Some(8788), "{block:?}");
            }
            ("demo", "sh") => {
                let command = block.text.replace("cargo run --release --", "groq-shield");
                let out = shell.succeeds(&command, None).await;
                let readme = fs::read_to_string(file("README.md")).expect("the README");
                let picture = readme.split("```\n").find(|text| text.contains("the SDKs alone")).expect("the picture");
                // Only the names of the rows, because figures differ between runs.
                for row in picture.lines().skip(2).map(|row| row.split("  ").find(|cell| !cell.is_empty()).unwrap_or_default()) {
                    assert!(out.contains(row.trim()), "{row}:\n{out}");
                }
            }
            // `cargo install` needs a release build, so the tested binary is used instead.
            ("start", "sh") => {
                assert!(block.text.ends_with("groq-shield\n"), "{block:?}");
                let arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
                assert!(Process::start(&arguments, &[]).log().contains("127.0.0.1"));
            }
            ("", "json" | "") => {}
            _ => panic!("how is this tested? {block:?}"),
        }
    }
}

/// A shield in front of a simulated Groq, on free ports.
fn simulated(arguments: &[&str]) -> Process {
    Process::start(arguments, &[("GROQ_SHIELD_LISTEN", "127.0.0.1:0"), ("GROQ_SHIELD_ADMIN", "127.0.0.1:0")])
}

/// Runs commands in a directory, with the tested binary first in the path.
struct Shell<'a> {
    directory: &'a TempDir,
    path: String,
}

impl<'a> Shell<'a> {
    fn new(directory: &'a TempDir) -> Self {
        let bin = Path::new(env!("CARGO_BIN_EXE_groq-shield")).parent().expect("the binary lies in a directory");
        // `python` is an alias of `python3`, which some systems lack.
        let path =
            format!("{}:{}:{}", bin.display(), python().with_file_name("").display(), std::env::var("PATH").unwrap_or_default());
        Self { directory, path }
    }

    async fn succeeds(&self, script: &str, shield: Option<&Process>) -> String {
        let script = shield.map_or_else(|| script.to_owned(), |shield| pointed_at(script, shield));
        let mut command = tokio::process::Command::from({
            let mut clean = std::process::Command::new("bash");
            // The environment of `binary`, without the developer's settings.
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

/// Replaces the two addresses of the documentation by those of a running shield.
fn pointed_at(script: &str, shield: &Process) -> String {
    script.replace("127.0.0.1:8787", &shield.address().to_string()).replace("127.0.0.1:8788", &shield.admin().to_string())
}

/// The README, and the documents under `docs` that are for users.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(file("docs")).expect("docs can be listed").map(|entry| entry.expect("an entry").path());
    let is_for_users = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "md")
            && !FOR_DEVELOPERS.iter().any(|name| path.file_stem().is_some_and(|stem| stem == *name))
    };
    docs.filter(is_for_users).chain([file("README.md")]).collect()
}

fn blocks(document: &Path) -> Vec<Block> {
    let text = fs::read_to_string(document).expect("a document is UTF-8");
    let mut parts = text.split("```");
    let mut found = Vec::new();
    while let (Some(before), Some(fenced)) = (parts.next(), parts.next()) {
        let (language, text) = fenced.split_once('\n').expect("a fence ends its line");
        let last = before.trim_end().lines().last().unwrap_or_default();
        let mark = last.strip_prefix("<!-- test: ").and_then(|rest| rest.strip_suffix(" -->")).unwrap_or_default();
        found.push(Block { mark: mark.to_owned(), language: language.to_owned(), text: text.to_owned() });
    }
    found
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
