//! The files under `deploy/` agree with the repository in paths, versions and names, and contain no paths of a developer's
//! machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{ROOT, path, text, words, yaml};
use serde_json::Value;

/// Sources of the `COPY` lines that copy from the build context.
fn copied() -> Vec<String> {
    let dockerfile = text("deploy/Dockerfile");
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    copies
        .flat_map(|line| {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            words.pop();
            words
        })
        .collect()
}

#[test]
fn the_image_is_built_from_files_that_exist() {
    let sources = copied();
    assert!(sources.contains(&"src".to_owned()));
    let ignored = text("deploy/Dockerfile.dockerignore");
    for source in &sources {
        assert!(path(source).exists(), "COPY {source}: there is none");
        assert!(ignored.lines().any(|line| line == format!("!{source}")), "COPY {source}: .dockerignore hides it");
    }
}

/// Cargo refuses to build when a target that the manifest names has no file.
#[test]
fn the_image_copies_every_target_of_the_manifest() {
    let manifest: toml::Table = text("Cargo.toml").parse().expect("TOML");
    assert!(manifest.contains_key("bench"));
    for (target, folder) in [("bench", "benches"), ("test", "tests"), ("example", "examples")] {
        let named = manifest.contains_key(target);
        assert!(!named || copied().iter().any(|source| source == folder), "[[{target}]] is named and {folder} is not copied");
    }
}

#[test]
fn the_image_copies_every_included_file() {
    let mut included = BTreeSet::new();
    for folder in ["src", "crates"] {
        includes(&path(folder), &mut included);
    }
    assert!(included.contains(&path("src/admin/page.html")), "{included:?}");
    for file in &included {
        let first = file.strip_prefix(ROOT).expect("inside").iter().next().expect("a name").to_str().expect("UTF-8");
        assert!(copied().iter().any(|source| source == first), "{} is compiled in but not copied", file.display());
    }
}

/// The files of `include_str!` and `include_bytes!`, tests excluded.
fn includes(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            includes(&entry, found);
            continue;
        }
        let Ok(text) = fs::read_to_string(&entry) else { continue };
        // Tests come last in a file.
        let text = text.split("#[cfg(test)]").next().expect("a first part");
        for part in ["include_str!(\"", "include_bytes!(\""].iter().flat_map(|macro_| text.split(macro_).skip(1)) {
            let name = part.split('"').next().expect("a string");
            if let Ok(file) = folder.join(name).canonicalize() {
                found.insert(file);
            }
        }
    }
}

#[test]
fn the_npm_package_has_the_version_and_licence_of_the_crate() {
    let package: Value = serde_json::from_str(&text("deploy/npm/package.json")).expect("JSON");
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(package["license"], env!("CARGO_PKG_LICENSE"));
    assert_eq!(package["description"], env!("CARGO_PKG_DESCRIPTION"));
    for (name, version) in package["optionalDependencies"].as_object().expect("platforms") {
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{name}");
    }
    assert!(path("deploy/npm").join(package["bin"]["groq-shield"].as_str().expect("a launcher")).exists());
}

#[test]
fn compose_mounts_files_that_exist() {
    for name in ["deploy/compose.yaml", "deploy/compose.redis.yaml"] {
        let services = &yaml(name)[0]["services"];
        let mounts = services.as_object().expect("services").values().flat_map(|service| words(&service["volumes"]));
        let files: Vec<_> = mounts.filter_map(|mount| mount.strip_prefix("./")).collect();
        assert!(!files.is_empty());
        for file in files {
            let file = file.split(':').next().expect("a source");
            assert!(path("deploy").join(file).exists(), "{name}: {file}");
        }
    }
}

#[test]
fn dashboard_panels_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/groq-shield.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{}: its id is another's", panel["title"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a position");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(x < 24 && taken.insert((x, y)), "{} overlaps at {x},{y}", panel["title"]);
        }
        let targets = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(panel["type"] == "row" || targets > 0, "{} shows nothing", panel["title"]);
    }
}

/// Our metric names in a text: `groq_shield_…`.
pub(super) fn metrics(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c)).filter(|name| name.starts_with("groq_shield_")).map(str::to_owned).collect()
}

#[test]
fn every_alert_has_a_test_and_a_description() {
    let tests = text("deploy/prometheus/alerts.test.yaml");
    let rules = yaml("deploy/prometheus/alerts.yaml")[0]["groups"][0]["rules"].as_array().expect("rules").clone();
    assert!(rules.len() >= 7);
    for rule in rules {
        let name = rule["alert"].as_str().expect("a name");
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:")), "no test lets {name} fire");
        assert!(tests.contains(&format!("alertname: {name}}}")), "no test keeps {name} quiet");
        assert!(rule["annotations"]["description"].as_str().is_some_and(|text| text.len() > 20), "{name}");
    }
}
