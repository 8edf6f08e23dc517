//! The files under `deploy/`: every one is parsed, and what can run here is run.
//!
//! `files` and `settings` need only the build, `live` runs the binary on free ports, and `tools` runs `tests/deploy/run` with
//! other projects' checkers (promtool, hadolint, schemas, pip, npm). No container engine or cluster is needed: no test builds
//! images or applies manifests.

mod files;
mod live;
mod settings;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

const BINARY: &str = env!("CARGO_BIN_EXE_groq-shield");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The path of a file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The documents of a YAML file, anchors and merge keys resolved.
fn yaml(name: &str) -> Vec<Value> {
    let text = text(name);
    let documents = Yaml::load_from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    documents.iter().map(json).collect()
}

fn json(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Boolean(value)) => Value::from(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => Value::from(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => Value::from(value.as_ref()),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                match (key.as_str().expect("keys are strings"), json(value)) {
                    ("<<", Value::Object(merged)) => merged.into_iter().for_each(|(key, value)| {
                        map.entry(key).or_insert(value);
                    }),
                    (key, value) => drop(map.insert(key.to_owned(), value)),
                }
            }
            Value::Object(map)
        }
        Yaml::Value(Scalar::Null) => Value::Null,
        other => panic!("not plain YAML: {other:?}"),
    }
}

/// The strings of an array.
fn words(value: &Value) -> Vec<&str> {
    value.as_array().map(|items| items.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Runs the binary with an environment of its own.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.env_clear().args(arguments).envs(environment.iter().copied());
    command.output().expect("the binary starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Seconds of `25s`, `2m` or `60`.
fn seconds(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.find(|c: char| !c.is_ascii_digit()).unwrap_or(duration.len()));
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("not a duration: {duration}"));
    match unit {
        "" | "s" => number,
        "m" => 60 * number,
        _ => panic!("not a duration: {duration}"),
    }
}
