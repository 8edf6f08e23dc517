#!/usr/bin/env python3
"""zzuf's mutations of requests over HTTP/1.1 and HTTP/2, and of an upstream's answers.

apt-get install zzuf; tests/outside/zzuf.py [MINUTES, 60 by default] [FIRST SEED]

Meanwhile requests that are none of zzuf's are served and have their own answers, over HTTP/1.1 and HTTP/2. Fails if one is not,
if an answer to mutated bytes over HTTP/1.1 is no HTTP, if a connection is neither answered nor closed, if the shield panics or
ends, or grows beyond 300 MB. Prints the seed and ratio of what failed: `zzuf -s SEED -r RATIO` gives it again.
"""

import collections
import itertools
import re
import socket
import subprocess
import sys
import threading
import time

from shield import Shield, exchange

RATIOS = ("0.0005", "0.002", "0.01")
LIMIT = 300
CLIENTS = 24
# How long a connection may stay unanswered and open; longer than every timeout of the shield below.
LONGEST = 30

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
FORM = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\0\0\0\0\r\n--b--\r\n'


def post(path, kind, body):
    head = f"POST {path} HTTP/1.1\r\nhost: shield\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


CHUNKED = b"%x\r\n%s\r\n0\r\nx-sum: 1\r\n\r\n" % (len(CHAT), CHAT)
REQUESTS = [
    b"GET /openai/v1/models HTTP/1.1\r\nhost: shield\r\nconnection: close\r\n\r\n",
    b"GET http://shield/openai/v1/models?a=b HTTP/1.1\r\nhost: shield\r\nx-shield-app: a\r\ncookie: a=b; c=d\r\nconnection: close\r\n\r\n",
    post("/openai/v1/chat/completions", "application/json", CHAT),
    post("/openai/v1/chat/completions", "application/json", CHAT.replace(b'"m"', b'"m","stream":true')),
    post("/openai/v1/audio/transcriptions", "multipart/form-data; boundary=b", FORM),
    b"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: shield\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n" + CHUNKED,
    # Two requests on one connection.
    b"GET /openai/v1/models HTTP/1.1\r\nhost: shield\r\n\r\nPOST / HTTP/1.1\r\nhost: shield\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
]


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name, value):
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def block(method, path, *more):
    pairs = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"shield"), *more]
    return b"".join(literal(name, value) for name, value in pairs)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CHAT_BLOCK = block(b"POST", b"/openai/v1/chat/completions", (b"content-type", b"application/json"))
# Frames after the preface.
FRAMES = [
    frame(4, 0, 0) + frame(1, 5, 1, block(b"GET", b"/openai/v1/models")) + frame(6, 0, 0, b"12345678"),
    frame(4, 0, 0, b"\0\4\0\1\0\0") + frame(1, 4, 1, CHAT_BLOCK) + frame(0, 1, 1, CHAT) + frame(8, 0, 0, b"\0\0\x10\0"),
    # Continued, padded, with trailers, two at once, one of them reset.
    frame(4, 0, 0)
    + frame(1, 0, 1, CHAT_BLOCK[:20])
    + frame(9, 4, 1, CHAT_BLOCK[20:])
    + frame(1, 5, 3, b"\x82\x86\x84\x41\x8a" + b"\xa0\xe4\x1d\x13\x9d\x09\xb8\xf0\x1e\x07")
    + frame(0, 8, 1, b"\5" + CHAT + b"\0" * 5)
    + frame(3, 0, 3, b"\0\0\0\x08")
    + frame(1, 5, 1, literal(b"x-sum", b"1")),
]

BODY = b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
# Each closes, so that no time is lost on a mutated length.
ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-ratelimit-limit-requests: 14400\r\nx-ratelimit-remaining-requests: 14370\r\nx-ratelimit-reset-requests: 2m59.56s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(EVENTS), EVENTS),
    b'HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 2\r\nconnection: close\r\n\r\n{"error":{"message":"Rate limit reached for model `m` in organization `org_01` on tokens per minute (TPM): Limit 6000, Used 5900, Requested 200. Please try again in 1.2s.","type":"tokens","code":"rate_limit_exceeded"}}',
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>no</html>",
]


def mutate(data, seed, ratio):
    return subprocess.run(["zzuf", "-s", str(seed), "-r", ratio], input=data, capture_output=True, check=True).stdout


class Upstream:
    """Answers with what `x-answer` selects, or to GET /sane/N with N."""

    def __init__(self):
        self.answers = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection:
            connection.settimeout(30)
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    request += piece
                head, _, body = request.partition(b"\r\n\r\n")
                # At the beginning of a line: mutated, it may be the end of another field's value.
                length = re.search(rb"\ncontent-length: (\d+)\r", head + b"\r", re.I)
                while length and len(body) < int(length[1]):
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    body += piece
                sane = re.match(rb"GET /sane/(\d+) ", head)
                chosen = re.search(rb"\nx-answer: (\d+)\r", head + b"\r", re.I)
                if sane:
                    own = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
                    connection.sendall(own % (len(sane[1]), sane[1]))
                else:
                    connection.sendall(self.answers.get(int(chosen[1]) if chosen else None, ANSWERS[0]))
            except OSError:
                pass


