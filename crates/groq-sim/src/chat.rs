//! `chat/completions`: a reply of seeded length, whole or as a stream, and the limiter's answer where there is none.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    Sim,
    answer::{Answer, Hold, Step},
    call::Call,
    error::{self, invalid},
    limiter::{Ask, Lane, Unit},
};

/// What a request generates, and how fast.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: u64,
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) completion: u64,
    pub(crate) reasoning: u64,
    pub(crate) finish: &'static str,
    pub(crate) head: Duration,
    per_token: Duration,
}

/// Chunks of a stream at most.
const CHUNKS: u64 = 200;

impl Generation {
    pub(crate) fn text(&self) -> String {
        self.pieces().into_iter().map(|(piece, _)| piece).collect()
    }

    /// The text in the pieces of a stream, each with the completion tokens that exist after it.
    pub(crate) fn pieces(&self) -> Vec<(String, u64)> {
        let size = self.completion.div_ceil(CHUNKS).max(1);
        let ends = (1..=self.completion.div_ceil(size)).map(|n| (n * size).min(self.completion));
        let mut from = 0;
        ends.map(|to| {
            let piece = (std::mem::replace(&mut from, to)..to).map(word).collect();
            (piece, to)
        })
        .collect()
    }

    /// Time for all tokens.
    pub(crate) fn lasts(&self) -> Duration {
        self.per_token * u32::try_from(self.completion).unwrap_or(u32::MAX)
    }

    /// Pauses and events in turn; what is settled is settled before the last events.
    pub(crate) fn stream(&self, events: Vec<(Bytes, u64)>, last: Vec<Bytes>) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut before = 0;
        for (event, tokens) in events {
            let pause = self.per_token * u32::try_from(tokens - before).unwrap_or(u32::MAX);
            before = tokens;
            if !pause.is_zero() {
                steps.push(Step::Wait(pause));
            }
            steps.extend([Step::Produced(tokens), Step::Bytes(event)]);
        }
        steps.extend([Step::Produced(self.completion), Step::Settle]);
        steps.extend(last.into_iter().map(Step::Bytes));
        steps
    }

    /// `usage` as chat has it.
    fn usage(&self) -> Value {
        let (head, lasts) = (self.head.as_secs_f64(), self.lasts().as_secs_f64());
        let mut usage = json!({
            "queue_time": 0.0021, "prompt_tokens": self.prompt, "prompt_time": head, "completion_tokens": self.completion,
            "completion_time": lasts, "total_tokens": self.prompt + self.completion, "total_time": head + lasts,
        });
        if self.cached > 0 {
            usage["prompt_tokens_details"] = json!({"cached_tokens": self.cached});
        }
        if self.reasoning > 0 {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": self.reasoning});
        }
        usage
    }
}

fn word(n: u64) -> &'static str {
    const WORDS: [&str; 12] =
        ["Tokens", " leave", " the", " bucket", " one", " by", " one", ",", " and", " none", " is", " lost"];
    WORDS[usize::try_from(n % 12).unwrap_or(0)]
}

impl Sim {
    /// Lets a request through the limits or answers for them; the headers are those of the moment of admission.
    pub(crate) fn admit(&self, call: &Call, ask: Ask) -> Result<(Hold, HeaderMap), Box<Answer>> {
        let options = &self.0.options;
        let key = call.key().unwrap_or_default();
        let organisation = self.organisation(key);
        let scope = (organisation, call.model.clone(), call.tier().to_owned());
        let now = self.now();
        let state = &mut *self.state();
        let lanes = state.lanes.len() as u64;
        let limits = options.plan.of_model(&call.model);
        let lane = state.lanes.entry(scope.clone()).or_insert_with(|| Lane::new(&limits, options, now, options.seed ^ lanes));
        match lane.admit(now, key, ask, options.charging) {
            Ok(admission) => {
                let headers = lane.headers(now, ask.unit(), options.exact_reset);
                let prompt = match ask {
                    Ask::Tokens { prompt, .. } => prompt.saturating_sub(call.wishes.cached.unwrap_or(0)),
                    Ask::Audio { .. } => 0,
                };
                Ok((Hold { sim: self.clone(), scope, admission, prompt, produced: 0 }, headers))
            }
            Err(refusal) => {
                let (status, more, body) = refusal.answer(options, &scope);
                let mut answer = Answer::json(status, &body);
                answer.headers.extend(more);
                answer.headers.extend(lane.headers(now, refusal.unit(), options.exact_reset));
                answer.refused = Some(refusal.dimension.code());
                Err(Box::new(answer))
            }
        }
    }

