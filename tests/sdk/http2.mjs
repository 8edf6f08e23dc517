// Node's http2 with prior knowledge: `node http2.mjs ROOT`. Writes one JSON object: what was seen.

import http2 from "node:http2";

const session = http2.connect(process.argv[2]);
const MODEL = "openai/gpt-oss-20b";

/** Sends a chat; resolves with status, headers and body, or after `leaveAfter` pieces of it with its reset code. */
function chat(more = {}, { key = "gsk_test", leaveAfter = Infinity } = {}) {
  const body = JSON.stringify({ model: MODEL, messages: [{ role: "user", content: "Say three words." }], max_tokens: 16, ...more });
  return new Promise((resolve, reject) => {
    const headers = { ":method": "POST", ":path": "/openai/v1/chat/completions", "content-type": "application/json" };
    const request = session.request(key ? { ...headers, authorization: `Bearer ${key}` } : headers);
    let status, text = "", pieces = 0;
    request.on("response", (headers) => (status = headers[":status"]));
    request.on("data", (piece) => {
      text += piece;
      if (++pieces === leaveAfter) request.close(http2.constants.NGHTTP2_CANCEL);
    });
    request.on("close", () => resolve({ status, text, code: request.rstCode }));
    request.on("error", reject);
    request.end(body);
  });
}

const unique = (values) => [...new Set(values)];
const seen = {};
const answers = await Promise.all(Array.from({ length: 64 }, () => chat()));
seen.statuses = unique(answers.map((answer) => answer.status));
seen.parsed = answers.every((answer) => JSON.parse(answer.text).choices[0].message.content);
const streams = await Promise.all(Array.from({ length: 8 }, () => chat({ stream: true })));
seen.ends = unique(streams.map((stream) => stream.text.trim().split("\n").at(-1)));
seen.left = (await chat({ stream: true, max_tokens: 2000 }, { leaveAfter: 1 })).code;
const refused = await chat({}, { key: "" });
seen.refused = [refused.status, JSON.parse(refused.text).error.code];
seen.ping = await new Promise((resolve) => session.ping((error) => resolve(error === null)));
seen.settings = session.remoteSettings.maxConcurrentStreams;
session.close();
console.log(JSON.stringify(seen));