def talk(port, data):
    """What comes back until the close, or until it is quiet and then, once the client has ended as well, the close; and whether
    it was closed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(0.5)
            end = time.monotonic() + LONGEST
            ended = False
            while time.monotonic() < end:
                try:
                    piece = connection.recv(65536)
                except TimeoutError:
                    if answer and not ended:
                        connection.shutdown(socket.SHUT_WR)
                        ended = True
                    continue
                if not piece:
                    return answer, True
                answer += piece
        except OSError:
            return answer, True
    return answer, False


def not_sane(shield, number):
    """What comes instead of the answer to a request of nobody's making, over either version."""
    path, own = f"/sane/{number}", str(number).encode()
    answer = exchange(shield.port, f"GET {path} HTTP/1.1\r\nhost: shield\r\nconnection: close\r\n\r\n".encode(), 30)
    if not (answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n" + own)):
        return f"HTTP/1.1: {answer}"
    request = PREFACE + frame(4, 0, 0) + frame(1, 5, 1, block(b"GET", path.encode())) + frame(7, 0, 0, b"\0" * 8)
    frames = exchange(shield.port, request, 30)
    over_http2 = any(frame(0, flags, 1, own) in frames for flags in (0, 1))
    return None if over_http2 else f"HTTP/2: {frames}"


class Run:
    def __init__(self, shield, upstream, minutes, first):
        self.shield, self.upstream = shield, upstream
        self.end = time.monotonic() + minutes * 60
        self.counts, self.failed, self.lock = collections.Counter(), [], threading.Lock()
        self.tasks = ((seed, kind, number) for seed in itertools.count(first) for kind, number in self.inputs())
        self.seed = first

    @staticmethod
    def inputs():
        yield from (("request", number) for number in range(len(REQUESTS)))
        yield from (("frames", number) for number in range(len(FRAMES)))
        yield from (("answer", number) for number in range(2 * len(ANSWERS)))

    def over(self):
        return time.monotonic() > self.end or len(self.failed) >= 20 or self.shield.process.poll() is not None

    def client(self):
        while not self.over():
            with self.lock:
                seed, kind, number = next(self.tasks)
                self.seed = seed
            ratio = RATIOS[seed % len(RATIOS)]
            try:
                wrong = getattr(self, kind)(number, seed, ratio)
            except OSError as error:
                wrong = str(error)
            if wrong and not self.over():
                self.fail(f"seed {seed}, ratio {ratio}, {kind} {number}: {wrong}")

    def fail(self, line):
        with self.lock:
            self.failed.append(line)
        print(line, flush=True)

    def request(self, number, seed, ratio):
        answer, closed = talk(self.shield.port, mutate(REQUESTS[number], seed, ratio))
        with self.lock:
            self.counts["requests over HTTP/1.1"] += 1
            self.counts["of them answered 2xx"] += answer[9:10] == b"2"
        if answer and not re.match(rb"HTTP/1\.[01] [1-5]\d\d ", answer):
            return f"answered by {answer[:80]}"
        return None if closed else "neither answered nor closed"

    def frames(self, number, seed, ratio):
        # With GOAWAY, so that the server closes successful connections.
        answer, closed = talk(self.shield.port, PREFACE + mutate(FRAMES[number], seed, ratio) + frame(7, 0, 0, b"\0" * 8))
        with self.lock:
            self.counts["connections over HTTP/2"] += 1
            self.counts["of them with a response"] += b"\0\0\0\1{" in answer or b"\0\0\0\1data" in answer
        return None if closed else "neither answered nor closed"

    def answer(self, number, seed, ratio):
        chosen = seed * 2 * len(ANSWERS) + number
        # A refusal blocks only its own model.
        model = b'"m%d"' % (chosen % 5000) + (b',"stream":true' if number % 2 else b"")
        request = post("/openai/v1/chat/completions", "application/json", CHAT.replace(b'"m"', model))
        self.upstream.answers[chosen] = mutate(ANSWERS[number // 2], seed, ratio)
        told, closed = talk(self.shield.port, request.replace(b"host:", b"x-answer: %d\r\nx-shield-max-wait-ms: 500\r\nhost:" % chosen))
        del self.upstream.answers[chosen]
        with self.lock:
            self.counts["answers of the upstream"] += 1
            self.counts["of them passed on with 2xx"] += told.startswith(b"HTTP/1.1 2")
        if not re.match(rb"HTTP/1\.1 [1-5]\d\d ", told):
            return f"answered by {told[:80]}"
        return None if closed else "neither answered nor closed"

    def told(self):
        with self.lock:
            counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"seed {self.seed}: {counts}; {len(self.failed)} failed"

    def go(self):
        clients = [threading.Thread(target=self.client, daemon=True) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        largest, begun = 0, time.monotonic()
        for number in itertools.count():
            if self.over():
                break
            wrong = not_sane(self.shield, number)
            if wrong and not self.over():
                self.fail(f"a request that is not mutated is not served (seed {self.seed}): {wrong}")
            self.counts["requests as they should be"] += 2
            largest = max(largest, self.shield.resident())
            if largest > LIMIT:
                self.fail(f"{largest:.0f} MB")
                break
            if number % 120 == 0:
                print(f"{(time.monotonic() - begun) / 60:.1f} min, {self.told()}; {self.shield.descriptors()} descriptors", flush=True)
            time.sleep(0.5)
        for client in clients:
            client.join()
        if self.shield.process.poll() is not None:
            self.fail("the shield ended")
        print(f"{(time.monotonic() - begun) / 60:.1f} min, {self.told()}; {largest:.0f} MB at most")
        return not self.failed


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    upstream = Upstream()
    # An answer whose `connection: close` was mutated leaves a connection that the upstream closes while the next request is sent.
    retry = '[retry]\nattempts = 3\nbase_delay = "10ms"\nmax_delay = "20ms"\nbudget = 1.0\n'
    config = f'[limits]\nplan = "none"\n{retry}[breaker]\nfailures = 1000000\n'
    server = 'header_timeout = "2s"\nbody_timeout = "2s"'
    with Shield(config, server, upstream.url, 'response_timeout = "10s"\nidle_timeout = "10s"') as shield:
        passed = Run(shield, upstream, minutes, first).go()
    sys.exit(0 if passed else 1)


main()
