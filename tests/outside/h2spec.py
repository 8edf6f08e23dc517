#!/usr/bin/env python3
"""h2spec's generic, hpack and http2 suites against a shield, without TLS.

tests/outside/h2spec.py [h2spec]

To build h2spec: `go install github.com/summerwind/h2spec/cmd/h2spec@af83a65`; or on Debian without Go's proxy,
`apt-get install golang-go golang-golang-x-net-dev golang-github-spf13-cobra-dev golang-github-fatih-color-dev`, its sources
below GOPATH/src/github.com/summerwind/h2spec, and there
`GO111MODULE=off GOPATH=$GOPATH:/usr/share/gocode go build ./cmd/h2spec`.
"""

import re
import subprocess
import sys

from shield import Shield

# An invalid preface means HTTP/1.1 on this listener: it is answered with 400 and a close.
EXPECTED = {"Sends invalid connection preface"}


def main():
    h2spec = sys.argv[1] if len(sys.argv) > 1 else "h2spec"
    # As many concurrent streams as are allowed must not block each other.
    with Shield('[limits]\nplan = "none"') as shield:
        command = [h2spec, "generic", "hpack", "http2", "-p", str(shield.port), "-h", "127.0.0.1", "--strict"]
        output = subprocess.run([*command, "--path", "/openai/v1/models"], capture_output=True, text=True).stdout
    print(output)
    failed = set(re.findall(r"^\s*× \d+: (.*)$", output, re.M))
    print("failed:", failed or "none", "- expected:", EXPECTED)
    sys.exit(0 if "tests," in output and failed <= EXPECTED else 1)


main()
