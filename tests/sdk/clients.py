"""The official Python clients, unmodified, one process each: `python clients.py NAME`.

Reads one JSON order a line ({"call", "model", "key", ...}), does it with the client as a user would, with the
base URL from the environment variable that the client documents, and writes one JSON line: what came, or what was
raised and which fields a user's code sees.
"""

import asyncio
import inspect
import json
import sys

PROMPT = [{"role": "user", "content": "Say three words."}]


def groq(order):
    """groq.Groq and groq.AsyncGroq; GROQ_BASE_URL is the host only."""
    from groq import AsyncGroq, Groq

    return sdk(AsyncGroq if order.get("async") else Groq, order)


def openai(order):
    """openai.OpenAI and openai.AsyncOpenAI; OPENAI_BASE_URL ends in /openai/v1."""
    from openai import AsyncOpenAI, OpenAI

    return sdk(AsyncOpenAI if order.get("async") else OpenAI, order)


def sdk(kind, order):
    call = asynchronous if order.get("async") else synchronous
    return call(kind(api_key=order["key"]), order)


def synchronous(client, order):
    match order["call"]:
        case "chat":
            return client.chat.completions.create(**chat(order)).choices[0].message.content
        case "stream":
            return "".join(delta(chunk) for chunk in client.chat.completions.create(stream=True, **chat(order)))
        case "transcription":
            with open(order["file"], "rb") as file:
                return client.audio.transcriptions.create(model=order["model"], file=file).text
        case "models":
            return ",".join(model.id for model in client.models.list().data)


def asynchronous(client, order):
    async def call():
        async with client:
            match order["call"]:
                case "chat":
                    return (await client.chat.completions.create(**chat(order))).choices[0].message.content
                case "stream":
                    stream = await client.chat.completions.create(stream=True, **chat(order))
                    return "".join([delta(chunk) async for chunk in stream])
                case "transcription":
                    with open(order["file"], "rb") as file:
                        return (await client.audio.transcriptions.create(model=order["model"], file=file)).text
                case "models":
                    return ",".join(model.id for model in (await client.models.list()).data)

    return asyncio.run(call())


def chat(order):
    return {"model": order["model"], "messages": PROMPT, "max_tokens": order.get("max_tokens", 64)}


def delta(chunk):
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def langchain_groq(order):
    """langchain_groq.ChatGroq; GROQ_API_BASE is the host only."""
    from langchain_groq import ChatGroq

    model = ChatGroq(model=order["model"], api_key=order["key"], max_tokens=order.get("max_tokens", 64))
    match order["call"]:
        case "chat":
            return model.invoke("Say three words.").content
        case "stream":
            return "".join(chunk.content for chunk in model.stream("Say three words."))


def litellm(order):
    """litellm.completion; GROQ_API_BASE ends in /openai/v1."""
    import litellm

    order |= {"model": f"groq/{order['model']}"}
    match order["call"]:
        case "chat":
            return litellm.completion(api_key=order["key"], **chat(order)).choices[0].message.content
        case "stream":
            return "".join(delta(chunk) for chunk in litellm.completion(api_key=order["key"], stream=True, **chat(order)))
        case "transcription":
            with open(order["file"], "rb") as file:
                return litellm.transcription(model=order["model"], file=file, api_key=order["key"]).text


def pydantic_ai(order):
    """pydantic_ai.Agent; GROQ_BASE_URL is the host only."""
    from pydantic_ai import Agent
    from pydantic_ai.models.groq import GroqModel
    from pydantic_ai.providers.groq import GroqProvider

    model = GroqModel(order["model"], provider=GroqProvider(api_key=order["key"]))
    agent = Agent(model, model_settings={"max_tokens": order.get("max_tokens", 64)})
    match order["call"]:
        case "chat":
            return agent.run_sync("Say three words.").output
        case "stream":
            return asyncio.run(agent_stream(agent))


async def agent_stream(agent):
    async with agent.run_stream("Say three words.") as result:
        return await result.get_output()


def seen(error):
    """The fields of an exception that user code reads."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    body = body if isinstance(body, dict) else {}
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    return {
        "raised": type(error).__name__,
        "status": getattr(error, "status_code", None) or body.get("status_code"),
        "message": str(getattr(error, "message", "") or error),
        "type": body.get("type"),
        "code": body.get("code"),
        "fields": sorted(body),
        "retry_after": headers.get("retry-after"),
    }


CLIENTS = {
    "groq": groq,
    "openai": openai,
    "langchain-groq": langchain_groq,
    "litellm": litellm,
    "pydantic-ai": pydantic_ai,
}


def main():
    client = CLIENTS[sys.argv[1]]
    assert inspect.isfunction(client)
    for line in sys.stdin:
        try:
            row = {"text": client(json.loads(line))}
        except Exception as error:  # noqa: BLE001: what it is, is the question
            row = seen(error)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
