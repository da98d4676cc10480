//! What policies mean: layers, replacement, hash, differences, and the rules.

use std::collections::BTreeMap;

use gpu_lease::{
    Amount, Device, DeviceKey, DeviceKind, Holder, HolderKind, Ms, Policy, Request, Select,
    Standing, Strategy, Telemetry, Vendor, Verdict, WallMs,
};
use gpu_policy::{Override, SourceFile, compile, diff, load_order};

fn policy_of(files: &[(&str, &str)], overrides: &[&str]) -> Policy {
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| SourceFile::new(*name, *text))
        .collect();
    let parse = |text: &&str| Override::parse("--set", text).expect("an override");
    let overrides: Vec<_> = overrides.iter().map(parse).collect();
    compile(&files, &overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

fn policy(text: &str) -> Policy {
    policy_of(&[("default.toml", text)], &[])
}

fn request(class: &str) -> Request {
    Request {
        holder: Holder {
            name: "job".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "ann".to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: class.to_owned(),
        devices: 1,
        amount: Amount::Memory(1 << 30),
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

fn device(id: &str, name: &str) -> Device {
    Device {
        key: DeviceKey::local(id),
        name: name.to_owned(),
        index: 0,
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: 24 << 30,
        telemetry: Telemetry::Supported,
        leasable: true,
        found_by: Vec::new(),
    }
}

#[test]
fn a_file_of_comments_says_what_is_built_in() {
    let policy = policy("# nothing\n");
    let built_in = Policy::built_in();
    assert_eq!(policy.placement, built_in.placement);
    assert_eq!(policy.reload, built_in.reload);
    assert_eq!(policy.classes, built_in.classes);
}

#[test]
fn the_shipped_policy_compiles_and_says_what_it_promises() {
    let policy = policy(include_str!("../../../policies/default.toml"));
    let priority = |class: &str| policy.classes[class].priority;
    assert!(priority("interactive") > priority("batch"));
    assert!(priority("batch") >= priority("standard"));
    assert_eq!(
        policy
            .rules
            .admit(&request("standard"), &Standing::default(), WallMs(0)),
        Verdict::Allow
    );
}

#[test]
fn later_layers_win_and_leave_the_rest_alone() {
    let files = [
        (
            "default.toml",
            "[placement]\nstrategy = 'pack'\nreserve = '1GiB'\nload_slots = 2\n",
        ),
        (
            "50-lab.toml",
            "[placement]\nstrategy = 'spread'\nreserve = '2GiB'\n",
        ),
    ];
    let policy = policy_of(
        &files,
        &[
            "placement.reserve=3g",
            "queue.backfill=false",
            "queue.max_waiting=7",
        ],
    );
    assert_eq!(policy.placement.strategy, Strategy::Spread);
    assert_eq!(policy.placement.reserve, 3 << 30);
    assert_eq!(policy.placement.load_slots, 2);
    assert!(!policy.queue.backfill);
    assert_eq!(policy.queue.max_waiting, 7);
}

#[test]
fn the_environment_is_a_layer() {
    let variables = [
        ("GPU_MANAGER_POLICY__DEFAULTS__TTL", "90s"),
        ("GPU_MANAGER_POLICY__PLACEMENT__LOAD_SLOTS", "4"),
        ("HOME", "/root"),
    ];
    let overrides = Override::from_env(variables.map(|(name, value)| (name.into(), value.into())));
    let file = SourceFile::new("default.toml", "[defaults]\nttl = '10s'\n");
    let policy = compile(&[file], &overrides.expect("variables")).expect("a policy");
    assert_eq!(policy.defaults.ttl, Ms::from_secs(90));
    assert_eq!(policy.placement.load_slots, 4);
}

#[test]
fn a_drop_in_replaces_a_table_as_a_whole_if_it_says_so() {
    let default = "[[class]]\nname = 'batch'\npriority = 5\nmax_hold = '1h'\n[[device]]\nname = 'a'\nreserve = '1GiB'\n";
    let drop_in = "[[class]]\nname = 'batch'\nreplace = true\npriority = 6\n[[device]]\nname = 'a'\nreplace = true\n";
    let policy = policy_of(&[("default.toml", default), ("50.toml", drop_in)], &[]);
    assert_eq!(policy.classes["batch"].priority, 6);
    assert_eq!(policy.classes["batch"].max_hold, None);
    assert_eq!(policy.devices.len(), 1);
    assert_eq!(policy.devices[0].reserve, None);
}

#[test]
fn the_built_in_class_may_be_declared() {
    let policy = policy("[[class]]\nname = 'standard'\npriority = 3\n");
    assert_eq!(policy.classes["standard"].priority, 3);
}

#[test]
fn the_hash_is_of_the_settings() {
    let plain =
        policy("[placement]\nreserve = '1GiB'\n[[class]]\nname = 'b'\n[[class]]\nname = 'a'\n");
    for same in [
        "# a comment\n[placement]\nreserve = 1073741824\n[[class]]\nname = 'a'\n[[class]]\nname = 'b'\n",
        "\u{feff}placement.reserve = \"1024MiB\"\r\nschema = 1\r\n[[class]]\r\nname = 'b'\r\npriority = 0\r\n[[class]]\r\nname = 'a'\r\n",
    ] {
        assert_eq!(plain, policy(same), "{same}");
        assert!(diff(&plain, &policy(same)).is_empty());
    }
    let split = policy_of(
        &[
            ("default.toml", "[[class]]\nname = 'a'\n"),
            (
                "b.toml",
                "placement.reserve = '2g'\n[[class]]\nname = 'b'\n",
            ),
        ],
        &["placement.reserve=1g"],
    );
    assert_eq!(plain, split);
    assert_eq!(plain.source.hash.len(), 64);
    for other in [
        "[placement]\nreserve = '1GiB'\n",
        "[[device]]\nname = 'x'\n",
    ] {
        assert_ne!(plain, policy(other), "{other}");
    }
}

#[test]
fn differences_are_sentences() {
    let old = policy(
        "[placement]\nreserve = '1GiB'\n[defaults]\ntimezone = 'Europe/Berlin'\n\
         [[class]]\nname = 'batch'\npriority = 1\nhours = '18:00-09:00'\n[[class]]\nname = 'night'\n\
         [[device]]\nname = 'a'\n[[device]]\nname = 'b'\n",
    );
    let new = policy(
        "[placement]\nstrategy = 'spread'\nreserve = '1GiB'\n[defaults]\ntimezone = 'Europe/Berlin'\n\
         [[class]]\nname = 'batch'\npriority = 2\nhours = '20:00-09:00'\n[[class]]\nname = 'day'\npriority = 9\n\
         [[device]]\nname = 'b'\n[[device]]\nname = 'a'\nreserve = '2GiB'\ncordon = 'fan broken'\n",
    );
    let lines: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "class night: removed",
            "placement.strategy: best-fit -> spread",
            "class batch.priority: 1 -> 2",
            "class batch.hours: 18:00-09:00 Europe/Berlin -> 20:00-09:00 Europe/Berlin",
            "class day: added (priority 9, drain_grace 0s)",
            "device a.reserve: none -> 2GiB",
            "device a.cordon: none -> \"fan broken\"",
            "device b: moved (place 2 -> place 1)",
        ]
    );
    assert_eq!(diff(&Policy::built_in(), &policy("# nothing")), []);
}

#[test]
fn an_unknown_class_is_denied_by_name() {
    let rules = policy("[[class]]\nname = 'batch'\n").rules;
    let Verdict::Deny { reason, .. } =
        rules.admit(&request("bacth"), &Standing::default(), WallMs(0))
    else {
        panic!("not denied");
    };
    assert_eq!(
        reason,
        "class `bacth` does not exist; the classes are `batch`, `standard`; did you mean `batch`?"
    );
}

#[test]
fn a_class_with_hours_is_held_outside_of_them() {
    let policy =
        policy("[defaults]\ntimezone = 'UTC'\n[[class]]\nname = 'batch'\nhours = '18:00-09:00'\n");
    let hour = |hour: u64| WallMs(hour * 3_600_000);
    let admit = |now| {
        policy
            .rules
            .admit(&request("batch"), &Standing::default(), now)
    };
    assert_eq!(admit(hour(18)), Verdict::Allow);
    assert_eq!(admit(hour(32)), Verdict::Allow);
    assert_eq!(
        admit(hour(9)),
        Verdict::Hold {
            rule: "class batch: hours".to_owned(),
            reason: "class `batch` starts only within 18:00-09:00 UTC".to_owned(),
            until: Some(hour(18)),
        }
    );
    assert_eq!(
        policy
            .rules
            .admit(&request("standard"), &Standing::default(), hour(9)),
        Verdict::Allow
    );
    assert_eq!(policy.rules.next_change(hour(10)), Some(hour(18)));
    assert_eq!(policy.rules.next_change(hour(18)), Some(hour(33)));
}

#[test]
fn device_rules_match_ids_and_names() {
    let text =
        "[[device]]\nname = '*4090*'\n[[device]]\nname = 'GPU-1'\n[[device]]\nname = 'Card [x]'\n";
    let rules = policy(text).rules;
    let matching = |device: &Device| -> Vec<usize> {
        (0..4)
            .filter(|rule| rules.device_matches(*rule, device))
            .collect()
    };
    assert_eq!(matching(&device("GPU-0", "NVIDIA GeForce RTX 4090")), [0]);
    assert_eq!(
        matching(&device("GPU-1", "NVIDIA GeForce rtx 4090 D")),
        [0, 1]
    );
    assert_eq!(matching(&device("GPU-2", "Card [x]")), [2]);
    assert!(matching(&device("GPU-11", "Card")).is_empty());
}

#[test]
fn default_comes_first_then_names_in_order() {
    let names = ["90-z.toml", "default.toml", "10-a.toml", "Default.toml"].map(str::to_owned);
    assert_eq!(
        load_order(names),
        ["default.toml", "10-a.toml", "90-z.toml", "Default.toml"]
    );
}

#[test]
fn the_rules_of_the_readme_are_a_policy() {
    let page = include_str!("../../../README.md");
    let sample = page.split("```toml\n").nth(1);
    let sample = sample.and_then(|rest| rest.split("```").next());
    let file = SourceFile::new("default.toml", sample.expect("a sample"));
    let policy = compile(&[file], &[]).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(policy.tenants[0].name, "everybody");
}
