//! Every test that docs/promises.md names exists.

use std::{fs, path::Path};

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/promises.md")).expect("the table is in the tree");
    let (table, _) = text.split_once("\n## ").expect("the commands come after the table");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 20, "{} promises", rows.len());
    let mut missing = Vec::new();
    for row in rows {
        let mut source = None;
        let mut named = 0;
        for name in row.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                source = Some((name, fs::read_to_string(root.join(name)).unwrap_or_default()));
            } else if let Some((file, text)) = &source {
                named += 1;
                if !text.contains(&format!("fn {name}(")) {
                    missing.push(format!("{file}: {name}"));
                }
            }
        }
        if named == 0 {
            missing.push(format!("a promise without a test: {row}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
