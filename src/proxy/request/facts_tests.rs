//! What is read from bodies and headers of requests.

use proptest::prelude::*;

use super::*;

fn facts(endpoint: Endpoint, body: &str) -> Facts {
    let body = Bytes::copy_from_slice(body.as_bytes());
    Facts::of(endpoint, &HeaderMap::new(), &body).unwrap_or_else(|why| panic!("{why:?}"))
}

fn chat(body: &str) -> Facts {
    facts(Endpoint::Chat, body)
}

fn cost(facts: &Facts) -> (u64, Option<u64>) {
    match facts.cost {
        CostEstimate::Tokens { prompt, max_completion_tokens: output_limit } => (prompt, output_limit),
        other => panic!("{other:?}"),
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| (header::HeaderName::from_static(name), value.parse().expect("a value"));
    pairs.iter().map(pair).collect()
}

#[test]
fn a_chat_call() {
    let facts = chat(
        r#"{"model":"openai/gpt-oss-20b","messages":[{"role":"user","content":"Hello there"}],"stream":true,"max_completion_tokens":512,"service_tier":"flex"}"#,
    );
    assert_eq!((facts.model.as_ref(), facts.tier.as_ref(), facts.stream), ("openai/gpt-oss-20b", "flex", true));
    let (prompt, output_limit) = cost(&facts);
    assert_eq!(output_limit, Some(512));
    assert!((72..=76).contains(&prompt), "{prompt}");
}

#[test]
fn output_limits_by_endpoint() {
    let table = [
        (Endpoint::Chat, r#"{"model":"m","max_tokens":7}"#, Some(7)),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":7,"max_completion_tokens":9}"#, Some(9)),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":7,"max_completion_tokens":null}"#, Some(7)),
        (Endpoint::Chat, r#"{"model":"m","max_output_tokens":7}"#, None),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":1e3}"#, Some(1000)),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":-5}"#, None),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":"7"}"#, None),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":1,"max_tokens":2}"#, Some(2)),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":99999999999999999999999999}"#, Some(u64::MAX)),
        (Endpoint::Responses, r#"{"model":"m","max_output_tokens":7,"max_tokens":9}"#, Some(7)),
        (Endpoint::Embeddings, r#"{"model":"m","input":"x","max_tokens":9}"#, Some(0)),
        (Endpoint::Speech, r#"{"model":"m","input":"Grüße"}"#, Some(0)),
    ];
    for (endpoint, body, output_limit) in table {
        assert_eq!(cost(&facts(endpoint, body)).1, output_limit, "{body}");
    }
}

#[test]
fn members_that_count_as_prompt() {
    let prompt = |endpoint, body: &str| cost(&facts(endpoint, body)).0;
    let chat = |messages: &str| prompt(Endpoint::Chat, &format!(r#"{{"model":"m","messages":{messages}}}"#));
    let hello = chat(r#"[{"role":"user","content":"Hello"}]"#);
    assert_eq!(chat(r#"[{"role":"user","content":[{"type":"text","text":"Hello"}]}]"#), hello);
    assert_eq!(chat(r#"[{"role":"user","content":"Hello"},{"role":"assistant","content":null}]"#), hello + 4);
    let image = format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{}"}}}}"#, "A".repeat(1 << 20));
    assert_eq!(chat(&format!(r#"[{{"role":"user","content":[{{"type":"text","text":"Hello"}},{image}]}}]"#)), hello + 2048);
    let tools = r#"{"model":"m","messages":[{"role":"user","content":"Hello"}],"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]}"#;
    assert!((hello + 20..hello + 70).contains(&prompt(Endpoint::Chat, tools)));
    assert_eq!(prompt(Endpoint::Responses, r#"{"model":"m","input":"Hello"}"#), hello);
    assert_eq!(prompt(Endpoint::Responses, r#"{"model":"m","input":[{"role":"user","content":"Hello"}]}"#), hello);
    assert_eq!(prompt(Endpoint::Embeddings, r#"{"model":"m","input":[[1,2,3],[4]]}"#), 4);
    assert_eq!(prompt(Endpoint::Speech, r#"{"model":"m","input":"Grüße"}"#), 5);
}

#[test]
fn bodies_with_missing_members_pass() {
    for body in ["[]", "7", "\"x\"", "{}", r#"{"model":null}"#, r#"{"model":7,"messages":3}"#, " null "] {
        let facts = chat(body);
        assert_eq!((facts.model.as_ref(), facts.cost), ("", CostEstimate::Free), "{body}");
    }
    assert_eq!(chat(r#"{"model":"a","model":"b"}"#).model.as_ref(), "b");
    let long = chat(&format!(r#"{{"model":"{}","service_tier":"my own"}}"#, "ü".repeat(1000)));
    assert_eq!((long.model.len(), long.tier.as_ref()), (200, "on_demand"));
    assert_eq!(facts(Endpoint::Batches, "").cost, CostEstimate::Free);
    assert_eq!(facts(Endpoint::Models, "anything").cost, CostEstimate::Free);
}

#[test]
fn invalid_json_is_refused() {
    for body in ["", "{", "{\"a\":1,}", "{'a':1}", "<html>", "{} {}", "{\"model\":\"m\",\"messages\":[\"x\"", "\u{feff}{}", "[1"]
    {
        let refused = Facts::of(Endpoint::Chat, &HeaderMap::new(), &Bytes::copy_from_slice(body.as_bytes()));
        assert!(matches!(refused, Err(Rejection::InvalidJson(_))), "{body}");
    }
    let refused = Facts::of(Endpoint::Batches, &HeaderMap::new(), &Bytes::from_static(b"{"));
    assert!(matches!(refused, Err(Rejection::InvalidJson(_))));
}

/// Bodies with control characters are parsed strictly, others by the fast parser; both must agree.
#[test]
fn the_fast_and_the_strict_parser_agree() {
    let content = [
        r#""a plain text, and one that goes on for some more words than a block has: so that it is looked at in parts""#,
        r#""with \"escapes\" \\ and \n \u00e9 \ud83e\udd80""#,
        r#""""#,
        "null",
        r#"[{"type":"text","text":"a part"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},"bare",["x"]]"#,
        r#"{"unusual":"an object"}"#,
        "5",
        "true",
        r#""data:image/png;base64,AAAA""#,
        "[]",
    ];
    for content in content {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}},{{"content":{content}}}]}}"#);
        assert_eq!(cost(&chat(&body)), cost(&chat(&(body.clone() + "\n"))), "{body}");
        let body = format!(r#"{{"model":"m","instructions":"be brief","input":[{{"type":"text","text":{content}}}]}}"#);
        let responses = |body: &str| cost(&facts(Endpoint::Responses, body));
        assert_eq!(responses(&body), responses(&(body.clone() + "\n")), "{body}");
    }
}

#[test]
fn control_characters_in_strings_are_refused() {
    for content in ["a\u{1}b", "a\nb", "\\n\tb", "\\x", "\\ud8", "a"] {
        let end = if content == "a" { "" } else { "\"" };
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}{end}}}]}}"#);
        let refused = Facts::of(Endpoint::Chat, &HeaderMap::new(), &Bytes::from(body.clone()));
        assert!(matches!(refused, Err(Rejection::InvalidJson(_))), "{body:?}");
    }
    for not_utf8 in [&b"{\"model\":\"m\",\"messages\":[{\"content\":\"\xff\"}]}"[..], b"{\"a\":\"\xff\"}", b"[\"\xff\"]"] {
        let facts = Facts::of(Endpoint::Chat, &HeaderMap::new(), &Bytes::from_static(not_utf8));
        assert!(matches!(facts, Err(Rejection::InvalidJson(_))));
    }
}

#[test]
fn json_that_only_groq_accepts_passes() {
    let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(cost(&chat(&deep)).0 > 0);
    let half_a_pair = r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"a \ud83d b"}]}"#;
    assert_eq!(cost(&chat(half_a_pair)).1, Some(5));
    let encoded = headers(&[("content-encoding", "gzip")]);
    let facts = Facts::of(Endpoint::Chat, &encoded, &Bytes::from_static(b"\x1f\x8b")).expect("passes");
    assert_eq!(facts.cost, CostEstimate::Free);
}

#[test]
fn only_the_number_of_the_output_limit_changes() {
    let table = [
        (Endpoint::Chat, r#"{ "max_tokens" : 32768 ,"x":"é"}"#, r#"{ "max_tokens" : 5 ,"x":"é"}"#),
        (Endpoint::Chat, r#"{"max_tokens":1,"max_completion_tokens":32768}"#, r#"{"max_tokens":1,"max_completion_tokens":5}"#),
        (Endpoint::Chat, r#"{"max_tokens":1,"max_tokens":2}"#, r#"{"max_tokens":1,"max_tokens":5}"#),
        (Endpoint::Chat, r#"{"max_completion_tokens":null}"#, r#"{"max_completion_tokens":5}"#),
        (Endpoint::Chat, r#" {"model":"m"}"#, r#" {"max_completion_tokens":5,"model":"m"}"#),
        (Endpoint::Chat, "{ }", r#"{"max_completion_tokens":5 }"#),
        (Endpoint::Responses, r#"{"input":"x"}"#, r#"{"max_output_tokens":5,"input":"x"}"#),
        (Endpoint::Responses, r#"{"max_output_tokens":32768}"#, r#"{"max_output_tokens":5}"#),
        (Endpoint::Chat, "[]", "[]"),
        (Endpoint::Chat, "{", "{"),
    ];
    for (endpoint, from, to) in table {
        assert_eq!(with_output_limit(endpoint, &Bytes::from_static(from.as_bytes()), 5), to, "{from}");
    }
}

#[test]
fn forms_with_audio() {
    let form = |fields: &[(&str, &str)]| {
        let part =
            |(name, value): &(&str, &str)| format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        let body: String = fields.iter().map(part).chain(["--XX--\r\n".into()]).collect();
        let headers = headers(&[("content-type", "multipart/form-data; boundary=XX")]);
        Facts::of(Endpoint::Transcription, &headers, &Bytes::from(body)).expect("passes")
    };
    let facts = form(&[("file", "RIFF"), ("model", "whisper-large-v3"), ("response_format", "text"), ("stream", "true")]);
    assert_eq!((facts.model.as_ref(), facts.cost), ("whisper-large-v3", CostEstimate::Audio { seconds: 10 }));
    assert!(facts.wants_text && facts.stream);
    let url = form(&[("url", "https://example.com/a.mp3"), ("model", "m"), ("response_format", "verbose_json")]);
    assert_eq!((url.cost, url.wants_text), (CostEstimate::Audio { seconds: 300 }, false));
    assert_eq!(form(&[("file", "RIFF")]).cost, CostEstimate::Free);
    let no_form = Facts::of(Endpoint::Transcription, &HeaderMap::new(), &Bytes::from_static(b"x")).expect("passes");
    assert_eq!(no_form.cost, CostEstimate::Free);
}

#[test]
fn max_wait_is_the_least_of_all_bounds() {
    let queue = Queue { max_wait: Duration::from_secs(50), ..Queue::default() };
    let table: [(&[(&'static str, &str)], u64); 11] = [
        (&[], 50_000),
        (&[("x-shield-max-wait-ms", "1500")], 1_500),
        (&[("x-shield-max-wait-ms", "0")], 0),
        (&[("x-shield-max-wait-ms", "99999999")], 50_000),
        (&[("x-shield-max-wait-ms", "soon")], 50_000),
        (&[("x-stainless-read-timeout", "20")], 18_000),
        (&[("x-stainless-read-timeout", "1")], 500),
        (&[("x-stainless-timeout", "10.5"), ("x-stainless-read-timeout", "600")], 8_500),
        (&[("x-stainless-read-timeout", "0")], 50_000),
        (&[("x-stainless-read-timeout", "-3"), ("x-shield-max-wait-ms", "NaN")], 50_000),
        (&[("x-stainless-read-timeout", "1e300"), ("x-shield-max-wait-ms", "inf")], 50_000),
    ];
    for (pairs, ms) in table {
        let (longest, by_client) = max_wait(&headers(pairs), &queue, || Duration::from_secs(2));
        assert_eq!((longest, by_client), (Duration::from_millis(ms), ms != 50_000), "{pairs:?}");
    }
}

proptest! {
    #[test]
    fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for endpoint in [Endpoint::Chat, Endpoint::Transcription, Endpoint::Embeddings] {
            let body = Bytes::copy_from_slice(&body);
            let _ = Facts::of(endpoint, &HeaderMap::new(), &body);
            with_output_limit(endpoint, &body, 5);
        }
    }

    #[test]
    fn a_new_output_limit_is_read_back(before in "[a-z]{0,5}", old in proptest::option::of(0u64..1_000_000), new in 0u64..1_000_000) {
        let mut body = serde_json::json!({"model": "m", before: [1, {"max_tokens": 3}], "messages": "é"});
        if let Some(old) = old {
            body["max_tokens"] = old.into();
        }
        let fitted = with_output_limit(Endpoint::Chat, &body.to_string().into(), new);
        prop_assert_eq!(cost(&chat(std::str::from_utf8(&fitted).expect("text"))).1, Some(new));
    }
}
