//! Names the configuration under which the limiter's sources use shuttle, and their features that are off here.

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"redis\", \"schemars\"))");
}
