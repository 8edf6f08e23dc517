"""Echo servers. Each logs a line per request that it has parsed, and responds with the same line."""

import asyncio
import json
import os
import sys

LOG = os.open(os.environ["GARDEN_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def log_request(method, path, body, version=""):
    line = json.dumps({"method": method, "path": path, "http": version, "body": body.hex()}).encode()
    os.write(LOG, line + b"\n")
    return line


def wsgi(environ, start_response):
    body = environ["wsgi.input"].read()
    path = environ.get("RAW_URI") or environ.get("REQUEST_URI") or environ["PATH_INFO"]
    line = log_request(environ["REQUEST_METHOD"], path, body)
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(line)))])
    return [line]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    line = log_request(scope["method"], scope["raw_path"].decode("latin1"), body, scope["http_version"])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(line)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": line})


def serve_tornado(port):
    import tornado.httpserver

    def answer(request):
        line = log_request(request.method, request.path, request.body)
        request.connection.write_headers(
            tornado.httputil.ResponseStartLine("HTTP/1.1", 200, "OK"),
            tornado.httputil.HTTPHeaders({"Content-Type": "application/json", "Content-Length": str(len(line))}),
            line,
        )
        request.connection.finish()

    async def main():
        server = tornado.httpserver.HTTPServer(answer)
        server.listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(main())


def serve_aiohttp(port):
    from aiohttp import web

    async def answer(request):
        line = log_request(request.method, request.raw_path, await request.read())
        return web.Response(body=line, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    {"tornado": serve_tornado, "aiohttp": serve_aiohttp}[sys.argv[1]](int(sys.argv[2]))
