//! `audio/…`: transcriptions and translations, charged by seconds, and speech, charged by tokens (characters of its input).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::{
    Sim,
    answer::{Answer, Permit, Step},
    call::Call,
    chat::invalid_model,
    error::{error, invalid},
    generation::request_id,
    limiter::Cost,
};

/// Assumed bytes per second of a container that is not parsed: 128 kbit/s.
const BYTES_PER_SECOND: u64 = 16_000;
/// Assumed duration of a file given as `url`, which is not fetched.
const REMOTE_SECONDS: u64 = 60;

impl Sim {
    pub(crate) fn transcription(&self, call: &Call, id: u64, translate: bool) -> Answer {
        if let Some(fault) = invalid_model(call) {
            return fault;
        }
        let length = match &call.file {
            Some((_, bytes)) if bytes.len() > self.0.options.max_audio => {
                let body = error("Request Entity Too Large", "invalid_request_error", Some("request_too_large"));
                return Answer::json(StatusCode::PAYLOAD_TOO_LARGE, &body);
            }
            Some((_, bytes)) => duration(bytes),
            None if call.fields["url"].is_string() => Duration::from_secs(REMOTE_SECONDS),
            None => return Answer::bad(&invalid("one of `file` or `url` is required", None)),
        };
        let seconds = length.as_secs() + u64::from(length.subsec_nanos() > 0);
        let (permit, headers) = match self.admit(call, Cost::Audio { seconds }) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        let text = " Tokens leave the bucket one by one, and none is lost.";
        let task = if translate { "translate" } else { "transcribe" };
        let language = if translate { "English" } else { call.fields["language"].as_str().unwrap_or("English") };
        let answer = match call.fields["response_format"].as_str() {
            Some("text") => Answer::new(StatusCode::OK, "text/plain; charset=utf-8", text),
            Some("verbose_json") => {
                let segment = json!({
                    "id": 0, "seek": 0, "start": 0.0, "end": length.as_secs_f64(), "text": text, "tokens": [50365],
                    "temperature": 0.0, "avg_logprob": -0.2, "compression_ratio": 0.9, "no_speech_prob": 0.01,
                });
                Answer::ok(&json!({
                    "task": task, "language": language, "duration": length.as_secs_f64(), "text": text, "segments": [segment],
                    "x_groq": {"id": request_id(id)},
                }))
            }
            _ => Answer::ok(&json!({"text": text, "x_groq": {"id": request_id(id)}})),
        };
        self.after_head(call, id, answer, permit, headers)
    }

    pub(crate) fn speech(&self, call: &Call, id: u64) -> Answer {
        if let Some(fault) = invalid_model(call) {
            return fault;
        }
        let Some(input) = call.fields["input"].as_str() else {
            return Answer::bad(&invalid("'input' : property 'input' is missing", None));
        };
        let characters = input.chars().count() as u64;
        let (mut permit, headers) = match self.admit(call, Cost::Tokens { prompt: characters, max_completion: Some(0) }) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        permit.prompt = characters;
        let answer = Answer::new(StatusCode::OK, "audio/wav", wav(Duration::from_millis(60) * input.len() as u32));
        self.after_head(call, id, answer, permit, headers)
    }

    fn after_head(&self, call: &Call, id: u64, mut answer: Answer, permit: Permit, headers: HeaderMap) -> Answer {
        answer.before = self.generate(call, id).head;
        answer.headers.extend(headers);
        answer.permit = Some(permit);
        answer.steps.insert(0, Step::Settle);
        answer
    }
}

/// A WAV file of silence: 16 kHz, one channel, 16 bits.
fn wav(length: Duration) -> Bytes {
    let data = u32::try_from(length.as_millis() * 32).unwrap_or(u32::MAX - 36);
    let mut bytes = Vec::with_capacity(44 + data as usize);
    bytes.extend_from_slice(b"RIFF");
    bytes.extend_from_slice(&(data + 36).to_le_bytes());
    bytes.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
    bytes.extend_from_slice(&data.to_le_bytes());
    bytes.resize(44 + data as usize, 0);
    bytes.into()
}

/// The duration of an audio file: from the header of WAV and FLAC, from the size of any other.
fn duration(file: &[u8]) -> Duration {
    let number = |at: usize| file.get(at..at + 4).map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let declared = if file.starts_with(b"RIFF") {
        memchr::memmem::find(file, b"data").and_then(|data| Some((number(data + 4)?, number(28)?)))
    } else if file.starts_with(b"fLaC") {
        // STREAMINFO at offset 18, big-endian: 20 bits sample rate, 8 bits channels and sample size, 36 bits number of samples.
        let bits = file.get(18..26).map(|b| b.iter().fold(0u64, |all, byte| (all << 8) | u64::from(*byte)));
        bits.map(|bits| (bits & 0xf_ffff_ffff, bits >> 44))
    } else {
        None
    };
    match declared {
        Some((total, rate)) if rate > 0 => Duration::from_secs_f64(total as f64 / rate as f64),
        _ => Duration::from_secs((file.len() as u64).div_ceil(BYTES_PER_SECOND)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duration_of_a_wav_is_read_from_its_header() {
        let file = wav(Duration::from_millis(12_340));
        assert_eq!(duration(&file), Duration::from_millis(12_340));
        assert_eq!(duration(&file[..60]), Duration::from_millis(12_340));
    }

    #[test]
    fn the_duration_of_a_flac_is_read_from_its_header() {
        let mut file = b"fLaC\0\0\0\x22".to_vec();
        file.resize(18, 0);
        file.extend_from_slice(&((44_100u64 << 44) | (44_100 * 7)).to_be_bytes());
        assert_eq!(duration(&file), Duration::from_secs(7));
    }
}
