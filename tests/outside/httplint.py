#!/usr/bin/env python3
"""httplint on one answer of every kind, and redbot on what a GET reaches.

pip install httplint redbot; tests/outside/httplint.py (with that Python)

Prints each note that httplint marks as bad or as a warning. Passes if all of them are in EXPECTED, whose reasons stand beside.
"""

import json
import pathlib
import re
import socket
import subprocess
import sys
import threading

# This file has the library's name.
sys.path = [path for path in sys.path if path != str(pathlib.Path(__file__).parent)]
from httplint.message import HttpRequestLinter, HttpResponseLinter  # noqa: E402
from httplint.note import levels  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parent))
from shield import Shield, exchange, free_port  # noqa: E402

# Notes by their class in httplint, and why they are accepted.
EXPECTED = {
    "FRESHNESS_HEURISTIC": "the upstream's own successes, which pass with the headers that they have",
    "STATUS_BAD_REQUEST": "marks the status 400 as such, which is what Groq documents",
    "STATUS_NONSTANDARD": "Groq documents 498 (flex capacity exceeded); it is passed on",
}

JSON = "content-type: application/json\r\n"
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
STREAM = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
DATE = "date: Sat, 28 Nov 2026 00:00:00 GMT\r\n"


def answer(status, body="", headers="", kind="application/json"):
    kind = f"content-type: {kind}\r\n" if body else ""
    return f"HTTP/1.1 {status}\r\n{DATE}{kind}{headers}content-length: {len(body)}\r\n\r\n{body}".encode()


ERROR = '{"error":{"message":"no","type":"invalid_request_error","code":"x"}}'
PAGE = "<html><body><h1>Bad gateway</h1></body></html>"
EVENTS = 'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
# The upstream's answers, by the end of the path.
ANSWERS = {
    "chat": answer("200 OK", '{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'),
    "stream": answer("200 OK", EVENTS + "data: [DONE]\n\n", kind="text/event-stream"),
    "cut-stream": answer("200 OK", EVENTS, kind="text/event-stream"),
    "range": answer("206 Partial Content", "hello", "content-range: bytes 0-4/9\r\naccept-ranges: bytes\r\n", "application/octet-stream"),
    "none": f"HTTP/1.1 204 No Content\r\n{DATE}\r\n".encode(),
    "same": f'HTTP/1.1 304 Not Modified\r\n{DATE}etag: "v1"\r\n\r\n'.encode(),
    "moved": answer("307 Temporary Redirect", headers="location: /openai/v1/models\r\n"),
    "cut": answer("200 OK", '{"id":"x"'),
    "rubbish": b"rubbish\r\n\r\n",
    "closed": b"",
} | {
    f"{status}-{name}": answer(f"{status} Status", body, extra, kind)
    for status in (400, 401, 403, 404, 405, 413, 422, 424, 429, 498, 500, 502, 503, 504, 520)
    for name, body, kind in (("object", ERROR, "application/json"), ("page", PAGE, "text/html"), ("empty", "", ""))
    for extra in ["retry-after: 1\r\n" if status in (429, 503) else ""]
}


def upstream(port):
    listener = socket.create_server(("127.0.0.1", port))

    def serve(connection):
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            head, _, body = request.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            while length and len(body) < int(length[1]):
                body += connection.recv(65536)
            # A query selects the answer where the path must be an endpoint's.
            target = head.split(b" ")[1].decode()
            connection.sendall(ANSWERS.get(re.split(r"[/?]", target)[-1], ANSWERS["chat"]))

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def request(method, path, headers="", body=""):
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: shield\r\nconnection: close\r\n{headers}{length}\r\n{body}".encode()


