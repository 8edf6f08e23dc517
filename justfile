# Sugar for the lines of .ci/run.

# Everything that the gate runs.
ci:
    .ci/run

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings

test *ARGS:
    cargo test {{ARGS}}

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, sources and banned crates.
deny:
    cargo deny check bans licenses sources

# Known vulnerabilities; fetches the advisory database.
advisories:
    cargo deny check advisories

# What the tests of the official clients install, at the versions of the day.
clients:
    cd tests/sdk && npm update --package-lock-only

# The configuration's generated files: example, JSON schema, documentation.
config:
    UPDATE_CONFIG=1 cargo test --lib config::example
