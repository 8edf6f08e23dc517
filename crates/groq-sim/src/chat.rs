//! `chat/completions`: a complete or streamed response with a length from the seed.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    Sim,
    answer::{Answer, Step},
    call::Call,
    error::{self, invalid},
    generation::{Body, Generation, request_id},
};

/// The text of all reasoning, independent of the number of reasoning tokens.
const REASONING: &str = "The user wants a simulated answer.";

impl Sim {
    pub(crate) fn chat(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_chat(call) {
            return fault;
        }
        let (permit, headers) = match self.admit(call, call.cost()) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let mut generation = self.generate(call, id);
        if let Some(code) = &call.directives.error {
            return self.generated(&generation, permit, headers, Body::Whole(StatusCode::BAD_REQUEST, failed(code)));
        }
        // A truncated generation is neither a complete tool call nor a complete object of the schema.
        let tool = if generation.is_truncated() { None } else { tool_call(call, id) };
        let format = &call.fields["response_format"];
        let structured = match format["type"].as_str() {
            _ if generation.is_truncated() => None,
            Some("json_schema") => Some(example(&format["json_schema"]["schema"])),
            Some("json_object") => Some(json!({"answer": "simulated"})),
            _ => None,
        };
        if tool.is_some() {
            generation.finish = "tool_calls";
        }
        let content = structured.map(|json| json.to_string());
        let body = if call.fields["stream"] == true {
            Body::Stream(self.chat_stream(call, &generation, tool, content))
        } else {
            Body::Whole(StatusCode::OK, self.chat_whole(call, &generation, tool, content))
        };
        self.generated(&generation, permit, headers, body)
    }

    fn chat_whole(&self, call: &Call, generation: &Generation, tool: Option<Value>, content: Option<String>) -> Value {
        let mut message = Map::from_iter([("role".to_owned(), json!("assistant"))]);
        match tool {
            Some(tool) => message.extend([("tool_calls".to_owned(), json!([tool]))]),
            None => message.extend([("content".to_owned(), json!(content.unwrap_or_else(|| generation.text())))]),
        }
        if generation.reasoning > 0 {
            message.insert("reasoning".to_owned(), json!(REASONING));
        }
        json!({
            "id": format!("chatcmpl-{:032x}", generation.id), "object": "chat.completion", "created": self.unix_time(),
            "model": call.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": generation.finish}],
            "usage": usage(generation), "usage_breakdown": null, "system_fingerprint": "fp_51a1d0c0de",
            "x_groq": {"id": request_id(generation.id)}, "service_tier": call.tier(),
        })
    }

    fn chat_stream(&self, call: &Call, generation: &Generation, tool: Option<Value>, content: Option<String>) -> Vec<Step> {
        let created = self.unix_time();
        let chunk = |choices: Value, more: Value| {
            let mut chunk = json!({
                "id": format!("chatcmpl-{:032x}", generation.id), "object": "chat.completion.chunk", "created": created,
                "model": call.model, "system_fingerprint": "fp_51a1d0c0de", "choices": choices,
            });
            if let (Value::Object(chunk), Value::Object(more)) = (&mut chunk, more) {
                chunk.extend(more);
            }
            Bytes::from(format!("data: {chunk}\n\n"))
        };
        let choice =
            |delta: Value, finish: Option<&str>| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
        let id = request_id(generation.id);
        let first = chunk(choice(json!({"role": "assistant", "content": ""}), None), json!({"x_groq": {"id": id}}));
        let mut events = vec![(first, 0)];
        match (tool, content) {
            (Some(mut tool), _) => {
                tool["index"] = json!(0);
                events.push((chunk(choice(json!({"tool_calls": [tool]}), None), json!({})), generation.completion));
            }
            (None, Some(content)) => {
                events.push((chunk(choice(json!({"content": content}), None), json!({})), generation.completion));
            }
            (None, None) => {
                if generation.reasoning > 0 {
                    let delta = json!({"reasoning": REASONING, "channel": "analysis"});
                    events.push((chunk(choice(delta, None), json!({})), generation.reasoning));
                }
                let piece = |(piece, tokens)| (chunk(choice(json!({"content": piece}), None), json!({})), tokens);
                events.extend(generation.pieces().into_iter().map(piece));
            }
        }
        let usage = usage(generation);
        let groq = json!({"x_groq": {"id": id, "usage": usage}});
        let mut last = vec![chunk(choice(json!({}), Some(generation.finish)), groq.clone())];
        if call.fields["stream_options"]["include_usage"] == true {
            last.push(chunk(json!([]), json!({"usage": usage, "x_groq": groq["x_groq"]})));
        }
        last.push(Bytes::from_static(b"data: [DONE]\n\n"));
        generation.stream(events, last)
    }
}

