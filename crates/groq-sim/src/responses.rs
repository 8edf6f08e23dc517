//! `responses`: a complete response or a stream of typed events.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    Sim,
    answer::{Answer, Step},
    call::Call,
    chat::invalid_model,
    error::invalid,
    generation::{Body, Generation},
};

impl Sim {
    pub(crate) fn responses(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_model(call) {
            return fault;
        }
        if call.fields["input"].is_null() {
            return Answer::bad(&invalid("'input' : property 'input' is missing", None));
        }
        let (permit, headers) = match self.admit(call, call.cost()) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let generation = self.generate(call, id);
        let body = if call.fields["stream"] == true {
            Body::Stream(self.response_stream(call, &generation))
        } else {
            Body::Whole(StatusCode::OK, self.response(call, &generation, true))
        };
        self.generated(&generation, permit, headers, body)
    }

    fn response(&self, call: &Call, generation: &Generation, done: bool) -> Value {
        let mut response = json!({
            "id": format!("resp_{:032x}", generation.id), "object": "response", "created_at": self.unix_time(),
            "status": if done { "completed" } else { "in_progress" }, "background": false, "error": null,
            "incomplete_details": null, "instructions": call.fields["instructions"], "max_output_tokens": call.max_completion_tokens(),
            "model": call.model, "output": [], "parallel_tool_calls": true, "previous_response_id": null,
            "reasoning": {"effort": "medium", "summary": null}, "service_tier": call.tier(), "store": false, "temperature": 1,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1, "truncation": "disabled",
            "usage": null, "metadata": {},
        });
        if done {
            if generation.is_truncated() {
                response["status"] = json!("incomplete");
                response["incomplete_details"] = json!({"reason": "max_output_tokens"});
            }
            let only_reasoning = generation.completion > 0 && generation.reasoning == generation.completion;
            let reasoning = json!({"id": format!("rs_{:032x}", generation.id), "type": "reasoning", "summary": []});
            response["output"] = if only_reasoning { json!([reasoning]) } else { json!([item(generation)]) };
            response["usage"] = json!({
                "input_tokens": generation.prompt, "input_tokens_details": {"cached_tokens": generation.cached},
                "output_tokens": generation.completion,
                "output_tokens_details": {"reasoning_tokens": generation.reasoning},
                "total_tokens": generation.prompt + generation.completion,
            });
        }
        response
    }

    /// The stream of typed events, which does not end with `[DONE]`.
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
        let mut events = vec![
            (event("response.created", json!({"response": running})), 0),
            (event("response.in_progress", json!({"response": running})), 0),
        ];
        let mut last = Vec::new();
        let pieces = generation.pieces();
        if !pieces.is_empty() {
            let empty = json!({"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
            events.push((event("response.output_item.added", json!({"output_index": 0, "item": empty})), generation.reasoning));
            events.push((event("response.content_part.added", with("part", part(""))), generation.reasoning));
            for (piece, tokens) in pieces {
                events.push((event("response.output_text.delta", with("delta", json!(piece))), tokens));
            }
            let text = generation.text();
            last.push(event("response.output_text.done", with("text", json!(text))));
            last.push(event("response.content_part.done", with("part", part(&text))));
            last.push(event("response.output_item.done", json!({"output_index": 0, "item": item(generation)})));
        }
        let end = if generation.is_truncated() { "response.incomplete" } else { "response.completed" };
        last.push(event(end, json!({"response": self.response(call, generation, true)})));
        generation.stream(events, last)
    }
}

fn item_id(generation: &Generation) -> String {
    format!("msg_{:032x}", generation.id)
}

fn item(generation: &Generation) -> Value {
    let status = if generation.is_truncated() { "incomplete" } else { "completed" };
    let content = json!([{"type": "output_text", "text": generation.text(), "annotations": [], "logprobs": []}]);
    json!({"id": item_id(generation), "type": "message", "status": status, "role": "assistant", "content": content})
}
