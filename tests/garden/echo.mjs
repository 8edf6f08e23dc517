// An echo on Node's http: logs a line per request that it has parsed, and answers with the same line.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";

createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces).toString("hex");
    const line = JSON.stringify({ method: request.method, path: request.url, body });
    appendFileSync(process.env.GARDEN_LOG, line + "\n");
    response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(line) });
    response.end(line);
  });
}).listen(Number(process.argv[2]), "127.0.0.1");
