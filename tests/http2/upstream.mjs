// An upstream on Node's http2 over TLS that misbehaves as the path says. It prints its port.
//
// node upstream.mjs CERTIFICATE KEY MODE, where MODE is h2 or http1.
//
// Counts are kept for the whole process and told by GET /counts: connections, and requests that reached a handler.

import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";

const [certificate, key, mode] = process.argv.slice(2);
const options = { cert: readFileSync(certificate), key: readFileSync(key) };
const counts = { connections: 0, requests: 0, open: 0, most: 0, refused: 0, cancelled: 0 };

const answer = { id: "chatcmpl-1", object: "chat.completion", choices: [], usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 } };
const event = (content) => `data: ${JSON.stringify({ object: "chat.completion.chunk", choices: [{ index: 0, delta: { content } }] })}\n\n`;

if (mode === "http1") {
  const server = https.createServer({ ...options, ALPNProtocols: ["http/1.1"] }, (request, response) => {
    if (request.url === "/counts") {
      response.end(JSON.stringify(counts));
      return;
    }
    counts.requests += 1;
    request.resume().on("end", () => {
      setTimeout(() => {
        response.setHeader("content-type", "application/json");
        response.end(JSON.stringify({ ...answer, version: request.httpVersion }));
      }, 200);
    });
  });
  server.on("secureConnection", () => { counts.connections += 1; });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
} else {
  // A window of 0 lets no byte of a request's body through.
  const settings = mode === "shut" ? { initialWindowSize: 0 } : {};
  const server = http2.createSecureServer({ ...options, allowHTTP1: false, settings });
  let socket;
  // The session's own socket cannot be destroyed.
  server.on("secureConnection", (latest) => { socket = latest; });
  server.on("session", (session) => {
    counts.connections += 1;
    session.on("error", () => {});
  });
  server.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    const path = headers[":path"];
    if (path === "/counts") {
      stream.respond({ ":status": 200, "content-type": "application/json" });
      stream.end(JSON.stringify(counts));
      return;
    }
    const session = stream.session;
    if (mode === "goaway" && counts.connections === 1 && stream.id > 1) {
      // The first stream goes on, this one and later ones are not processed.
      if (stream.id === 3) setTimeout(() => session.goaway(http2.constants.NGHTTP2_NO_ERROR, 1), 100);
      return;
    }
    if (mode === "refused" && counts.refused < 2) {
      counts.refused += 1;
      stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
      return;
    }
    counts.requests += 1;
    counts.open += 1;
    counts.most = Math.max(counts.most, counts.open);
    stream.on("close", () => {
      counts.open -= 1;
      if (stream.rstCode === http2.constants.NGHTTP2_CANCEL) counts.cancelled += 1;
    });
    const json = (status = 200) => {
      if (stream.destroyed) return;
      stream.respond({ ":status": status, "content-type": "application/json" });
      stream.end(JSON.stringify(answer));
    };
    let body = "";
    stream.on("data", (data) => { body += data; });
    if (mode === "shut") return;
    stream.on("end", () => {
      if (body.includes('"stream":true')) {
        stream.respond({ ":status": 200, "content-type": "text/event-stream" });
        stream.write(event("one"));
        if (mode === "reset") setTimeout(() => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR), 100);
        else if (mode === "early-end") setTimeout(() => stream.close(http2.constants.NGHTTP2_NO_ERROR), 100);
        else if (mode === "endless") { /* until the app leaves */ }
        else setTimeout(() => stream.end("data: [DONE]\n\n"), 300);
        return;
      }
      if (mode === "crash" && counts.requests === 2) {
        socket.destroy();
        return;
      }
      setTimeout(json, 300);
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}
