#!/usr/bin/env python3
"""Packs a built groq-shield into a wheel, so that `uvx groq-shield exec -- python app.py` and `pip install groq-shield` work.

    python deploy/python/build.py target/release/groq-shield --out dist

Needs Python 3.11 or later and nothing else. The wheel holds the binary as a script, its man page and its shell completions, and no
Python code. Its platform tag is read from the binary: the oldest glibc that it can run on, or manylinux and musllinux both where it
is static. Name and version are Cargo.toml's.
"""

import argparse
import base64
import hashlib
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "share/man/man1/groq-shield.1": ["man"],
    "share/bash-completion/completions/groq-shield": ["completions", "bash"],
    "share/zsh/site-functions/_groq-shield": ["completions", "zsh"],
    "share/fish/vendor_completions.d/groq-shield.fish": ["completions", "fish"],
}


def platform_tag(binary: bytes) -> str:
    """The wheel tag of a Linux binary for this machine's architecture."""
    if sys.platform != "linux" or not binary.startswith(b"\x7fELF"):
        raise SystemExit("not a Linux binary: name the wheel's platform with --platform")
    arch = platform.machine()
    # A dynamic binary lists the versions of the symbols it needs; a static one has no loader and needs none.
    if b"/ld-linux" not in binary:
        return f"manylinux_2_17_{arch}.musllinux_1_1_{arch}"
    minors = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", binary)]
    return f"manylinux_2_{max([17, *minors])}_{arch}"


def metadata(package: dict) -> str:
    readme = ROOT / package["readme"]
    fields = [
        "Metadata-Version: 2.4",
        f"Name: {package['name']}",
        f"Version: {package['version']}",
        f"Summary: {package['description']}",
        f"License-Expression: {package['license']}",
        f"Keywords: {','.join(package['keywords'])}",
        "Requires-Python: >=3.8",
        "Classifier: Environment :: Console",
        "Classifier: Programming Language :: Rust",
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join(fields) + "\n\n" + readme.read_text(encoding="utf-8")


def build(binary: Path, out: Path, tag: str | None) -> Path:
    package = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    stem = f"{package['name'].replace('-', '_')}-{package['version']}"
    content = binary.read_bytes()
    tag = f"py3-none-{tag or platform_tag(content)}"
    # A compressed tag (a.b) stands for one `Tag` line each.
    python, abi, platforms = tag.split("-")
    wheel = "Wheel-Version: 1.0\nGenerator: groq-shield\nRoot-Is-Purelib: false\n"
    wheel += "".join(f"Tag: {python}-{abi}-{name}\n" for name in platforms.split("."))

    files = {f"{stem}.data/scripts/groq-shield{binary.suffix}": (content, 0o755)}
    for name, command in PAGES.items():
        page = subprocess.run([binary, *command], check=True, capture_output=True).stdout
        files[f"{stem}.data/data/{name}"] = (page, 0o644)
    for licence in sorted(ROOT.glob("LICENSE*")):
        files[f"{stem}.dist-info/licenses/{licence.name}"] = (licence.read_bytes(), 0o644)
    files[f"{stem}.dist-info/METADATA"] = (metadata(package).encode(), 0o644)
    files[f"{stem}.dist-info/WHEEL"] = (wheel.encode(), 0o644)
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{name},sha256={digest(data)},{len(data)}" for name, (data, _) in files.items()] + [f"{record},,"]
    files[record] = (("\n".join(lines) + "\n").encode(), 0o644)

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (data, mode) in files.items():
            # A fixed time: the same binary gives the same wheel.
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return path


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="the built groq-shield")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the wheel goes (default: dist)")
    parser.add_argument("--platform", help="the wheel's platform tag, such as macosx_11_0_arm64 (default: read from the binary)")
    arguments = parser.parse_args()
    print(build(arguments.binary, arguments.out, arguments.platform))


if __name__ == "__main__":
    main()
