//! The settings and commands in `deploy/` are valid, and their timeouts fit together.

use std::fs;

use super::{run, said, seconds, text, words, yaml};
use serde_json::Value;

const KEYS: [(&str, &str); 2] = [("GROQ_API_KEY", "gsk_test"), ("APP_TOKEN", "token_test")];

/// Name and text of every TOML under `deploy/`.
fn configurations() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in ["deploy/compose.toml", "deploy/compose.redis.toml", "deploy/systemd/groq-shield.toml"] {
        found.push((name.to_owned(), text(name)));
    }
    for name in ["deploy/kubernetes/sidecar.yaml", "deploy/kubernetes/redis.yaml"] {
        for document in yaml(name).iter().filter(|document| document["kind"] == "ConfigMap") {
            let toml = document["data"]["groq-shield.toml"].as_str().expect("the ConfigMap holds groq-shield.toml");
            found.push((name.to_owned(), toml.to_owned()));
        }
    }
    found
}

/// Where a shield is started, and its arguments.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut add = |place: &str, words: Vec<&str>| {
        found.push((place.to_owned(), words.into_iter().map(str::to_owned).collect()));
    };
    for line in text("deploy/Dockerfile").lines() {
        if let Some(list) = line.split_once("CMD ").map(|(_, list)| list) {
            let list: Value = serde_json::from_str(list).expect("the exec form");
            add("deploy/Dockerfile", words(&list).into_iter().filter(|word| *word != "/groq-shield").collect());
        }
    }
    for name in ["deploy/compose.yaml", "deploy/compose.redis.yaml"] {
        for (service, settings) in yaml(name)[0]["services"].as_object().expect("services") {
            if service.starts_with("shield") {
                add(name, words(&settings["command"]));
            }
        }
    }
    for (name, shield, _) in sidecars() {
        add(&name, words(&shield["args"]));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let command = words(&shield[probe]["exec"]["command"]);
            assert_eq!(command[0], "/groq-shield", "{name}: {probe}");
            add(&name, command[1..].to_vec());
        }
    }
    let unit = text("deploy/systemd/groq-shield.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/groq-shield ")).expect("ExecStart");
    add("deploy/systemd/groq-shield.service", start.split(' ').collect());
    found
}

/// Every pod with a shield: file, the shield's container, the pod's spec.
fn sidecars() -> Vec<(String, Value, Value)> {
    let mut found = Vec::new();
    for name in ["deploy/kubernetes/sidecar.yaml", "deploy/kubernetes/redis.yaml"] {
        for document in yaml(name) {
            let pod = &document["spec"]["template"]["spec"];
            for container in pod["initContainers"].as_array().into_iter().flatten() {
                found.push((name.to_owned(), container.clone(), pod.clone()));
            }
        }
    }
    assert_eq!(found.len(), 2);
    found
}

#[test]
fn every_configuration_passes_check() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, toml) in configurations() {
        let file = folder.path().join("groq-shield.toml");
        // The state file's directory exists there; `check` requires it.
        let toml = toml.replace("/var/lib/groq-shield/", &format!("{}/", folder.path().display()));
        fs::write(&file, toml).expect("the file is written");
        let output = run(&["check", "--config", file.to_str().expect("UTF-8")], &KEYS);
        assert!(output.status.success(), "{name}:\n{}", said(&output));
        for (_, secret) in KEYS {
            assert!(!said(&output).contains(secret), "{name}: check prints a key");
        }
    }
}

#[test]
fn every_command_and_flag_exists() {
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    for (place, words) in commands {
        let output = run(&[&words[0], "--help"], &[]);
        let help = said(&output);
        assert!(output.status.success(), "{place}: {words:?}\n{help}");
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(&**flag), "{place}: `{}` has no {flag}", words[0]);
        }
    }
}

#[test]
fn the_drain_timeout_fits_the_grace_period() {
    let drain = 25;
    for (name, toml) in configurations() {
        let line = toml.lines().find(|line| line.starts_with("drain_timeout"));
        assert!(line.is_none_or(|line| line.contains("\"25s\"")), "{name}: this test takes the drain for {drain} s");
    }
    for (name, shield, pod) in sidecars() {
        let stop = shield["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("preStop");
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a grace period");
        assert!(grace > stop + drain, "{name}: {grace} s for {stop} s and {drain} s");
    }
    for name in ["deploy/compose.yaml", "deploy/compose.redis.yaml"] {
        for (service, settings) in yaml(name)[0]["services"].as_object().expect("services") {
            if service.starts_with("shield") {
                assert!(seconds(settings["stop_grace_period"].as_str().expect("a grace period")) > drain, "{name}: {service}");
            }
        }
    }
    let unit = text("deploy/systemd/groq-shield.service");
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("TimeoutStopSec");
    assert!(seconds(stop) > drain);
}

#[test]
fn sidecars_are_native_and_hardened() {
    for (name, shield, pod) in sidecars() {
        assert_eq!(shield["restartPolicy"], "Always", "{name}: a plain init container blocks the app");
        assert_eq!(shield["image"], format!("groq-shield:{}", env!("CARGO_PKG_VERSION")), "{name}");
        assert_eq!(shield["livenessProbe"]["exec"]["command"], serde_json::json!(["/groq-shield", "health"]), "{name}");
        assert!(words(&shield["readinessProbe"]["exec"]["command"]).contains(&"--ready"), "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in ["initContainers", "containers"].iter().flat_map(|list| pod[list].as_array().expect("a list")) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(words(&context["capabilities"]["drop"]), ["ALL"], "{name}");
        }
        let key = shield["env"].as_array().expect("env").iter().find(|entry| entry["name"] == "GROQ_API_KEY");
        let reference = &key.expect("Groq's key")["valueFrom"]["secretKeyRef"]["name"];
        assert_eq!(reference, "groq", "{name}: the key comes from a Secret");
        for container in pod["containers"].as_array().expect("containers") {
            assert!(!container.to_string().contains("api-key"), "{name}: the app has no use for Groq's key");
        }
    }
}

#[test]
fn the_image_runs_as_the_user_of_the_manifests() {
    let dockerfile = text("deploy/Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("USER");
    for (name, _, pod) in sidecars() {
        let context = &pod["securityContext"];
        assert_eq!(user, format!("{}:{}", context["runAsUser"], context["runAsGroup"]), "{name}");
    }
}
