// An echo on Node's http, or on its http2 with a certificate: logs a line per request that it has parsed, and answers with
// the same line.
//
// node echo.mjs PORT [CERTIFICATE KEY]
import { appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createSecureServer } from "node:http2";

const [port, certificate, key] = process.argv.slice(2);

const echo = (request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces).toString("hex");
    const line = JSON.stringify({ method: request.method, path: request.url, http: request.httpVersion, body });
    appendFileSync(process.env.GARDEN_LOG, line + "\n");
    response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(line) });
    response.end(line);
  });
};

const server = certificate
  ? createSecureServer({ cert: readFileSync(certificate), key: readFileSync(key), allowHTTP1: false }, echo)
  : createServer(echo);
server.listen(Number(port), "127.0.0.1");
