//! What holds of the source as a whole: which crate may use which, and what no file may contain.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crates of this workspace each one may use. ARCHITECTURE.md says why.
const ARROWS: [(&str, &[&str]); 14] = [
    ("fake-nvml", &[]),
    ("gpu-api", &[]),
    ("gpu-bridge", &["gpu-api", "gpu-broker", "gpu-lease"]),
    ("gpu-broker", &["gpu-lease", "gpu-policy", "gpu-store"]),
    ("gpu-client", &["gpu-api"]),
    ("gpu-device", &["gpu-lease"]),
    ("gpu-lease", &[]),
    (
        "gpu-manager",
        &[
            "gpu-api",
            "gpu-bridge",
            "gpu-broker",
            "gpu-client",
            "gpu-device",
            "gpu-lease",
            "gpu-policy",
            "gpu-store",
            "gpu-watch",
        ],
    ),
    ("gpu-manager-benches", EVERYTHING),
    ("gpu-manager-tests", EVERYTHING),
    ("gpu-policy", &["gpu-lease"]),
    (
        "gpu-sim",
        &["gpu-broker", "gpu-lease", "gpu-policy", "gpu-store"],
    ),
    ("gpu-store", &["gpu-lease"]),
    ("gpu-watch", &[]),
];

/// Nothing depends on these packages, so they may depend on anything.
const EVERYTHING: &[&str] = &[
    "fake-nvml",
    "gpu-api",
    "gpu-bridge",
    "gpu-broker",
    "gpu-client",
    "gpu-device",
    "gpu-lease",
    "gpu-policy",
    "gpu-sim",
    "gpu-store",
    "gpu-watch",
];

/// What only one crate may know of.
const OWNED: [(&str, &str); 6] = [
    ("ash", "gpu-device"),
    ("axum", "gpu-bridge"),
    ("notify", "gpu-watch"),
    ("nvml-wrapper", "gpu-device"),
    ("redb", "gpu-store"),
    ("wgpu", "gpu-device"),
];

/// What is written while something is not done. In pieces, so that this file is as tidy as the others.
const LEFTOVERS: [&str; 4] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
    concat!("dbg", "!("),
];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("tests are a folder of the workspace")
        .to_owned()
}

/// The packages of the workspace by name.
fn packages() -> BTreeMap<String, Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--offline",
        "--locked",
    ]);
    let output = cargo
        .current_dir(root())
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list").iter();
    packages
        .map(|package| (text(&package["name"]), package.clone()))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

/// The names of what a package needs to be built; what only its tests need is its own affair.
fn needs(package: &Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().expect("a list").iter();
    let needed = all.filter(|dependency| dependency["kind"] != "dev");
    needed.map(|dependency| text(&dependency["name"])).collect()
}

/// Every file of Rust in the workspace with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders: Vec<PathBuf> = ["crates", "tests", "benches"]
        .map(|name| root().join(name))
        .into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                sources.push((path, text));
            }
        }
    }
    sources
}

#[test]
fn crates_use_each_other_along_the_arrows_alone() {
    let packages = packages();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(found, known, "every package has its row in the table");
    for (name, allowed) in ARROWS {
        let inner = needs(&packages[name])
            .into_iter()
            .filter(|needed| known.contains(needed.as_str()));
        let beyond: Vec<String> = inner
            .filter(|needed| !allowed.contains(&needed.as_str()))
            .collect();
        assert!(beyond.is_empty(), "{name} must not depend on {beyond:?}");
    }
}

#[test]
fn drivers_watching_the_store_and_the_web_have_one_owner_each() {
    for (name, package) in packages() {
        let needs = needs(&package);
        for (dependency, owner) in OWNED {
            let allowed = name == owner || name == "gpu-manager-benches";
            assert!(
                allowed || !needs.contains(dependency),
                "{name} depends on {dependency}, which is {owner}'s"
            );
        }
    }
}

#[test]
fn the_books_depend_on_nothing_not_even_on_an_operating_system() {
    assert_eq!(needs(&packages()["gpu-lease"]), BTreeSet::new());
    let lib = fs::read_to_string(root().join("crates/gpu-lease/src/lib.rs")).expect("it is there");
    assert!(lib.contains("#![no_std]"));
}

#[test]
fn every_file_begins_with_what_it_owns() {
    let untold = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"));
    let untold: Vec<PathBuf> = untold.map(|(path, _)| path).collect();
    assert!(untold.is_empty(), "{untold:#?}");
}

#[test]
fn nothing_is_left_half_done() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if LEFTOVERS.iter().any(|leftover| line.contains(leftover)) {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_package_keeps_to_the_lints_of_the_workspace() {
    for (name, package) in packages() {
        let manifest = fs::read_to_string(text(&package["manifest_path"])).expect("it is there");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name}");
    }
}
