"""httpx and the official clients on it over HTTP/2 with prior knowledge: `python http2.py ROOT`.

Writes one JSON object: what was seen.
"""

import asyncio
import json
import sys

import httpx
from groq import AsyncGroq
from openai import AsyncOpenAI

MODEL = "openai/gpt-oss-20b"
CHAT = "/openai/v1/chat/completions"
KEY = {"authorization": "Bearer gsk_test"}


def chat(**more):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Say three words."}], "max_tokens": 16, **more}


async def streamed(client):
    """The lines of a stream."""
    async with client.stream("POST", CHAT, json=chat(stream=True), headers=KEY) as response:
        return [line async for line in response.aiter_lines() if line]


async def left(client):
    """Leaves a stream after its first event."""
    async with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=2000), headers=KEY) as response:
        async for line in response.aiter_lines():
            return line


async def main(root):
    seen = {}
    async with httpx.AsyncClient(http1=False, http2=True, base_url=root, timeout=60) as client:
        responses = await asyncio.gather(*(client.post(CHAT, json=chat(), headers=KEY) for _ in range(64)))
        seen["versions"] = sorted({response.http_version for response in responses})
        seen["statuses"] = sorted({response.status_code for response in responses})
        seen["connections"] = len(client._transport._pool.connections)
        streams = await asyncio.gather(*(streamed(client) for _ in range(8)))
        seen["last_lines"] = sorted({lines[-1] for lines in streams})
        seen["left"] = (await left(client))[:6]
        refused = await client.post(CHAT, json=chat())
        seen["refused"] = [refused.status_code, refused.json()["error"]["code"]]
        large = await client.post(CHAT, json=chat(user="x" * (3 << 20)), headers=KEY)
        seen["large"] = large.status_code
    for name, kind, base in [("groq", AsyncGroq, root), ("openai", AsyncOpenAI, f"{root}/openai/v1")]:
        http = httpx.AsyncClient(http1=False, http2=True)
        async with kind(api_key="gsk_test", base_url=base, http_client=http) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**chat()) for _ in range(4)))
            seen[name] = [bool(answer.choices[0].message.content) for answer in answers]
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1]))
