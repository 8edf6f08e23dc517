//! Every input that the fuzz target `connection` ever stumbled over, again.

use std::{fs, path::Path};

use crate::any_bytes::check;

#[test]
fn the_corpus_gets_documented_answers_or_a_clean_close() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/connection");
    let mut seen = 0;
    for entry in fs::read_dir(corpus).expect("the corpus is in the tree") {
        check(&fs::read(entry.expect("an entry").path()).expect("a file"));
        seen += 1;
    }
    assert!(seen >= 20, "{seen} inputs");
}
