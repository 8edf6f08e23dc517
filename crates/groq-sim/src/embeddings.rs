//! `embeddings`: vectors as floats or base64. Only the prompt is charged.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{Sim, answer::Answer, call::Call, chat::invalid_model, error::invalid, generation::Body, limiter::Cost};

impl Sim {
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
        let (permit, headers) = match self.admit(call, Cost::Tokens { prompt, max_completion: Some(0) }) {
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
        (generation.completion, generation.reasoning) = (0, 0);
        self.generated(&generation, permit, headers, Body::Whole(StatusCode::OK, body))
    }
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
