//! `responses` and `embeddings`: the other two that spend tokens and answer in JSON.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    Sim,
    answer::{Answer, Step},
    call::Call,
    chat::{Body, Generation, invalid_model},
    error::invalid,
    limiter::Ask,
};

impl Sim {
    pub(crate) fn responses(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_model(call) {
            return fault;
        }
        if call.fields["input"].is_null() {
            return Answer::bad(&invalid("'input' : property 'input' is missing", None));
        }
        let (hold, headers) = match self.admit(call, call.ask()) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let generation = self.generate(call, id);
        let body = if call.fields["stream"] == true {
            Body::Stream(self.response_stream(call, &generation))
        } else {
            Body::Whole(StatusCode::OK, self.response(call, &generation, true))
        };
        self.generated(&generation, hold, headers, body)
    }

    fn response(&self, call: &Call, generation: &Generation, done: bool) -> Value {
        let mut response = json!({
            "id": format!("resp_{:032x}", generation.id), "object": "response", "created_at": self.unix_time(),
            "status": if done { "completed" } else { "in_progress" }, "background": false, "error": null,
            "incomplete_details": null, "instructions": call.fields["instructions"], "max_output_tokens": call.ceiling(),
            "model": call.model, "output": [], "parallel_tool_calls": true, "previous_response_id": null,
            "reasoning": {"effort": "medium", "summary": null}, "service_tier": call.tier(), "store": false, "temperature": 1,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1, "truncation": "disabled",
            "usage": null, "metadata": {},
        });
        if done {
            response["output"] = json!([item(generation, "completed")]);
            response["usage"] = json!({
                "input_tokens": generation.prompt, "input_tokens_details": {"cached_tokens": generation.cached},
                "output_tokens": generation.completion,
                "output_tokens_details": {"reasoning_tokens": generation.reasoning},
                "total_tokens": generation.prompt + generation.completion,
            });
        }
        response
    }

    /// Typed events; there is no `[DONE]`.
    fn response_stream(&self, call: &Call, generation: &Generation) -> Vec<Step> {
        let mut sequence = 0;
        let mut event = |name: &str, mut body: Value| {
            body["type"] = json!(name);
            body["sequence_number"] = json!(sequence);
            sequence += 1;
            Bytes::from(format!("event: {name}\ndata: {body}\n\n"))
        };
        let item_id = item_id(generation);
        let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        let place = json!({"item_id": item_id, "output_index": 0, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut body = place.clone();
            body[name] = value;
            body
        };
        let running = self.response(call, generation, false);
        let empty = json!({"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
        let mut events = vec![
            (event("response.created", json!({"response": running})), 0),
            (event("response.in_progress", json!({"response": running})), 0),
            (event("response.output_item.added", json!({"output_index": 0, "item": empty})), 0),
            (event("response.content_part.added", with("part", part(""))), 0),
        ];
        for (piece, tokens) in generation.pieces() {
            events.push((event("response.output_text.delta", with("delta", json!(piece))), tokens));
        }
        let text = generation.text();
        let last = vec![
            event("response.output_text.done", with("text", json!(text))),
            event("response.content_part.done", with("part", part(&text))),
            event("response.output_item.done", json!({"output_index": 0, "item": item(generation, "completed")})),
            event("response.completed", json!({"response": self.response(call, generation, true)})),
        ];
        generation.stream(events, last)
    }

    pub(crate) fn embeddings(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_model(call) {
            return fault;
        }
        let inputs: Vec<&Value> = match &call.fields["input"] {
            Value::Array(inputs) => inputs.iter().collect(),
            Value::Null => return Answer::bad(&invalid("'input' : property 'input' is missing", None)),
            input => vec![input],
        };
        let prompt = inputs.iter().map(|input| (input.to_string().chars().count() as u64).div_ceil(4)).sum();
        let (hold, headers) = match self.admit(call, Ask::Tokens { prompt, ceiling: Some(0) }) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let base64 = call.fields["encoding_format"] == "base64";
        let vectors = inputs.iter().enumerate().map(|(index, _)| {
            let vector: Vec<f32> = (0..8).map(|n| 0.125 * (n + index) as f32).collect();
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            let embedding = if base64 { json!(to_base64(&bytes)) } else { json!(vector) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        let data: Vec<Value> = vectors.collect();
        let usage = json!({"prompt_tokens": prompt, "total_tokens": prompt});
        let body = json!({"object": "list", "data": data, "model": call.model, "usage": usage});
        let mut generation = self.generate(call, id);
        generation.completion = 0;
        self.generated(&generation, hold, headers, Body::Whole(StatusCode::OK, body))
    }
}

fn item_id(generation: &Generation) -> String {
    format!("msg_{:032x}", generation.id)
}

fn item(generation: &Generation, status: &str) -> Value {
    let content = json!([{"type": "output_text", "text": generation.text(), "annotations": [], "logprobs": []}]);
    json!({"id": item_id(generation), "type": "message", "status": status, "role": "assistant", "content": content})
}

fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let word = chunk.iter().fold(0, |word, byte| (word << 8) | usize::from(*byte)) << (8 * (3 - chunk.len()));
        let digit = |n: usize| if n <= chunk.len() { char::from(DIGITS[(word >> (18 - 6 * n)) & 63]) } else { '=' };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}
