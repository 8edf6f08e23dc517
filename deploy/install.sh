#!/bin/sh
# Installs a built groq-shield on a Linux machine with systemd: binary, units, man page, completions.
#   cargo build --release && sudo deploy/install.sh [BINARY]
# DESTDIR installs under another root (for packages); PREFIX is /usr. An existing configuration is kept.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$here/../target/release/groq-shield}
root=${DESTDIR:-}
prefix=${PREFIX:-/usr}
share=$root$prefix/share

# Writes the output of the binary to a file.
page() {
    target=$1
    shift
    mkdir -p "$(dirname "$target")"
    "$binary" "$@" >"$target"
    chmod 0644 "$target"
}

install -D -m 0755 "$binary" "$root$prefix/bin/groq-shield"
page "$share/man/man1/groq-shield.1" man
page "$share/bash-completion/completions/groq-shield" completions bash
page "$share/zsh/site-functions/_groq-shield" completions zsh
page "$share/fish/vendor_completions.d/groq-shield.fish" completions fish

units=$root/usr/lib/systemd/system
install -D -m 0644 "$here/systemd/groq-shield.socket" "$units/groq-shield.socket"
mkdir -p "$units"
sed "s|/usr/bin/groq-shield|$prefix/bin/groq-shield|" "$here/systemd/groq-shield.service" >"$units/groq-shield.service"
chmod 0644 "$units/groq-shield.service"

settings=$root/etc/groq-shield/groq-shield.toml
[ -e "$settings" ] || install -D -m 0644 "$here/systemd/groq-shield.toml" "$settings"

if [ -z "$root" ]; then
    echo "installed; now: systemctl daemon-reload && systemctl enable --now groq-shield"
fi
