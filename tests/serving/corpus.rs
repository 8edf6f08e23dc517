//! The corpora of the fuzz targets `connection` and `http2`.

use std::{fs, path::Path};

use crate::any_bytes::{check, check_frames};

#[test]
fn the_corpus_gets_documented_responses_or_a_clean_close() {
    each("connection", 20, check);
}

#[test]
fn frames_of_the_corpus_get_complete_frames() {
    each("http2", 8, check_frames);
}

fn each(target: &str, least: usize, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in fs::read_dir(corpus).expect("the corpus is in the tree") {
        check(&fs::read(entry.expect("an entry").path()).expect("a file"));
        seen += 1;
    }
    assert!(seen >= least, "{seen} inputs");
}
