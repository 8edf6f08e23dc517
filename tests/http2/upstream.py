"""An upstream on hypercorn over TLS.

python upstream.py CERTIFICATE KEY PORT MODE, where MODE is h2 or http1. GET /counts tells how many requests it saw, and by which
version of HTTP.
"""

import asyncio
import collections
import json
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config

certificate, key, port, mode = sys.argv[1:]
versions = collections.Counter()
ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break

    async def respond(media, *pieces):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    if scope["path"] == "/counts":
        await respond(b"application/json", json.dumps(versions).encode())
        return
    versions[scope["http_version"]] += 1
    if b'"stream":true' in body:
        event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word"}}]}
        await respond(b"text/event-stream", *[b"data: " + json.dumps(event).encode() + b"\n\n"] * 3, b"data: [DONE]\n\n")
    else:
        await asyncio.sleep(0.2)
        await respond(b"application/json", json.dumps(ANSWER).encode())


config = Config()
config.bind = [f"127.0.0.1:{port}"]
config.certfile, config.keyfile = certificate, key
config.alpn_protocols = ["h2", "http/1.1"] if mode == "h2" else ["http/1.1"]
config.accesslog = config.errorlog = None
asyncio.run(serve(app, config))
