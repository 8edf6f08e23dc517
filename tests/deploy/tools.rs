//! Checks by other tools: promtool, hadolint, schemas, systemd, pip, npm.

use std::process::Command;

use super::{BINARY, ROOT};

#[test]
fn external_checkers_find_no_fault() {
    let output = Command::new("bash").arg("tests/deploy/run").arg(BINARY).current_dir(ROOT).output().expect("bash runs");
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{said}\n{complaints}");
}
