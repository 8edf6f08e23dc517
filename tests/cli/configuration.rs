//! The configuration as the binary reads it: faults, what `check` prints, reloads.

use std::fs;

use nix::sys::signal::Signal;

use crate::kit::{Running, SERVE, address, folder, ran, shield, write};

/// Regression: one GET opened 4,049 connections in 4 s.
#[test]
fn an_upstream_that_is_the_shield_itself_is_refused_at_start() {
    let folder = folder();
    for upstream in ["http://127.0.0.1:18787", "http://localhost:18787/"] {
        let words = ["--listen", "0.0.0.0:18787", "--admin", "127.0.0.1:0", "--upstream", upstream];
        let (code, _, errors) = ran(&mut shield(folder.path(), &words));
        assert_eq!(code, 64, "{errors}");
        assert!(errors.contains("--upstream: `upstream.base_url`: this shield itself listens there (server.listen)"), "{errors}");
    }
}

/// Regression: `check` found nothing wrong, and a shield started that saved no state.
#[test]
fn check_and_serve_refuse_a_state_file_that_cannot_be_written() {
    let folder = folder();
    write(folder.path(), "[limits]\nstate_file = \"nowhere/state\"\n");
    for words in [&["check"][..], &["--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]] {
        let (code, _, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!(code, 64, "{words:?}: {errors}");
        for part in ["groq-shield.toml:2:14", "nowhere/state cannot be written: there is no directory nowhere"] {
            assert!(errors.contains(part), "{words:?}: {part}\n{errors}");
        }
    }
}

/// Regression: a relative path was resolved against the working directory.
#[test]
fn a_relative_state_file_is_relative_to_the_configuration_file() {
    let (folder, elsewhere) = (folder(), self::folder());
    write(folder.path(), "[limits]\nstate_file = \"state\"\n");
    let file = folder.path().join("groq-shield.toml");
    let words = [&["--config", file.to_str().expect("UTF-8")], &SERVE[..]].concat();
    let running = Running::new(&mut shield(elsewhere.path(), &words));
    running.line("ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().code(), Some(0));
    assert!(folder.path().join("state").exists() && !elsewhere.path().join("state").exists());

    write(folder.path(), "[queue]\nmax_wait = \"1s\"\n");
    let running = Running::new(&mut shield(elsewhere.path(), &words));
    let told = running.line("limits.state_file is not set");
    assert!(told.contains(" INFO "), "{told}");
    running.line("ready");
    running.signal(Signal::SIGHUP);
    let again = running.line("");
    assert!(again.contains("configuration read again"), "{again}");
}

#[test]
fn check_and_serve_report_every_fault_of_a_file_and_exit_with_64() {
    let folder = folder();
    write(folder.path(), "[server]\nlisen = \"127.0.0.1:0\"\n[queue]\nmax_wait = 5\n");
    for words in [&["check"][..], &["serve"], &[], &["exec", "--", "true"]] {
        let (code, out, errors) = ran(shield(folder.path(), words).env("GROQ_SHIELD_RETRY_ATEMPTS", "2"));
        assert_eq!((code, out.as_str()), (64, ""), "{words:?}");
        for part in [
            " --> groq-shield.toml:2:1",
            "did you mean `listen`?",
            " --> groq-shield.toml:4:12",
            "did you mean GROQ_SHIELD_RETRY_ATTEMPTS?",
            "3 faults in the configuration",
        ] {
            assert!(errors.contains(part), "{words:?}: {part}\n{errors}");
        }
    }
}

#[test]
fn check_reports_a_certificate_that_does_not_belong_to_its_key() {
    let folder = folder();
    let issued = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (first, second) = (issued(), issued());
    fs::write(folder.path().join("cert.pem"), first.cert.pem()).expect("it is written");
    write(folder.path(), "[server.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n");
    for (key, expected) in [(&first.signing_key, 0), (&second.signing_key, 64)] {
        fs::write(folder.path().join("key.pem"), key.serialize_pem()).expect("it is written");
        let (code, _, errors) = ran(&mut shield(folder.path(), &["check"]));
        assert_eq!((code, errors.contains("server.tls.key")), (expected, expected == 64), "{errors}");
    }
}

#[test]
fn check_prints_the_effective_settings_with_sources_and_without_secrets() {
    let folder = folder();
    write(
        folder.path(),
        "[queue]\nmax_wait = \"2m\"\n[store]\nkind = \"redis\"\nurl = \"redis://u:hunter2@h\"\n[upstream]\napi_key_env = \"MY_KEY\"\n",
    );
    let (code, out, errors) =
        ran(shield(folder.path(), &["check"]).env("MY_KEY", "gsk_hunter2").env("GROQ_SHIELD_RETRY_ATTEMPTS", "2"));
    assert_eq!((code, errors.as_str()), (0, ""));
    for part in [
        "max_wait = \"2m\"  # groq-shield.toml:2\n",
        "url = \"redis://u:***@h\"  # groq-shield.toml:5\n",
        "attempts = 2  # GROQ_SHIELD_RETRY_ATTEMPTS\n",
        "api_key_env = \"MY_KEY\"",
        "max_delay = \"8s\"\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    assert!(!out.contains("hunter2"), "{out}");
}

#[test]
fn the_output_of_check_is_a_valid_configuration() {
    let folder = folder();
    let (_, example, _) = ran(&mut shield(folder.path(), &["check", "--example"]));
    write(folder.path(), &example);
    let (code, first, errors) = ran(&mut shield(folder.path(), &["check"]));
    assert_eq!(code, 0, "{errors}");
    write(folder.path(), &first);
    let (code, second, errors) = ran(&mut shield(folder.path(), &["check"]));
    assert_eq!(code, 0, "{errors}");
    let keys = |text: &str| text.lines().map(|line| line.split("  # ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&first), keys(&second));
}

#[test]
fn the_configuration_is_reloaded_on_change_and_on_sighup() {
    let folder = folder();
    write(folder.path(), "[queue]\nmax_wait = \"1s\"\n");
    let running = Running::new(&mut shield(folder.path(), &SERVE));
    let admin = address(&running.line("ready"), "admin");
    let state = || {
        let (_, json, _) = ran(&mut shield(folder.path(), &["status", "--json", "--admin", &admin]));
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["config"].clone()
    };
    write(folder.path(), "[queue]\nmax_wait = \"2s\"\n[server]\nthreads = 3\n");
    running.line("server.threads: 3 takes effect after a restart");
    running.line("queue.max_wait: \"2s\", was \"1s\"");
    running.line("configuration read again");
    write(folder.path(), "[queue]\nmax_wiat = \"3s\"\n");
    running.line("the old one stays in effect");
    running.line("did you mean `max_wait`?");
    let error = state()["error"]["message"].as_str().expect("an error").to_owned();
    assert!(error.contains("groq-shield.toml:2:1"), "{error}");
    write(folder.path(), "[queue]\nmax_wait = \"4s\"\n");
    running.signal(Signal::SIGHUP);
    running.line("queue.max_wait: \"4s\", was \"2s\"");
    running.line("configuration read again");
    assert!(state()["error"].is_null());
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().code(), Some(0));
}

#[test]
fn health_finds_the_listener_in_the_file_even_when_it_has_faults() {
    let folder = folder();
    let running = Running::new(&mut shield(folder.path(), &SERVE));
    let admin = address(&running.line("ready"), "admin");
    write(folder.path(), &format!("[admin]\nlisten = \"{admin}\"\n[queue]\nmax_wait = 5\n"));
    assert_eq!(ran(&mut shield(folder.path(), &["health"])), (0, String::new(), String::new()));
}
