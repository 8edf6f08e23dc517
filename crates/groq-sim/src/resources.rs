//! Models, files (with ranges), batches and fine tunings: the endpoints without rate limits.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    Sim,
    answer::Answer,
    call::{Call, Endpoint},
    error::{invalid, no_such_model, usual},
};

#[derive(Debug, Default)]
pub(crate) struct Resources {
    files: BTreeMap<String, (Value, Bytes)>,
    batches: BTreeMap<String, Value>,
    tunings: BTreeMap<String, Value>,
}

impl Sim {
    /// The response of an endpoint without rate limits.
    pub(crate) fn resources(&self, call: &Call, id: u64) -> Answer {
        let deleted = |id: &str, object: &str| Answer::ok(&json!({"id": id, "object": object, "deleted": true}));
        let resources = &mut self.state().resources;
        match &call.endpoint {
            Endpoint::Models => {
                let models: Vec<Value> = self.0.options.plan.models.keys().map(|id| model(id)).collect();
                Answer::ok(&list(models.into_iter()))
            }
            Endpoint::Model(name) if !self.0.options.plan.models.contains_key(name) => {
                Answer::json(StatusCode::NOT_FOUND, &no_such_model(name))
            }
            Endpoint::Model(name) if call.method == Method::DELETE => deleted(name, "model"),
            Endpoint::Model(name) => Answer::ok(&model(name)),
            Endpoint::Files if call.method == Method::POST => {
                let Some((filename, bytes)) = &call.file else {
                    return Answer::bad(&invalid("'file' : property 'file' is missing", None));
                };
                let id = format!("file_01sim{id:021}");
                let purpose = call.fields["purpose"].as_str().unwrap_or("batch");
                let file = json!({"id": id, "object": "file", "bytes": bytes.len(), "created_at": self.unix_time(),
                                  "filename": filename, "purpose": purpose, "status": "processed"});
                resources.files.insert(id, (file.clone(), bytes.clone()));
                Answer::ok(&file)
            }
            Endpoint::Files => Answer::ok(&list(resources.files.values().map(|(file, _)| file.clone()))),
            Endpoint::File(id) if call.method == Method::DELETE => {
                resources.files.remove(id).map_or_else(missing, |_| deleted(id, "file"))
            }
            Endpoint::File(id) => resources.files.get(id).map_or_else(missing, |(file, _)| Answer::ok(file)),
            Endpoint::FileContent(id) => resources.files.get(id).map_or_else(missing, |(_, bytes)| content(call, bytes)),
            Endpoint::Batches if call.method == Method::POST => {
                let id = format!("batch_01sim{id:021}");
                let batch = json!({
                    "id": id, "object": "batch", "endpoint": call.fields["endpoint"], "errors": null,
                    "input_file_id": call.fields["input_file_id"], "completion_window": call.fields["completion_window"],
                    "status": "validating", "output_file_id": null, "error_file_id": null, "created_at": self.unix_time(),
                    "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": call.fields["metadata"],
                });
                resources.batches.insert(id, batch.clone());
                Answer::ok(&batch)
            }
            Endpoint::Batches => Answer::ok(&list(resources.batches.values().cloned())),
            Endpoint::Batch(id) => resources.batches.get(id).map_or_else(missing, Answer::ok),
            Endpoint::BatchCancel(id) => resources.batches.get_mut(id).map_or_else(missing, |batch| {
                batch["status"] = json!("cancelling");
                Answer::ok(batch)
            }),
            Endpoint::FineTunings if call.method == Method::POST => {
                let id = format!("ft_01sim{id:021}");
                let tuning = json!({"id": id, "name": call.fields["name"], "base_model": call.fields["base_model"],
                                    "type": "lora", "input_file_id": call.fields["input_file_id"],
                                    "created_at": self.unix_time(), "fine_tuned_model": format!("ft:{id}")});
                resources.tunings.insert(id.clone(), tuning.clone());
                Answer::ok(&json!({"id": id, "object": "object", "data": tuning}))
            }
            Endpoint::FineTunings => Answer::ok(&list(resources.tunings.values().cloned())),
            Endpoint::FineTuning(id) if call.method == Method::DELETE => {
                resources.tunings.remove(id).map_or_else(missing, |_| deleted(id, "fine_tuning"))
            }
            Endpoint::FineTuning(id) => resources.tunings.get(id).map_or_else(missing, Answer::ok),
            _ => missing(),
        }
    }
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({"object": "list", "data": items.collect::<Vec<_>>()})
}

fn missing() -> Answer {
    Answer::json(StatusCode::NOT_FOUND, &usual(404, ""))
}

fn model(id: &str) -> Value {
    let owner = id.split('/').next().unwrap_or("Groq");
    json!({"id": id, "object": "model", "created": 1_754_408_224, "owned_by": owner, "active": true,
           "context_window": 131_072, "public_apps": null, "max_completion_tokens": 65_536})
}

/// The content of a file, or the requested range of it.
fn content(call: &Call, bytes: &Bytes) -> Answer {
    let wanted = call.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let mut answer = match wanted.map(|range| parse_range(range, bytes.len())) {
        None => Answer::new(StatusCode::OK, "application/octet-stream", bytes.clone()),
        Some(Some(range)) => {
            let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
            let mut answer = Answer::new(StatusCode::PARTIAL_CONTENT, "application/octet-stream", bytes.slice(range));
            answer.headers.extend(HeaderValue::from_str(&shown).ok().map(|value| (header::CONTENT_RANGE, value)));
            answer
        }
        Some(None) => Answer::json(StatusCode::RANGE_NOT_SATISFIABLE, &invalid("Range not satisfiable", None)),
    };
    answer.headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer
}

/// Parses `bytes=2-5`, `bytes=2-` or `bytes=-3` for a file of `length` bytes.
fn parse_range(range: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        (Some(first), None) => first..length,
        (None, Some(last)) => length.saturating_sub(last)..length,
        (None, None) => return None,
    };
    (range.start < range.end).then_some(range)
}