/// The response to a missing or unknown model, for all endpoints with a model.
pub(crate) fn invalid_model(call: &Call) -> Option<Answer> {
    let missing = || Answer::bad(&invalid("'model' : property 'model' is missing", None));
    match call.model.as_str() {
        "" => Some(missing()),
        model if model.starts_with("nope") => Some(Answer::json(StatusCode::NOT_FOUND, &error::no_such_model(model))),
        model if model.starts_with("decommissioned") => Some(Answer::bad(&error::decommissioned(model))),
        _ => None,
    }
}

fn invalid_chat(call: &Call) -> Option<Answer> {
    if !call.fields.is_object() {
        return Some(Answer::bad(&invalid("could not parse the request body as JSON", None)));
    }
    if let Some(fault) = invalid_model(call) {
        return Some(fault);
    }
    let message = match &call.fields["messages"] {
        Value::Array(messages) if messages.is_empty() => "'messages' : minimum number of items is 1",
        Value::Array(_) if call.fields["n"].as_u64().unwrap_or(1) != 1 => "'n' : number must be at most 1",
        Value::Array(_) if call.prompt() > 131_072 => {
            let mut body = invalid("Please reduce the length of the messages or completion.", Some("context_length_exceeded"));
            body["error"]["param"] = json!("messages");
            return Some(Answer::bad(&body));
        }
        Value::Array(_) => return None,
        _ => "'messages' : property 'messages' is missing",
    };
    Some(Answer::bad(&invalid(message, None)))
}

/// The body of a 400 after the generation, which is charged.
fn failed(code: &str) -> Value {
    let (message, generated) = match code {
        "json_validate_failed" => {
            ("Failed to generate JSON. Please adjust your prompt. See 'failed_generation' for more details.", "{\"answer\": ")
        }
        "tool_use_failed" => (
            "Tool call validation failed: tool call validation failed: attempted to call tool 'x' which was not in request.tools",
            "{\"name\": \"x\", \"arguments\": {}}",
        ),
        _ => ("Generation failed.", ""),
    };
    let mut body = invalid(message, Some(code));
    body["error"]["failed_generation"] = json!(generated);
    body
}

/// A call of the chosen tool, or of the first one; `None` if the request has no tools or no `tool_choice`.
fn tool_call(call: &Call, id: u64) -> Option<Value> {
    let tools = call.fields["tools"].as_array()?;
    let choice = &call.fields["tool_choice"];
    if choice.is_null() || *choice == "none" {
        return None;
    }
    let chosen = tools.iter().find(|tool| tool["function"]["name"] == choice["function"]["name"]).or(tools.first())?;
    let function = &chosen["function"];
    let arguments = example(&function["parameters"]).to_string();
    Some(
        json!({"id": format!("call_{id:08x}"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}),
    )
}

/// A small value that matches most JSON schemas of requests.
fn example(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].get(0).or(schema.get("const")).or(schema.get("default")) {
        return first.clone();
    }
    match schema["type"].as_str().or_else(|| schema["type"][0].as_str()) {
        Some("string") => json!("simulated"),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(true),
        Some("array") => json!([example(&schema["items"])]),
        Some("null") => Value::Null,
        _ => {
            let members = schema["properties"].as_object().into_iter().flatten();
            members.map(|(name, schema)| (name.clone(), example(schema))).collect::<Map<_, _>>().into()
        }
    }
}

/// The `usage` of a chat completion.
fn usage(generation: &Generation) -> Value {
    let (head, lasts) = (generation.head.as_secs_f64(), generation.duration().as_secs_f64());
    let mut usage = json!({
        "queue_time": 0.0021, "prompt_tokens": generation.prompt, "prompt_time": head, "completion_tokens": generation.completion,
        "completion_time": lasts, "total_tokens": generation.prompt + generation.completion, "total_time": head + lasts,
    });
    if generation.cached > 0 {
        usage["prompt_tokens_details"] = json!({"cached_tokens": generation.cached});
    }
    if generation.reasoning > 0 {
        usage["completion_tokens_details"] = json!({"reasoning_tokens": generation.reasoning});
    }
    usage
}
