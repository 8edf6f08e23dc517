#!/usr/bin/env bash
# The release binary, guided by a profile of its own requests: a tenth less CPU a request than `cargo build --release`
# (docs/performance.md). From the repository's root, on the machine's own target; five to ten minutes:
#   ./deploy/profiled.sh        # makes target/profiled/groq-shield
# Needs two cores, util-linux, and llvm-profdata no older than rustc's LLVM: `rustup component add llvm-tools`, or
# Debian's llvm-NN.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(rustc -vV)
host=$(sed -n 's/^host: //p' <<<"$version")
llvm=$(sed -n 's/^LLVM version: \([0-9]*\).*/\1/p' <<<"$version")

profdata=
for candidate in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "llvm-profdata-$llvm" llvm-profdata; do
  if command -v "$candidate" >/dev/null; then
    profdata=$candidate
    break
  fi
done
if [[ -z $profdata ]]; then
  echo "no llvm-profdata: rustup component add llvm-tools, or apt-get install llvm-$llvm" >&2
  exit 1
fi

# With --target, flags go to the program alone and not to what builds it.
build() {
  RUSTFLAGS="${RUSTFLAGS-} $1" cargo build --release --locked --bin groq-shield --target "$host" --target-dir target/profiling
}
built=target/profiling/$host/release/groq-shield
counts=$PWD/target/profiling/counts

rm -rf "$counts"
build "-Cprofile-generate=$counts"
cargo run --release --locked --example cost -- train --shield "$built"
"$profdata" merge --output="$counts/merged" "$counts"
# Named after what it says: cargo builds all anew when that has changed.
profile=$PWD/target/profiling/$(sha256sum "$counts/merged" | head -c 16).profdata
mv "$counts/merged" "$profile"
build "-Cprofile-use=$profile"
install -D "$built" target/profiled/groq-shield
ls -l target/profiled/groq-shield
