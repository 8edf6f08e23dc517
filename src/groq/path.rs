//! Groq's endpoints, and the mapping of the paths that clients use to the ones that Groq serves.

use std::borrow::Cow;

use http::Method;

const ROOT: &str = "/openai/v1";

/// The endpoint of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `chat/completions`
    Chat,
    /// `responses`
    Responses,
    /// `embeddings`
    Embeddings,
    /// `audio/transcriptions`
    Transcription,
    /// `audio/translations`
    Translation,
    /// `audio/speech`
    Speech,
    /// `models`, `models/{id}`
    Models,
    /// `batches…`
    Batches,
    /// `files…`
    Files,
    /// `/v1/fine_tunings…`
    FineTunings,
    /// Anything else: passed through.
    Other,
}

impl Endpoint {
    /// The endpoint of a path from [`map_path`]; the query is ignored.
    pub fn of(method: &Method, path: &str) -> Self {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let endpoint = match Self::at(path) {
            Some(endpoint) => endpoint,
            None if is_fine_tuning(path) => Self::FineTunings,
            None => Self::Other,
        };
        if endpoint.methods().contains(method) { endpoint } else { Self::Other }
    }

    /// The endpoint of a path under `/openai/v1/`; `None` for any other path.
    fn at(path: &str) -> Option<Self> {
        Some(Self::known(path.strip_prefix(ROOT)?.strip_prefix('/')?))
    }

    /// The endpoint of `rest` under `/openai/v1/`.
    fn known(rest: &str) -> Self {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        match rest {
            "chat/completions" => return Self::Chat,
            "responses" => return Self::Responses,
            "embeddings" => return Self::Embeddings,
            "audio/transcriptions" => return Self::Transcription,
            "audio/translations" => return Self::Translation,
            "audio/speech" => return Self::Speech,
            _ => {}
        }
        match rest.split('/').next() {
            Some("models") => Self::Models,
            Some("batches") => Self::Batches,
            Some("files") => Self::Files,
            _ => Self::Other,
        }
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Self::Models => &[Method::GET, Method::DELETE],
            Self::Batches | Self::Files | Self::FineTunings => &[Method::GET, Method::POST, Method::DELETE],
            Self::Other => &[],
            _ => &[Method::POST],
        }
    }

    /// A short name for labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Transcription => "transcriptions",
            Self::Translation => "translations",
            Self::Speech => "speech",
            Self::Models => "models",
            Self::Batches => "batches",
            Self::Files => "files",
            Self::FineTunings => "fine_tunings",
            Self::Other => "other",
        }
    }

    /// Whether a request's body must be JSON.
    pub fn takes_json(self) -> bool {
        matches!(self, Self::Chat | Self::Responses | Self::Embeddings | Self::Speech | Self::Batches | Self::FineTunings)
    }

    /// Whether a request's body is a multipart form with audio.
    pub fn takes_audio(self) -> bool {
        matches!(self, Self::Transcription | Self::Translation)
    }

    /// Whether a plain (not streamed) success is JSON, unless the request asked for text.
    pub fn answers_json(self) -> bool {
        !matches!(self, Self::Speech | Self::Files | Self::Other)
    }

    /// Whether requests count under a model's limits.
    pub fn spends(self) -> bool {
        self.takes_audio() || matches!(self, Self::Chat | Self::Responses | Self::Embeddings | Self::Speech)
    }
}

/// Maps paths of clients to Groq's. Users write base URLs with and without `/openai`, `/v1` and a trailing slash, and clients add
/// `/openai/v1`, `/v1` or nothing before an endpoint. So a known endpoint `x` after any number of these prefixes becomes
/// `/openai/v1/x`, and so does any other `x` after a `/v1`. `/v1/fine_tunings` and `/v1/metrics` are paths of Groq and stay.
/// All other paths, and all queries, are unchanged.
pub fn map_path(path_and_query: &str) -> Cow<'_, str> {
    let (path, query) = path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
    // The common case.
    if Endpoint::at(path).is_some_and(|endpoint| endpoint != Endpoint::Other) && !path.contains("//") {
        return Cow::Borrowed(path_and_query);
    }
    let mut rest = path;
    let mut prefix = Vec::new();
    while let Some(below) = rest.strip_prefix('/') {
        let below = below.trim_start_matches('/');
        let (segment, after) = below.split_at(below.find('/').unwrap_or(below.len()));
        if !matches!(segment, "openai" | "v1") {
            break;
        }
        prefix.push(segment);
        rest = after;
    }
    let below = without_empty_segments(rest);
    let mapped = if below.strip_prefix('/').is_some_and(|endpoint| Endpoint::known(endpoint) != Endpoint::Other) {
        [ROOT, &below, query].concat()
    } else if prefix == ["v1"] && is_outside_of_root(&below) {
        ["/v1", &below, query].concat()
    } else if prefix.contains(&"v1") {
        [ROOT, rest, query].concat()
    } else {
        return Cow::Borrowed(path_and_query);
    };
    if mapped == path_and_query { Cow::Borrowed(path_and_query) } else { Cow::Owned(mapped) }
}