def lint(name, sent, received):
    """The notes on an answer, by name of their class."""
    head, _, body = received.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    version, status, phrase = (line.split(b" ", 2) + [b"", b""])[:3]
    linter = HttpResponseLinter()
    method, target, _ = sent.split(b" ", 2)
    asked = HttpRequestLinter()
    asked.process_request_topline(method, target, b"1.1")
    sent_head = sent.partition(b"\r\n\r\n")[0]
    asked.process_headers([tuple(line.split(b": ", 1)) for line in sent_head.split(b"\r\n")[1:] if b": " in line])
    linter.request, linter.is_head_response = asked, method == b"HEAD"
    linter.process_response_topline(version.removeprefix(b"HTTP/"), status, phrase)
    fields = [tuple(field.split(b":", 1)) for field in fields]
    linter.process_headers([(key, value.strip()) for key, value in fields])
    chunked = any(key.lower() == b"transfer-encoding" for key, _ in fields)
    while chunked and body:
        size, _, rest = body.partition(b"\r\n")
        linter.feed_content(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    if not chunked and body:
        linter.feed_content(body)
    linter.finish_content(True, [])
    notes = [*linter.notes, *(sub for note in linter.notes for sub in note.subnotes)]
    marked = {}
    for note in notes:
        if note.level in (levels.BAD, levels.WARN):
            marked.setdefault(type(note).__name__, (note.level.value, str(note.summary)))
    print(f"{name}: {line.decode()}")
    return marked


def answers():
    """One answer of every kind, with its name."""
    port = free_port()
    listener = upstream(port)
    url = f"http://127.0.0.1:{port}"
    plain = '[limits]\nplan = "none"\n[retry]\nattempts = 1\n[breaker]\nfailures = 1000000\n'
    with Shield(plain, "max_body = '1000B'\nheader_timeout = '1s'\nbody_timeout = '1s'", url) as shield:

        def ask(name, sent, wait=5, half_close=False):
            return name, sent, exchange(shield.port, sent, wait, half_close)

        for end in ANSWERS:
            part = "range: bytes=0-4\r\n" if end == "range" else ""
            yield ask(f"upstream's {end}", request("GET", f"/openai/v1/files/{end}", part))
        chat = "/openai/v1/chat/completions"
        for end in ("chat", "cut", "rubbish", "closed", "500-page"):
            yield ask(f"a chat's {end}", request("POST", f"{chat}?{end}", JSON, CHAT))
        for end in ("stream", "cut-stream", "500-page"):
            yield ask(f"a stream's {end}", request("POST", f"{chat}?{end}", JSON, STREAM))
        for end in ("429-object", "429-page"):
            brief = "x-shield-max-wait-ms: 500\r\n"
            yield ask(f"a chat's {end}, and no time to wait", request("POST", f"{chat}?{end}", JSON + brief, CHAT))
        yield ask("HEAD", request("HEAD", "/openai/v1/files/chat"))
        yield ask("OPTIONS", request("OPTIONS", "/openai/v1/files/none"))
        yield ask("malformed", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        yield ask("a head too large", request("GET", "/", "x: " + "y" * 70_000 + "\r\n"))
        yield ask("a head too slow", b"GET / HTTP/1.1\r\n")
        yield ask("a body too slow", request("POST", chat, JSON + "content-length: 100\r\n"))
        yield ask("not JSON", request("POST", chat, JSON, "{"))
        yield ask("a body too large", request("POST", chat, JSON, "x" * 2000))
        yield ask("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n")
        yield ask("another's authority", b"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n")
        yield ask("TRACE", request("TRACE", "/"))
        for path in ("/", "/livez", "/readyz", "/metrics", "/status", "/requests", "/none"):
            for method in ("GET", "HEAD"):
                sent = request(method, path)
                yield f"admin {method} {path}", sent, exchange(shield.admin, sent)
        sent = request("POST", "/status")
        yield "admin POST /status", sent, exchange(shield.admin, sent)
    with Shield(plain, upstream=url, key=False) as shield:
        sent = request("GET", "/openai/v1/models")
        yield "no key", sent, exchange(shield.port, sent)
    with Shield("[limits.default]\nrequests_per_day = 1\ntokens_per_minute = 1000\n", upstream=url) as shield:
        for name, body in (
            ("served", CHAT),
            ("a daily limit that is spent", CHAT),
            ("more than a limit holds", CHAT.replace("hi", "word " * 9000)),
        ):
            sent = request("POST", "/openai/v1/chat/completions", JSON, body)
            yield name, sent, exchange(shield.port, sent)
    with Shield('[limits]\nplan = "none"\n[retry]\nattempts = 1\n[breaker]\nfailures = 1\n', upstream=f"http://127.0.0.1:{free_port()}") as shield:
        for name in ("no upstream", "an open breaker"):
            sent = request("POST", "/openai/v1/chat/completions", JSON + "x-shield-max-wait-ms: 600\r\n", CHAT)
            yield name, sent, exchange(shield.port, sent)
    listener.close()


def redbot():
    """redbot's notes on what it fetches by itself."""
    program = pathlib.Path(sys.executable).parent / "redbot"
    with Shield('[limits]\nplan = "none"') as shield:
        urls = [f"http://127.0.0.1:{shield.port}/openai/v1/models"]
        urls += [f"http://127.0.0.1:{shield.admin}{path}" for path in ("/", "/livez", "/metrics", "/status", "/requests")]
        for url in urls:
            told = subprocess.run([program, "-o", "text", url], capture_output=True, text=True, timeout=120)
            print(f"\nredbot {url}\n{told.stdout.strip()}{told.stderr.strip()}")


def main():
    found = {}
    count = 0
    for name, sent, received in answers():
        count += 1
        if not received.startswith(b"HTTP/1.1 "):
            found.setdefault("NOT_HTTP", ("bad", repr(received[:80]), []))[2].append(name)
            continue
        for note, (level, summary) in lint(name, sent, received).items():
            found.setdefault(note, (level, summary, []))[2].append(name)
    print(f"\n{count} answers")
    for note, (level, summary, names) in sorted(found.items()):
        reason = EXPECTED.get(note, "NOT EXPECTED")
        print(f"{level} {note} ({len(names)}): {summary}\n    {', '.join(names[:8])}\n    {reason}")
    redbot()
    sys.exit(1 if set(found) - set(EXPECTED) else 0)


main()
