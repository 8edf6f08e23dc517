// The official Node clients, unmodified, one process each: `node clients.mjs NAME`.
//
// Reads one JSON order per line ({"call", "model", "key", ...}), executes it with the client as a user would, with the base URL
// where the client documents it, and writes one JSON line: the result, or the error and the fields that a user's code sees.

import { createReadStream, readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const PROMPT = [{ role: "user", content: "Say three words." }];

const chat = (order) => ({ model: order.model, messages: PROMPT, max_tokens: order.max_tokens ?? 64 });

/** groq-sdk and openai have the same shape; GROQ_BASE_URL is the host only, OPENAI_BASE_URL ends in /openai/v1. */
async function sdk(client, order) {
  switch (order.call) {
    case "chat":
      return (await client.chat.completions.create(chat(order))).choices[0].message.content;
    case "stream": {
      let text = "";
      for await (const chunk of await client.chat.completions.create({ stream: true, ...chat(order) }))
        text += chunk.choices[0]?.delta?.content ?? "";
      return text;
    }
    case "transcription":
      return (await client.audio.transcriptions.create({ model: order.model, file: createReadStream(order.file) })).text;
    case "models":
      return (await client.models.list()).data.map((model) => model.id).join(",");
  }
}

/** ai with @ai-sdk/groq: `baseURL` ends in /openai/v1. */
async function aiSdk(order) {
  const { createGroq } = await import("@ai-sdk/groq");
  const { experimental_transcribe: transcribe, generateText, streamText } = await import("ai");
  const groq = createGroq({ baseURL: `${process.env.SHIELD}/openai/v1`, apiKey: order.key });
  const prompt = { model: groq(order.model), prompt: "Say three words.", maxOutputTokens: order.max_tokens ?? 64 };
  switch (order.call) {
    case "chat":
      return (await generateText(prompt)).text;
    case "stream": {
      let text = "";
      for await (const part of streamText({ ...prompt, onError() {} }).fullStream) {
        if (part.type === "error") throw part.error;
        if (part.type === "text-delta") text += part.text;
      }
      return text;
    }
    case "transcription":
      return (await transcribe({ model: groq.transcription(order.model), audio: readFileSync(order.file) })).text;
  }
}

/** @langchain/groq: `baseUrl` is the host only. Its six retries back off to a minute: one is enough to see the rule. */
async function langchain(order) {
  const { ChatGroq } = await import("@langchain/groq");
  const model = new ChatGroq({
    model: order.model, apiKey: order.key, baseUrl: process.env.SHIELD, maxTokens: order.max_tokens ?? 64, maxRetries: 1,
  });
  switch (order.call) {
    case "chat":
      return (await model.invoke("Say three words.")).content;
    case "stream": {
      let text = "";
      for await (const chunk of await model.stream("Say three words.")) text += chunk.content;
      return text;
    }
  }
}

const CLIENTS = {
  "groq-sdk": async (order) => sdk(new (await import("groq-sdk")).default({ apiKey: order.key }), order),
  openai: async (order) => sdk(new (await import("openai")).default({ apiKey: order.key }), order),
  "@ai-sdk/groq": aiSdk,
  "@langchain/groq": langchain,
};

/** The fields of an error that user code reads. */
function seen(raised) {
  // ai wraps the error of its last attempt.
  const error = raised.lastError ?? raised;
  const object = error.error?.error ?? error.error ?? error.data?.error ?? {};
  const headers = error.headers ?? error.responseHeaders ?? {};
  return {
    raised: raised.constructor.name === "Object" ? "plain object" : raised.constructor.name,
    status: error.status ?? error.statusCode ?? object.status_code ?? null,
    message: String(error.message ?? ""),
    type: object.type ?? error.type ?? null,
    code: object.code ?? error.code ?? null,
    fields: typeof object === "object" ? Object.keys(object).sort() : [],
    retry_after: (headers.get ? headers.get("retry-after") : headers["retry-after"]) ?? null,
  };
}

const client = CLIENTS[process.argv[2]];
for await (const line of createInterface({ input: process.stdin })) {
  let row;
  try {
    row = { text: await client(JSON.parse(line)) };
  } catch (error) {
    row = seen(error);
  }
  console.log(JSON.stringify(row));
}