/// `//a//b` as `/a/b`.
fn without_empty_segments(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether Groq serves the path `/v1` + `rest` itself, and not under `/openai/v1`.
fn is_outside_of_root(rest: &str) -> bool {
    under(rest, "/fine_tunings") || under(rest, "/metrics")
}

fn is_fine_tuning(path: &str) -> bool {
    path.strip_prefix("/v1").is_some_and(|rest| under(rest, "/fine_tunings"))
}

/// Whether `path` is `prefix` or lies below it.
fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_path_of_a_client_leads_to_groqs() {
        let table = [
            ("/openai/v1/chat/completions", "/openai/v1/chat/completions"),
            ("/openai/v1/openai/v1/chat/completions", "/openai/v1/chat/completions"),
            ("/openai/v1/openai/v1/openai/v1/models", "/openai/v1/models"),
            ("/v1/chat/completions", "/openai/v1/chat/completions"),
            ("/chat/completions", "/openai/v1/chat/completions"),
            ("/v1/whatever", "/openai/v1/whatever"),
            ("/models", "/openai/v1/models"),
            ("/models/openai/gpt-oss-20b", "/openai/v1/models/openai/gpt-oss-20b"),
            ("/models/openai%2Fgpt-oss-20b", "/openai/v1/models/openai%2Fgpt-oss-20b"),
            ("/audio/speech?a=/v1/b?c", "/openai/v1/audio/speech?a=/v1/b?c"),
            ("/openai/v1/openai/v1/files?x=%20&y", "/openai/v1/files?x=%20&y"),
            ("/files/file_1/content", "/openai/v1/files/file_1/content"),
            ("/v1/fine_tunings", "/v1/fine_tunings"),
            ("/v1/fine_tunings/7?q", "/v1/fine_tunings/7?q"),
            // Groq's Prometheus endpoint.
            ("/v1/metrics/prometheus", "/v1/metrics/prometheus"),
            ("/v1/metrics/prometheus/api/v1/query?query=up", "/v1/metrics/prometheus/api/v1/query?query=up"),
            // async-openai, its base URL ending in a slash.
            ("/openai/v1//chat/completions", "/openai/v1/chat/completions"),
            ("//chat/completions", "/openai/v1/chat/completions"),
            ("//openai//v1///chat//completions?a=//b", "/openai/v1/chat/completions?a=//b"),
            // groq's SDK, its base URL ending in `/v1`.
            ("/v1/openai/v1/chat/completions", "/openai/v1/chat/completions"),
            ("/v1//openai/v1/models?x", "/openai/v1/models?x"),
            ("/v1/openai/v1/whatever", "/openai/v1/whatever"),
            // genai, its base URL ending in `/openai`.
            ("/openai/chat/completions", "/openai/v1/chat/completions"),
            ("/openai/models/openai/gpt-oss-20b", "/openai/v1/models/openai/gpt-oss-20b"),
            ("/openai/whatever", "/openai/whatever"),
            ("/openai", "/openai"),
            ("/whatever//x", "/whatever//x"),
            ("/v1/v1/chat/completions", "/openai/v1/chat/completions"),
            ("/openai/v1", "/openai/v1"),
            ("/openai/v1/", "/openai/v1/"),
            ("/openai/v10/chat/completions", "/openai/v10/chat/completions"),
            ("/v10/chat/completions", "/v10/chat/completions"),
            ("/whatever", "/whatever"),
            ("/", "/"),
            ("*", "*"),
            ("", ""),
            ("/chat", "/chat"),
            ("/modelsx", "/modelsx"),
        ];
        for (from, to) in table {
            assert_eq!(map_path(from), to, "{from}");
        }
    }

    #[test]
    fn endpoints_by_method_and_path() {
        let (get, post) = (Method::GET, Method::POST);
        let table = [
            (&post, "/openai/v1/chat/completions", Endpoint::Chat),
            (&post, "/openai/v1/chat/completions/", Endpoint::Chat),
            (&post, "/openai/v1/chat/completions?x=1", Endpoint::Chat),
            (&get, "/openai/v1/chat/completions", Endpoint::Other),
            (&Method::OPTIONS, "/openai/v1/chat/completions", Endpoint::Other),
            (&post, "/openai/v1/responses", Endpoint::Responses),
            (&get, "/openai/v1/responses/resp_1", Endpoint::Other),
            (&post, "/openai/v1/embeddings", Endpoint::Embeddings),
            (&post, "/openai/v1/audio/transcriptions", Endpoint::Transcription),
            (&post, "/openai/v1/audio/translations", Endpoint::Translation),
            (&post, "/openai/v1/audio/speech", Endpoint::Speech),
            (&get, "/openai/v1/models", Endpoint::Models),
            (&Method::DELETE, "/openai/v1/models/a/b", Endpoint::Models),
            (&get, "/openai/v1/files/f/content", Endpoint::Files),
            (&post, "/openai/v1/batches/b/cancel", Endpoint::Batches),
            (&post, "/v1/fine_tunings", Endpoint::FineTunings),
            (&post, "/chat/completions", Endpoint::Other),
            (&get, "/favicon.ico", Endpoint::Other),
        ];
        for (method, path, endpoint) in table {
            assert_eq!(Endpoint::of(method, path), endpoint, "{method} {path}");
        }
    }

    proptest! {
        #[test]
        fn mapping_is_idempotent_and_keeps_the_query(path in "(/openai/v1|/v1|/openai|/models|/chat/completions|/fine_tunings|/metrics|/x|/){0,6}", query in "(\\?[a-z/?=]{0,9})?") {
            let once = map_path(&(path + &query)).into_owned();
            prop_assert!(once.ends_with(&query));
            prop_assert_eq!(map_path(&once), once.as_str());
        }

        #[test]
        fn never_panics(path in "\\PC*") {
            let mapped = map_path(&path).into_owned();
            let _ = Endpoint::of(&Method::POST, &mapped);
        }
    }
}
