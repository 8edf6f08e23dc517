//! Names the configuration under which the limiter's sources use shuttle, and the feature of theirs that is off here.

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"redis\", \"schemars\"))");
}
