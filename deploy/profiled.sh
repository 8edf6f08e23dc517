#!/usr/bin/env bash
# Builds the release binary with profile-guided optimization, from a profile of requests. Run it in the repository's root, for the
# machine's own target; it takes five to ten minutes:
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

# With --target, flags apply to the program and not to build scripts.
build() {
  RUSTFLAGS="${RUSTFLAGS-} $1" cargo build --release --locked --bin groq-shield --target "$host" --target-dir target/profiling
}
built=target/profiling/$host/release/groq-shield
counts=$PWD/target/profiling/counts

rm -rf "$counts"
build "-Cprofile-generate=$counts"
cargo run --release --locked --example cost -- train --shield "$built"
"$profdata" merge --output="$counts/merged" "$counts"
# Named after its contents, so that cargo rebuilds everything when they change.
profile=$PWD/target/profiling/$(sha256sum "$counts/merged" | head -c 16).profdata
mv "$counts/merged" "$profile"
build "-Cprofile-use=$profile"
install -D "$built" target/profiled/groq-shield
ls -l target/profiled/groq-shield
