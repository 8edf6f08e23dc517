//! The real binary as a child process, its output line by line.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest wait for a log line.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The binary in an empty working directory, without the developer's own GROQ_* and proxy variables.
pub(crate) fn shield(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groq-shield"));
    command.args(words).current_dir(folder).stdin(Stdio::null()).env("NO_COLOR", "1");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GROQ_") || name.to_lowercase().ends_with("_proxy")) {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

pub(crate) fn write(folder: &Path, text: &str) {
    std::fs::write(folder.join("groq-shield.toml"), text).expect("the file is written");
}

pub(crate) fn ran(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("no signal ended it"), text(stdout), text(stderr))
}

/// A running shield; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (sender, lines) = mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let sender = sender.clone();
            thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        }
        Self { child, lines }
    }

    /// The next log line that contains `part`.
    pub(crate) fn line(&self, part: &str) -> String {
        let mut before = String::new();
        loop {
            match self.lines.recv_timeout(LONGEST_WAIT) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before += &format!("{line}\n"),
                Err(_) => panic!("no line with {part:?} after:\n{before}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it can be signalled");
    }

    pub(crate) fn ended(mut self) -> ExitStatus {
        self.child.wait().expect("it can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `host:port` behind `name=` in a log line.
pub(crate) fn address(line: &str, name: &str) -> String {
    let mark = format!("{name}=");
    line.split(' ').find_map(|word| word.strip_prefix(&mark)).unwrap_or_else(|| panic!("no {mark} in {line}")).to_owned()
}

/// The words that start a shield with a simulated upstream on free ports.
pub(crate) const SERVE: [&str; 5] = ["--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
