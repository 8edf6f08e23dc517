//! Parsers never panic: runs the corpora of the fuzz targets. They include, by name, inputs that once caused failures.

use std::{fs, path::Path};

use crate::checks::ALL;

#[test]
fn parsers_never_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, check) in ALL {
        let target = root.join(format!("fuzz_targets/{name}.rs"));
        assert!(target.exists(), "{name} has a target");
        let folder = root.join("corpus").join(name);
        let inputs: Vec<_> =
            fs::read_dir(&folder).expect("the corpus is in the tree").map(|entry| entry.expect("an entry").path()).collect();
        assert!(inputs.len() >= 5, "{name}: {} inputs", inputs.len());
        for input in inputs {
            let bytes = fs::read(&input).expect("a file");
            // Truncated input is the most common malformed input.
            for end in [bytes.len(), bytes.len() / 2, bytes.len() / 3] {
                let checked = std::panic::catch_unwind(|| check(&bytes[..end]));
                assert!(checked.is_ok(), "{}, its first {end} bytes", input.display());
            }
        }
    }
}