    /// How much an admitted request generates, by the seed and its number.
    pub(crate) fn generate(&self, call: &Call, id: u64) -> Generation {
        let options = &self.0.options;
        let mut random = fastrand::Rng::with_seed(options.seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut lognormal = |median: f64, sigma: f64| {
            let (a, b) = (1.0 - random.f64(), random.f64());
            median * (sigma * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()).exp()
        };
        let head = options.pace.head.mul_f64(lognormal(1.0, options.pace.head_sigma).min(100.0));
        let wanted = lognormal(options.pace.completion, options.pace.completion_sigma) as u64;
        let wanted = call.wishes.completion.unwrap_or(wanted).max(1);
        let completion = wanted.min(call.ceiling().unwrap_or(u64::MAX)).min(131_072);
        let prompt = call.prompt();
        Generation {
            id,
            prompt,
            cached: call.wishes.cached.unwrap_or(0).min(prompt),
            completion,
            reasoning: if call.model.contains("gpt-oss") { completion / 4 } else { 0 },
            finish: if completion < wanted { "length" } else { "stop" },
            head: call.wishes.head_ms.map_or(head, Duration::from_millis),
            per_token: match options.pace.tokens_per_second {
                rate if rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
                _ => Duration::ZERO,
            },
        }
    }

    /// An admitted generation's answer: whole after all its time, or as a stream from its head on.
    pub(crate) fn generated(&self, generation: &Generation, mut hold: Hold, headers: HeaderMap, body: Body) -> Answer {
        let mut answer = match body {
            Body::Whole(status, json) => {
                hold.produced = generation.completion;
                let mut answer = Answer::json(status, &json);
                answer.before = generation.head + generation.lasts();
                answer.steps.insert(0, Step::Settle);
                answer
            }
            Body::Stream(steps) => {
                let mut answer = Answer::new(StatusCode::OK, "text/event-stream", Bytes::new());
                answer.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                answer.before = generation.head;
                answer.steps = steps;
                answer
            }
        };
        answer.headers.extend(headers);
        answer.hold = Some(hold);
        answer
    }

    pub(crate) fn chat(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_chat(call) {
            return fault;
        }
        let (hold, headers) = match self.admit(call, call.ask()) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let mut generation = self.generate(call, id);
        if let Some(code) = &call.wishes.error {
            return self.generated(&generation, hold, headers, Body::Whole(StatusCode::BAD_REQUEST, failed(code)));
        }
        let tool = tool_call(call, id);
        let format = &call.fields["response_format"];
        let structured = match format["type"].as_str() {
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
        self.generated(&generation, hold, headers, body)
    }

    fn chat_whole(&self, call: &Call, generation: &Generation, tool: Option<Value>, content: Option<String>) -> Value {
        let mut message = Map::from_iter([("role".to_owned(), json!("assistant"))]);
        match tool {
            Some(tool) => message.extend([("tool_calls".to_owned(), json!([tool]))]),
            None => message.extend([("content".to_owned(), json!(content.unwrap_or_else(|| generation.text())))]),
        }
        if generation.reasoning > 0 {
            message.insert("reasoning".to_owned(), json!("The user wants a simulated answer."));
        }
        json!({
            "id": format!("chatcmpl-{:032x}", generation.id), "object": "chat.completion", "created": self.unix_time(),
            "model": call.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": generation.finish}],
            "usage": generation.usage(), "usage_breakdown": null, "system_fingerprint": "fp_51a1d0c0de",
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
                let piece = |(piece, tokens)| (chunk(choice(json!({"content": piece}), None), json!({})), tokens);
                events.extend(generation.pieces().into_iter().map(piece));
            }
        }
        let usage = generation.usage();
        let groq = json!({"x_groq": {"id": id, "usage": usage}});
        let mut last = vec![chunk(choice(json!({}), Some(generation.finish)), groq.clone())];
        if call.fields["stream_options"]["include_usage"] == true {
            last.push(chunk(json!([]), json!({"usage": usage, "x_groq": groq["x_groq"]})));
        }
        last.push(Bytes::from_static(b"data: [DONE]\n\n"));
        generation.stream(events, last)
    }
}

/// How a generation is handed over.
pub(crate) enum Body {
    Whole(StatusCode, Value),
    Stream(Vec<Step>),
}

/// What is wrong with a model's name, on any endpoint that takes one.
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

/// A 400 that comes after generation, and is charged.
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

/// A call of the chosen tool (or the first), if the request has tools and chooses.
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

/// The smallest value that a JSON schema allows, near enough.
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

/// Groq's name for a request.
pub(crate) fn request_id(id: u64) -> String {
    format!("req_01sim{id:021}")
}

impl Ask {
    fn unit(self) -> Unit {
        match self {
            Self::Tokens { .. } => Unit::Tokens,
            Self::Audio { .. } => Unit::Seconds,
        }
    }
}
