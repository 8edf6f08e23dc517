//! Responses that pass unread: files, ranges, audio, responses without a body; and those that break before their first byte.

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use super::{Step, answer, asked, chat, code, good, shield, whole};
use crate::{config::Settings, proxy::handle};

const FILE: &str = "/openai/v1/files/file_01/content";
const SPEECH: &str = "/openai/v1/audio/speech";

fn said(head: &str, body: &str) -> Vec<Step> {
    vec![Step::Write(format!("HTTP/1.1 {head}\r\n\r\n{body}"))]
}

#[tokio::test(start_paused = true)]
async fn a_file_passes_with_any_content_type() {
    let lines = "{\"a\":1}\n{\"b\":2}\n";
    let part = said(
        "206 Partial Content\r\ncontent-type: application/json\r\ncontent-range: bytes 0-3/99\r\ncontent-length: 4",
        "{\"a\"",
    );
    for (script, status, body) in
        [(answer("200 OK", "application/json", lines), StatusCode::OK, lines), (part, StatusCode::PARTIAL_CONTENT, "{\"a\"")]
    {
        let (shield, seen) = shield(Settings::default(), vec![script]);
        let (got, _, passed) = whole(handle(&shield, asked(Method::GET, FILE, String::new()), None).await).await;
        assert_eq!((got, passed.as_str(), seen.lock().expect("unpoisoned").len()), (status, body, 1));
    }
}

/// Also on endpoints that respond with JSON.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_passes() {
    for (method, head, status) in [
        (Method::GET, "304 Not Modified\r\netag: \"a\"", StatusCode::NOT_MODIFIED),
        (Method::DELETE, "204 No Content", StatusCode::NO_CONTENT),
    ] {
        let (shield, seen) = shield(Settings::default(), vec![said(head, "")]);
        let request = asked(method, "/openai/v1/models/m", String::new());
        let (got, _, passed) = whole(handle(&shield, request, None).await).await;
        assert_eq!((got, passed.as_str(), seen.lock().expect("unpoisoned").len()), (status, "", 1));
    }
}

/// Nothing has been sent to the app yet, so it is retried; if that does not help, the app gets the error object.
#[tokio::test(start_paused = true)]
async fn an_unread_body_broken_before_its_first_byte_is_retried() {
    let speech = || asked(Method::POST, SPEECH, r#"{"model":"m","input":"hi","voice":"v"}"#.into());
    let packed = || chat(false);
    let cut = said("200 OK\r\ncontent-type: audio/wav\r\ncontent-length: 1000", "");
    let no_chunk = said("200 OK\r\ncontent-type: audio/wav\r\ntransfer-encoding: chunked", "zz\r\n");
    let gzip = said("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: 1000", "");
    for (broken, request) in [(&cut, speech()), (&no_chunk, speech()), (&gzip, packed())] {
        let (shield, seen) = shield(Settings::default(), vec![broken.clone(), good()]);
        let response = handle(&shield, request, None).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(seen.lock().expect("unpoisoned").len(), 2);
    }
    for (broken, request) in [(cut.clone(), speech()), (no_chunk, speech()), (gzip, packed())] {
        let (shield, seen) = shield(Settings::default(), vec![broken]);
        let (status, _, body) = whole(handle(&shield, request, None).await).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "upstream_invalid"));
        assert_eq!(seen.lock().expect("unpoisoned").len(), 4);
    }
    // After the first byte, the app gets a truncated response.
    let (shield, seen) =
        shield(Settings::default(), vec![said("200 OK\r\ncontent-type: audio/wav\r\ncontent-length: 1000", "RIFF")]);
    let response = handle(&shield, speech(), None).await;
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(seen.lock().expect("unpoisoned").len(), 1);
}
