//! What can a key hold? The values between the file's text and the settings' types.

use std::{fmt::Write, net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;

use super::{Class, LogFormat, Plan, StoreKind};

/// A value that satisfied its key's rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Flag(bool),
    Count(u64),
    Number(f64),
    Time(Duration),
    Off,
    Text(String),
    Address(SocketAddr),
    Digest([u8; 32]),
    Many(Vec<Value>),
}

/// A setting: takes a value that satisfied its rule, and gives it back.
pub(super) trait Setting {
    /// Takes the value; one that is not of this setting's type is a mistake in the table of keys.
    fn set(&mut self, value: Value);
    /// `None`: not set.
    fn get(&self) -> Option<Value>;
}

/// A type that one value becomes.
trait Form: Sized {
    fn from_value(value: Value) -> Option<Self>;
    fn to_value(&self) -> Value;
}

const MATCHED: &str = "a key's rule yields its setting's type";

impl<T: Form> Setting for T {
    fn set(&mut self, value: Value) {
        *self = T::from_value(value).expect(MATCHED);
    }

    fn get(&self) -> Option<Value> {
        Some(self.to_value())
    }
}

impl<T: Form> Setting for Option<T> {
    fn set(&mut self, value: Value) {
        *self = match value {
            Value::Off => None,
            value => Some(T::from_value(value).expect(MATCHED)),
        };
    }

    fn get(&self) -> Option<Value> {
        self.as_ref().map(T::to_value)
    }
}

impl<T: Form> Setting for Vec<T> {
    fn set(&mut self, value: Value) {
        let Value::Many(values) = value else { unreachable!("{MATCHED}") };
        *self = values.into_iter().map(|value| T::from_value(value).expect(MATCHED)).collect();
    }

    fn get(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::Many(self.iter().map(T::to_value).collect()))
    }
}

macro_rules! form {
    ($type:ty, $variant:ident, $from:expr, $to:expr) => {
        impl Form for $type {
            fn from_value(value: Value) -> Option<Self> {
                let Value::$variant(inner) = value else { return None };
                let from: fn(_) -> Option<Self> = $from;
                from(inner)
            }

            fn to_value(&self) -> Value {
                let to: fn(&Self) -> _ = $to;
                Value::$variant(to(self))
            }
        }
    };
}

form!(bool, Flag, Some, |flag| *flag);
form!(u64, Count, Some, |count| *count);
form!(u32, Count, |count: u64| count.try_into().ok(), |count| u64::from(*count));
form!(usize, Count, |count: u64| count.try_into().ok(), |count| *count as u64);
form!(f64, Number, Some, |number| *number);
form!(Duration, Time, Some, |time| *time);
form!(String, Text, Some, Clone::clone);
form!(PathBuf, Text, |text: String| Some(text.into()), |path| path.display().to_string());
form!(Uri, Text, |text: String| text.parse().ok(), |uri| shown_uri(uri));
form!(SocketAddr, Address, Some, |address| *address);
form!([u8; 32], Digest, Some, |digest| *digest);

/// A URI whose empty path is left out, as people write it.
fn shown_uri(uri: &Uri) -> String {
    let text = uri.to_string();
    if uri.path() == "/" && uri.query().is_none() { text.trim_end_matches('/').to_owned() } else { text }
}

macro_rules! words {
    ($type:ty: $($variant:ident = $word:literal),+) => {
        impl $type {
            /// How the file spells each.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// How the file spells it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn by_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        form!($type, Text, |word: String| <$type>::by_word(&word), |choice| choice.word().to_owned());
    };
}

words!(Plan: Auto = "auto", Free = "free", Developer = "developer", None = "none");
words!(Class: Interactive = "interactive", Batch = "batch");
words!(StoreKind: Local = "local", Redis = "redis");
words!(LogFormat: Text = "text", Json = "json");

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A SHA-256 from its 64 hex digits.
pub(super) fn digest(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
