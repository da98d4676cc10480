//! Live policy as operators see it: planned, confirmed, taken back, explained.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use gpu_api::{CandidateState, LeaseState, Policy, paths};
use gpu_manager_tests::{Broker, Host, POLICY, Request, eventually};
use serde_json::{Value, json};

const BATCH: &str = "[[class]]\nname = 'batch'\n";
/// Long enough that no story sees its end.
const PATIENT: &str = "[reload]\ngrace = '10m'\n";

fn with_batch() -> String {
    format!("{POLICY}{PATIENT}{BATCH}")
}

fn without_batch() -> String {
    format!("{POLICY}{PATIENT}")
}

/// Outside dev mode: what drains must be confirmed. A lease of class `batch` is held.
fn guarded() -> (Host, Broker, String) {
    let host = Host::with_cards(1)
        .guarded()
        .flags(&["--hot-reload"])
        .policy(&with_batch());
    let broker = host.start();
    let ran = host.run(&["acquire", "--class", "batch", "--memory", "8GiB", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lease: Value = serde_json::from_str(&ran.stdout).expect("a lease");
    let id = lease["id"].as_str().expect("an id").to_owned();
    (host, broker, id)
}

fn state_of(host: &Host, id: &str) -> LeaseState {
    let ran = host.run(&["leases", "--json"]);
    let list: Value = serde_json::from_str(&ran.stdout).expect("leases");
    let leases = list["leases"]
        .as_array()
        .or(list.as_array())
        .expect("a list");
    let lease = leases.iter().find(|lease| lease["id"] == id);
    serde_json::from_value(lease.expect("it is known")["state"].clone()).expect("a state")
}

fn policy_of(host: &Host) -> Policy {
    let ran = host.run(&["policy", "show", "--json"]);
    serde_json::from_str(&ran.stdout).expect("a policy")
}

fn confirm(host: &Host, plan: &str) {
    let ran = host.run(&["reload", "--confirm", plan]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

/// Waits until the files on disk stand like this, and says the hash of their plan.
fn until_candidate(host: &Host, state: CandidateState) -> Option<String> {
    eventually(&format!("{state:?}"), || {
        let candidate = policy_of(host).candidate?;
        (candidate.state == state).then_some(candidate.plan)
    })
}

#[test]
fn a_save_that_would_drain_waits_until_somebody_confirms_what_they_saw() {
    let (host, _broker, id) = guarded();
    host.write_policy(&without_batch());
    let plan = until_candidate(&host, CandidateState::NeedsConfirmation).expect("a plan");
    assert_eq!(state_of(&host, &id), LeaseState::Active, "nothing happened");

    let told = host.run(&["leases"]);
    assert!(told.stderr.contains("--confirm"), "{}", told.stderr);
    let shown = host.run(&["policy", "plan"]);
    assert!(
        shown.stdout.contains(&id) && shown.stdout.contains("drain"),
        "{}",
        shown.stdout
    );
    assert_ne!(host.run(&["reload"]).code, 0, "a reload without the hash");
    assert_ne!(
        host.run(&["reload", "--confirm", "0000"]).code,
        0,
        "another hash"
    );
    assert_eq!(state_of(&host, &id), LeaseState::Active, "still nothing");

    confirm(&host, &plan);
    assert_eq!(state_of(&host, &id), LeaseState::Draining);
    assert_eq!(policy_of(&host).candidate, None);
}

#[test]
fn a_restart_on_files_that_would_drain_waits_for_the_same_confirmation() {
    let (host, broker, id) = guarded();
    broker.kill();
    host.write_policy(&without_batch());
    let broker = host.start();
    assert!(
        broker.process().stderr().contains("needs confirmation"),
        "{}",
        broker.process().stderr()
    );
    let plan = until_candidate(&host, CandidateState::NeedsConfirmation).expect("a plan");
    assert_eq!(state_of(&host, &id), LeaseState::Active, "nothing happened");
    confirm(&host, &plan);
    assert_eq!(state_of(&host, &id), LeaseState::Draining);
}

#[test]
fn a_save_that_is_put_back_asks_for_nothing_any_more() {
    let (host, _broker, id) = guarded();
    host.write_policy(&without_batch());
    until_candidate(&host, CandidateState::NeedsConfirmation);
    host.write_policy(&with_batch());
    eventually("no candidate", || {
        policy_of(&host).candidate.is_none().then_some(())
    });
    assert_eq!(state_of(&host, &id), LeaseState::Active);
    assert_eq!(policy_of(&host).generation, 1, "nothing was switched");
}

#[test]
fn a_policy_is_applied_only_over_what_the_caller_saw() {
    let host = Host::with_cards(1)
        .flags(&["--no-reload"])
        .policy(&with_batch());
    let broker = host.start();
    broker.grant(&json!({"class": "batch", "ttl": "1h"}));
    host.write_policy(&without_batch());
    let plan: Value = Request::post(paths::POLICY_PLAN, &json!({}))
        .send(broker.address())
        .read();
    assert_eq!(plan["leases"][0]["fate"], "drain", "{plan}");

    let reload = |body: Value, tag: &str| {
        let request = Request::post(paths::HOT_RELOAD, &body).header("if-match", tag);
        request.send(broker.address())
    };
    let live = format!("\"{}\"", broker.policy().hash);
    let stale = reload(json!({}), "\"0000\"");
    assert_eq!(stale.status, 412, "{}", stale.text());
    let other = reload(json!({"expect_plan": "0000"}), &live);
    assert_eq!(other.status, 412, "{}", other.text());
    assert_eq!(broker.policy().generation, 1, "nothing changed");
    let same = reload(json!({"expect_plan": plan["plan"]}), &live);
    assert_eq!(same.status, 200, "{}", same.text());
    let done: Value = same.read();
    assert_eq!(
        done["leases"][0]["fate"], plan["leases"][0]["fate"],
        "what was planned"
    );
}

#[test]
fn a_policy_is_taken_back_and_its_drains_with_it() {
    let host = Host::with_cards(1).policy(&with_batch());
    let broker = host.start();
    let lease = broker.grant(&json!({"class": "batch", "ttl": "1h"}));
    host.write_policy(&without_batch());
    broker.until(&lease.id, "drains", |lease| {
        lease.state == LeaseState::Draining
    });
    let ran = host.run(&["policy", "rollback", "--yes"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let kept = broker.lease(&lease.id);
    assert_eq!((kept.state, kept.fence), (LeaseState::Active, lease.fence));
    assert_eq!(kept.expires_at, lease.expires_at);
    let told = host.run(&["leases"]);
    assert!(
        told.stderr.contains("is not the one in force"),
        "{}",
        told.stderr
    );
}

#[test]
fn a_policy_whose_rules_fail_takes_itself_back() {
    let good = format!("{POLICY}[reload]\nrollback_errors = 3\n");
    let host = Host::with_cards(1).policy(&good);
    let broker = host.start();
    host.write_policy(&format!(
        "{good}[[rule]]\nname = 'ratio'\nwhen = \"GiB(1) / int(request.labels.size() - 1) > 0\"\ndeny = 'no'\non_error = 'skip'\n"
    ));
    broker.until_generation(2);
    for _ in 0..4 {
        let body = json!({"memory": "1MiB", "labels": {"a": "b"}});
        broker.grant(&body);
    }
    let policy = broker.until_generation(3);
    assert!(
        !policy.files[0].text.contains("ratio"),
        "the one before is live"
    );
    let withdrawn = policy.rolled_back.expect("it says so");
    assert!(withdrawn.why.contains("ratio"), "{withdrawn:?}");
    assert_eq!(broker.live_leases().len(), 4, "what was granted stays");
}

#[test]
fn files_that_go_back_and_forth_are_left_alone_until_somebody_asks() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let other = format!("{POLICY}[queue]\nmax_waiting = 7\n");
    let mut generation = broker.policy().generation;
    let rests = (0..20).any(|n| {
        host.rename_policy(if n % 2 == 0 { &other } else { POLICY });
        eventually("it is looked at", || {
            let state = broker.reload_state();
            let rests = state.breaker.state == gpu_api::BreakerState::Open;
            let policy = broker.policy();
            (rests || policy.generation > generation).then(|| generation = policy.generation)
        });
        broker.reload_state().breaker.state == gpu_api::BreakerState::Open
    });
    assert!(
        rests,
        "it never rested: {:?}",
        broker.reload_state().breaker
    );
    assert_eq!(
        broker.policy().candidate.map(|c| c.state),
        Some(CandidateState::Resting)
    );
    let ran = host.run(&["reload"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert_eq!(
        broker.reload_state().breaker.state,
        gpu_api::BreakerState::Closed
    );
}

#[test]
fn a_setting_from_above_the_files_holds_over_every_save_until_its_time_is_over() {
    let host = Host::with_cards(1).flags(&["--set", "queue.max_waiting=5"]);
    let broker = host.start();
    let ran = host.run(&[
        "policy",
        "override",
        "set",
        "queue.order=fifo",
        "--for",
        "1h",
    ]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    host.write_policy(&format!(
        "{POLICY}[queue]\norder = 'priority'\nmax_waiting = 9\naging = '3m'\n"
    ));
    let policy = broker.until_generation(3);
    let shadows: Vec<_> = policy
        .overrides
        .iter()
        .map(|one| {
            (
                one.setting.as_str(),
                one.value.as_str(),
                one.origin.as_str(),
            )
        })
        .collect();
    assert_eq!(
        shadows,
        [
            ("queue.max_waiting", "5", "--set"),
            ("queue.order", "fifo", "override")
        ]
    );
    let last = broker.reload_state().last.expect("a reload");
    assert!(
        last.changes
            .iter()
            .any(|change| change.contains("shadowed by --set")),
        "{:?}",
        last.changes
    );
    assert_eq!(host.run(&["policy", "override", "clear"]).code, 0);
    assert_eq!(broker.policy().overrides.len(), 1);
}

#[test]
fn a_quota_says_who_holds_what_it_waits_for() {
    let host = Host::with_cards(2).policy(&format!(
        "{POLICY}[[tenant]]\nname = 'everybody'\nper = 'user'\nmax_devices = 1\n"
    ));
    let broker = host.start();
    broker.grant(&json!({"memory": "1GiB", "ttl": "1h", "holder": {"name": "first"}}));
    let waits = broker
        .acquire(
            &json!({"memory": "1GiB", "queue": true, "ttl": "1h", "holder": {"name": "second"}}),
        )
        .expect("it queues");
    let waiting = broker.lease(&waits.id).waiting.expect("it waits");
    assert_eq!(waiting.reason_code.as_str(), "quota", "{waiting:?}");
    assert!(waiting.reason.contains("first"), "{}", waiting.reason);
    let too_many = Request::post(paths::LEASES, &json!({"devices": 2, "memory": "1GiB"}));
    let refused = too_many.send(broker.address());
    assert_eq!(refused.status, 403, "{}", refused.text());
    // Over the port nobody can tell who asks: the same user as before.
    let url = broker.url();
    let explained = host.run(&["--url", &url, "policy", "explain", "--memory", "1GiB"]);
    assert!(
        explained.stdout.contains("everybody"),
        "{}",
        explained.stdout
    );
    assert!(explained.stdout.contains("first"), "{}", explained.stdout);
}

#[test]
fn a_rule_by_the_hour_is_explained_for_any_hour() {
    let host = Host::with_cards(1).policy(&format!(
        "{POLICY}[defaults]\ntimezone = 'UTC'\n[[rule]]\nname = 'night'\nwhen = \"request.memory > GiB(4) && now.hour >= 8 && now.hour < 20\"\nhold = 'over 4 GiB runs at night'\n"
    ));
    let _broker = host.start();
    let explain = |at: &str| {
        host.run(&["policy", "explain", "--memory", "8GiB", "--at", at])
            .stdout
    };
    let day = explain("12:00");
    assert!(day.contains("night") && day.contains("20:00"), "{day}");
    let night = explain("22:00");
    assert!(night.contains("sim-0"), "{night}");
}

#[test]
fn a_hostile_rule_is_refused_with_its_place_and_nothing_stops() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let deep = "(".repeat(500) + "true" + &")".repeat(500);
    let runaway = "[1,2,3].all(a,[1,2,3].all(b,[1,2,3].all(c,[1,2,3].all(d,true))))";
    for when in [
        deep.as_str(),
        runaway,
        "reqest.memory > 1",
        "request.memory",
    ] {
        host.write_policy(&format!(
            "{POLICY}[[rule]]\nname = 'r'\nwhen = \"{when}\"\ndeny = 'no'\n"
        ));
        let ran = host.run(&["policy", "check"]);
        assert_ne!(ran.code, 0, "{when}");
        assert!(ran.stdout.contains("default.toml:"), "{}", ran.stdout);
    }
    assert_eq!(broker.policy().generation, 1);
}

/// An editor that does this to the file.
fn editor(host: &Host, script: &str) -> PathBuf {
    let path = host.dir().join("editor");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("the directory is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

#[test]
fn an_edit_is_checked_before_it_is_saved() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    let edit = |script: &str| {
        let mut command = host.command();
        let file = host.policy_file();
        command
            .args(["policy", "edit"])
            .arg(file)
            .env("GPU_MANAGER_URL", host.url())
            .env("VISUAL", editor(&host, script));
        command
            .stdin(std::process::Stdio::null())
            .output()
            .expect("it runs")
    };
    let bad = edit("echo 'nonsense' >> \"$1\"");
    assert_ne!(bad.status.code(), Some(0));
    assert_eq!(
        fs::read_to_string(host.policy_file()).expect("a file"),
        POLICY,
        "not saved"
    );
    let good = edit("printf '[queue]\\nmax_waiting = 3\\n' >> \"$1\"");
    let said = String::from_utf8_lossy(&good.stderr).into_owned();
    assert_eq!(good.status.code(), Some(0), "{said}");
    let policy = broker.until_generation(2);
    assert!(policy.files[0].text.contains("max_waiting = 3"));
}

#[test]
fn every_trigger_answers_with_the_same_object_of_the_same_set() {
    let host = Host::with_cards(1);
    let broker = host.start();
    fs::write(
        host.policy_dir().join("more.toml"),
        "[queue]\nmax_waiting = 11\n",
    )
    .expect("ours");
    broker.until_generation(2);
    let by_file = broker.reload_state().last.expect("a reload");
    let by_api: Value = Request::post(paths::HOT_RELOAD, &json!({}))
        .send(broker.address())
        .read();
    let ran = host.run(&["reload", "--json"]);
    let by_command: Value = serde_json::from_str(&ran.stdout).expect("a result");
    broker.process().signal(rustix::process::Signal::HUP);
    let by_signal = eventually("SIGHUP", || {
        let history = broker.reload_state().history;
        history
            .into_iter()
            .find(|one| one.trigger == gpu_api::ReloadTrigger::Signal)
    });
    let keys = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    let by_file = serde_json::to_value(by_file).expect("plain data");
    let by_signal = serde_json::to_value(by_signal).expect("plain data");
    for other in [&by_api, &by_command, &by_signal] {
        assert_eq!(keys(other), keys(&by_file));
        assert_eq!(other["files"], by_file["files"]);
        assert_eq!(other["hash"], by_file["hash"]);
    }
}

#[test]
fn a_drain_goes_on_to_the_same_deadline_over_a_restart() {
    let host = Host::with_cards(1).policy(&with_batch());
    let broker = host.start();
    let lease = broker.grant(&json!({"class": "batch", "ttl": "1h"}));
    host.write_policy(&without_batch());
    let deadline = |broker: &Broker| {
        let drain = broker.lease(&lease.id).drain?;
        Some(drain.causes[0].deadline_at.clone())
    };
    let before = eventually("it drains", || deadline(&broker));
    broker.kill();
    assert_eq!(deadline(&host.start()), Some(before));
}

#[test]
fn the_stream_tells_a_reload_in_order() {
    let host = Host::with_cards(1).policy(&with_batch());
    let broker = host.start();
    broker.grant(&json!({"class": "batch", "ttl": "1h"}));
    let mut events = broker.events(None);
    host.write_policy(&without_batch());
    let names: Vec<String> = (0..4).map(|_| events.next_event().name).collect();
    assert_eq!(
        names,
        [
            "reload_begun",
            "policy_planned",
            "policy_switched",
            "lease_draining"
        ]
    );
}

#[test]
fn the_menu_does_what_the_verbs_do() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    host.write_policy(&format!("{POLICY}[queue]\nmax_waiting = 12\n"));
    let mut command = host.command();
    command
        .args(["reload", "--interactive"])
        .env("GPU_MANAGER_URL", host.url())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let mut words = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut words, b"check\nplan\napply\ny\nquit\n").expect("it reads");
    drop(words);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("queue.max_waiting: 1024 -> 12"), "{said}");
    assert_eq!(broker.policy().generation, 2, "{said}");
}

#[test]
fn the_watches_say_how_each_path_is_watched() {
    let host = Host::with_cards(1);
    let broker = host.start();
    host.write_policy(&format!("{POLICY}[queue]\nmax_waiting = 13\n"));
    broker.until_generation(2);
    let ran = host.run(&["watches"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("default.toml") && ran.stdout.contains("inotify"),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_check_says_what_a_reload_says() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    host.write_policy(&format!(
        "{POLICY}[queu]\n[[rule]]\nname = 'r'\nwhen = \"reqest.memory > 1\"\ndeny = 'no'\n"
    ));
    let ask = |path: &str| -> Value {
        let answer: Value = Request::post(path, &json!({}))
            .send(broker.address())
            .read();
        answer["diagnostics"].clone()
    };
    let checked = ask(paths::POLICY_CHECK);
    assert_eq!(checked.as_array().map(Vec::len), Some(2), "{checked}");
    assert_eq!(checked, ask(paths::HOT_RELOAD));
    assert_eq!(checked, ask(paths::POLICY_PLAN));
}

#[test]
fn what_is_checked_is_what_is_loaded() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    for n in 1..=20 {
        host.rename_policy(&format!("{POLICY}[queue]\nmax_waiting = {n}\n"));
        let asked = Request::post(paths::HOT_RELOAD, &json!({})).send_beside(broker.address());
        // Another save while that runs: what is live is one of the two, as a whole, under its own hash.
        host.rename_policy(&format!("{POLICY}[queue]\nmax_waiting = {}\n", n + 100));
        let result: Value = asked.join().expect("an answer").read();
        let live = broker.policy();
        assert_eq!(result["hash"], live.hash.as_str(), "{result}");
        let text = json!({"files": [{"name": "default.toml", "text": live.files[0].text}]});
        let check: Value = Request::post(paths::POLICY_CHECK, &text)
            .send(broker.address())
            .read();
        assert_eq!(check["hash"], live.hash.as_str(), "{check}");
    }
}

#[test]
fn a_restart_is_no_way_around_the_confirmation_of_a_drained_device() {
    let (host, broker, id) = guarded();
    let fan = "[[device]]\nname = 'sim-0'\ndrain = 'the fan is broken'\n";
    host.write_policy(&format!("{}{fan}", with_batch()));
    until_candidate(&host, CandidateState::NeedsConfirmation);
    broker.kill();
    let _broker = host.start();
    let plan = until_candidate(&host, CandidateState::NeedsConfirmation).expect("a plan");
    assert_eq!(state_of(&host, &id), LeaseState::Active, "nobody confirmed");
    confirm(&host, &plan);
    assert_eq!(state_of(&host, &id), LeaseState::Draining);
}
