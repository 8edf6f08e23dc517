#!/usr/bin/env bash
# Takes docs/page.png: the page of a shield in front of the simulated Groq, two minutes under the load of three apps.
# Needs a built groq-shield (its path, or target/debug/groq-shield), curl and Chromium.
set -euo pipefail
shield=$(realpath "${1:-target/debug/groq-shield}")
picture=$(realpath "$(dirname "$0")")/page.png
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/groq-shield.toml" <<'TOML'
[server]
listen = "127.0.0.1:18787"
[admin]
listen = "127.0.0.1:18788"
[limits]
plan = "free"
[[app]]
name = "chat"
weight = 3
tokens_per_day = 200000
[[app]]
name = "nightly"
class = "batch"
requests_per_minute = 30
cost_per_day = 0.01
[price."openai/gpt-oss-20b"]
input = 0.1
output = 0.5
[price."openai/gpt-oss-120b"]
input = 0.15
output = 0.75
TOML
"$shield" --config "$work/groq-shield.toml" --simulate 2>"$work/log" &
until curl -sf http://127.0.0.1:18788/readyz >/dev/null; do sleep 0.1; done

# One app: a request every so many seconds.
app() {
  local name=$1 model=$2 pause=$3 tokens=$4
  while true; do
    curl -s -o /dev/null http://127.0.0.1:18787/openai/v1/chat/completions \
      -H "Authorization: Bearer a-key" -H "x-shield-app: $name" -H "Content-Type: application/json" \
      -d "{\"model\": \"$model\", \"max_completion_tokens\": $tokens, \"messages\": [{\"role\": \"user\", \"content\": \"Say three words.\"}]}" &
    sleep "$pause"
  done
}
app chat openai/gpt-oss-20b 1.5 400 &
app search openai/gpt-oss-120b 4 600 &
app nightly openai/gpt-oss-20b 3 900 &
sleep 120

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
"$browser" --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir="$work/profile" --hide-scrollbars \
  --virtual-time-budget=4000 --window-size=1180,1500 --screenshot="$picture" http://127.0.0.1:18788/ >"$work/browser" 2>&1
echo "$picture"
