//! Parsing a request: the endpoint, the fields of the JSON body or form, the number of prompt tokens.

use bytes::Bytes;
use http::{HeaderMap, Method, header, request::Parts};
use http_body_util::{BodyDataStream, Full};
use serde_json::{Map, Value};

use crate::limiter::Cost;

/// An endpoint, by method and path. Path segments are percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Responses,
    Embeddings,
    Transcription { translate: bool },
    Speech,
    Models,
    Model(String),
    Files,
    File(String),
    FileContent(String),
    Batches,
    Batch(String),
    BatchCancel(String),
    FineTunings,
    FineTuning(String),
    Unknown,
}

impl Endpoint {
    fn of(method: &Method, path: &str) -> Self {
        let decoded = percent_decode(path);
        let get = matches!(*method, Method::GET | Method::HEAD);
        let segments: Vec<&str> = decoded.trim_matches('/').split('/').collect();
        match (segments.as_slice(), method) {
            (["openai", "v1", "chat", "completions"], &Method::POST) => Self::Chat,
            (["openai", "v1", "responses"], &Method::POST) => Self::Responses,
            (["openai", "v1", "embeddings"], &Method::POST) => Self::Embeddings,
            (["openai", "v1", "audio", "transcriptions"], &Method::POST) => Self::Transcription { translate: false },
            (["openai", "v1", "audio", "translations"], &Method::POST) => Self::Transcription { translate: true },
            (["openai", "v1", "audio", "speech"], &Method::POST) => Self::Speech,
            (["openai", "v1", "models"], _) if get => Self::Models,
            (["openai", "v1", "models", id @ ..], _) if get || method == Method::DELETE => Self::Model(id.join("/")),
            (["openai", "v1", "files"], _) if get || method == Method::POST => Self::Files,
            (["openai", "v1", "files", id], _) if get || method == Method::DELETE => Self::File((*id).to_owned()),
            (["openai", "v1", "files", id, "content"], _) if get => Self::FileContent((*id).to_owned()),
            (["openai", "v1", "batches"], _) if get || method == Method::POST => Self::Batches,
            (["openai", "v1", "batches", id], _) if get => Self::Batch((*id).to_owned()),
            (["openai", "v1", "batches", id, "cancel"], &Method::POST) => Self::BatchCancel((*id).to_owned()),
            (["v1", "fine_tunings"], _) if get || method == Method::POST => Self::FineTunings,
            (["v1", "fine_tunings", id], _) if get || method == Method::DELETE => Self::FineTuning((*id).to_owned()),
            _ => Self::Unknown,
        }
    }
}

/// A parsed request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The JSON body, or the fields of a form as strings; null if the body is neither.
    pub(crate) fields: Value,
    /// Name and content of the file in a form.
    pub(crate) file: Option<(String, Bytes)>,
    pub(crate) model: String,
    pub(crate) directives: Directives,
    /// Set by [`Action::Truncated`](crate::Action::Truncated): only reasoning is generated, up to max completion tokens.
    pub(crate) truncated: bool,
}

/// How a message controls its own response: `[[sim completion=123 reasoning=100]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// Number of completion tokens, before max completion tokens are applied.
    pub(crate) completion: Option<u64>,
    /// Number of completion tokens at the beginning that are reasoning and have no content.
    pub(crate) reasoning: Option<u64>,
    /// Time to the head.
    pub(crate) head_ms: Option<u64>,
    /// Prompt tokens from the cache.
    pub(crate) cached: Option<u64>,
    /// Code of an error that is returned after the generation.
    pub(crate) error: Option<String>,
}

impl Call {
    pub(crate) async fn read(head: &Parts, body: Bytes) -> Self {
        let path = head.uri.path().to_owned();
        let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let (fields, file) = match multer::parse_boundary(kind) {
            Ok(boundary) => form(boundary, body.clone()).await.unwrap_or_default(),
            Err(_) => (serde_json::from_slice(&body).unwrap_or_default(), None),
        };
        Self {
            endpoint: Endpoint::of(&head.method, &path),
            method: head.method.clone(),
            path,
            headers: head.headers.clone(),
            model: fields["model"].as_str().unwrap_or_default().to_owned(),
            directives: Directives::of(&body),
            truncated: false,
            body,
            fields,
            file,
        }
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
    }

    /// The service tier whose limits apply; `auto` has those of `on_demand`.
    pub(crate) fn tier(&self) -> &str {
        match self.fields["service_tier"].as_str() {
            None | Some("auto") => "on_demand",
            Some(tier) => tier,
        }
    }

    /// The request's max completion tokens, by any of the names of this field.
    pub(crate) fn max_completion_tokens(&self) -> Option<u64> {
        let names = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
        names.into_iter().find_map(|name| self.fields[name].as_u64())
    }

    /// Prompt tokens: characters ÷ 4, plus those of the model's template, tools and images.
    pub(crate) fn prompt(&self) -> u64 {
        let parts = ["messages", "input", "instructions", "tools", "response_format", "text"];
        let mut size = Size::default();
        for part in parts {
            size.add(&self.fields[part]);
        }
        let template = match self.model.as_str() {
            model if model.contains("gpt-oss") => 67,
            model if model.contains("qwen") => 6,
            model if model.contains("llama") => 31,
            _ => 16,
        };
        size.characters.div_ceil(4) + 2048 * size.images + 4 * size.messages.max(1) + template
    }

    pub(crate) fn cost(&self) -> Cost {
        Cost::Tokens { prompt: self.prompt(), max_completion: self.max_completion_tokens() }
    }
}

#[derive(Default)]
struct Size {
    characters: u64,
    images: u64,
    messages: u64,
}

impl Size {
    fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.characters += text.chars().count() as u64,
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(members) => {
                let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
                if kind == "image_url" || kind == "input_image" {
                    self.images += 1;
                    return;
                }
                self.messages += u64::from(members.contains_key("role"));
                let counted = members.iter().filter(|(name, _)| !matches!(name.as_str(), "role" | "type" | "id"));
                counted.for_each(|(_, value)| self.add(value));
            }
            Value::Number(_) | Value::Bool(_) | Value::Null => {}
        }
    }
}

impl Directives {
    fn of(body: &[u8]) -> Self {
        let mut directives = Self::default();
        let Some(start) = memchr::memmem::find(body, b"[[sim ") else { return directives };
        let rest = &body[start + 6..];
        let end = memchr::memmem::find(rest, b"]]").unwrap_or(0);
        for directive in String::from_utf8_lossy(&rest[..end]).split_whitespace() {
            match directive.split_once('=') {
                Some(("completion", n)) => directives.completion = n.parse().ok(),
                Some(("reasoning", n)) => directives.reasoning = n.parse().ok(),
                Some(("head_ms", n)) => directives.head_ms = n.parse().ok(),
                Some(("cached", n)) => directives.cached = n.parse().ok(),
                Some(("error", code)) => directives.error = Some(code.to_owned()),
                _ => {}
            }
        }
        directives
    }
}

type Form = (Value, Option<(String, Bytes)>);

async fn form(boundary: String, body: Bytes) -> Result<Form, multer::Error> {
    let mut form = multer::Multipart::new(BodyDataStream::new(Full::new(body)), boundary);
    let (mut fields, mut file) = (Map::new(), None);
    while let Some(field) = form.next_field().await? {
        let name = field.name().unwrap_or_default().to_owned();
        match field.file_name().map(str::to_owned) {
            Some(filename) => file = Some((filename, field.bytes().await?)),
            None => {
                fields.insert(name, Value::String(field.text().await?));
            }
        }
    }
    Ok((Value::Object(fields), file))
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
