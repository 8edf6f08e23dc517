# The gate's parts, each of them `.ci/run PART`, and what regenerates files. `just` is optional.

# All parts of the gate, or those that are named.
ci *PARTS:
    .ci/run {{PARTS}}

format: (ci "format")
lint: (ci "lint")
doc: (ci "doc")
deny: (ci "deny")
tests: (ci "tests")
build: (ci "build")
unit: (ci "unit")
limiter: (ci "limiter")
commands: (ci "commands")
simulation: (ci "simulation")
contract: (ci "contract")
wire: (ci "wire")
redis: (ci "redis")
suites: (ci "suites")
deploy: (ci "deploy")

# Formats the code.
fmt:
    cargo fmt --all

test *ARGS:
    cargo test {{ARGS}}

# Known vulnerabilities; fetches the advisory database.
advisories:
    cargo deny check advisories

# What the tests of the official clients install, at the versions of the day.
clients:
    cd tests/sdk && npm update --package-lock-only

# The configuration's generated files: example, JSON schema, documentation.
config:
    UPDATE_CONFIG=1 cargo test --lib generated_files_are

# README's figures, from those under docs.
figures:
    UPDATE_README=1 cargo test --test layout figures

# README's picture of the page, over the simulated Groq; needs Chromium.
picture:
    cargo build && docs/picture.sh

# The documentation as a book with search, in target/book. Needs mdbook: cargo install mdbook --locked
book:
    mdbook build
