//! Which layer wins, what a layer hides, and how tables of several files add up.

use gpu_lease::Policy;
use gpu_policy::{
    FROM_API, FROM_COMMAND_LINE, FROM_ENVIRONMENT, Layers, Override, SourceFile, compile, diff,
    diff_sources,
};

fn set(origin: &str, text: &str) -> Override {
    Override::parse(origin, text).expect("an override")
}

fn env(section: &str, key: &str, value: &str) -> Override {
    let name = format!("GPU_MANAGER_POLICY__{section}__{key}");
    let found = Override::from_env([(name.into(), value.into())]);
    found.expect("a variable").remove(0)
}

fn sources(files: &[(&str, &str)]) -> Vec<SourceFile> {
    let source = |(name, text): &(&str, &str)| SourceFile::new(*name, *text);
    files.iter().map(source).collect()
}

fn policy(files: &[(&str, &str)], overrides: &[Override]) -> Policy {
    compile(&sources(files), overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(files: &[(&str, &str)], overrides: &[Override]) -> String {
    let errors = compile(&sources(files), overrides).expect_err("a broken policy");
    errors.to_string()
}

fn changes(before: &[(&str, &str)], after: &[(&str, &str)], overrides: &[Override]) -> Vec<String> {
    let (before, after) = (policy(before, overrides), policy(after, overrides));
    let layers = |policy: &'_ Policy| policy.source.files.clone();
    let (before, after) = (layers(&before), layers(&after));
    let found = diff_sources(
        Layers {
            files: &before,
            overrides,
        },
        Layers {
            files: &after,
            overrides,
        },
    );
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn one_precedence_at_the_start_and_after_ten_reloads() {
    let file = ("default.toml", "[queue]\nmax_waiting = 1\n");
    let drop_in = ("50-lab.toml", "[queue]\nmax_waiting = 2\n");
    let environment = env("QUEUE", "MAX_WAITING", "3");
    let first = set(FROM_COMMAND_LINE, "queue.max_waiting=4");
    let second = set(FROM_COMMAND_LINE, "queue.max_waiting=5");
    let api = set(FROM_API, "queue.max_waiting=6");
    let all = [&environment, &first, &second, &api];
    for (files, overrides, expected) in [
        (vec![], vec![], 1024),
        (vec![file], vec![], 1),
        (vec![file, drop_in], vec![], 2),
        (vec![file, drop_in], vec![&environment], 3),
        (vec![file, drop_in], vec![&environment, &first], 4),
        (vec![file, drop_in], vec![&first, &second], 5),
        (vec![file, drop_in], vec![&second, &environment], 5),
        (vec![file, drop_in], all.to_vec(), 6),
        (vec![file], vec![&api, &second, &first, &environment], 6),
        (vec![], vec![&api, &environment], 6),
    ] {
        let overrides: Vec<Override> = overrides.into_iter().cloned().collect();
        let files = match files.as_slice() {
            [] => vec![("default.toml", "# nothing")],
            files => files.to_vec(),
        };
        let start = policy(&files, &overrides);
        assert_eq!(start.queue.max_waiting, expected, "{files:?} {overrides:?}");
        for _ in 0..10 {
            assert_eq!(policy(&files, &overrides), start);
        }
    }
}

#[test]
fn an_override_says_what_it_sets_and_where_it_comes_from() {
    for (setting, expected) in [
        (
            env("PLACEMENT", "STRATEGY", "spread"),
            ("placement.strategy", FROM_ENVIRONMENT, "spread"),
        ),
        (
            set(FROM_COMMAND_LINE, "reload.grace = 5m "),
            ("reload.grace", "--set", "5m"),
        ),
        (
            set(FROM_API, "placement.score=device.free == 0 ? 1 : 2"),
            ("placement.score", "override", "device.free == 0 ? 1 : 2"),
        ),
    ] {
        let said = (setting.setting(), setting.origin(), setting.value_text());
        assert_eq!(said, (expected.0.to_owned(), expected.1, expected.2));
    }
}

#[test]
fn a_change_that_a_higher_layer_hides_is_told_as_such() {
    let before = [(
        "default.toml",
        "[placement]\nstrategy = 'spread'\nreserve = '1g'\n",
    )];
    let after = [(
        "default.toml",
        "[placement]\nstrategy = 'pack'\nreserve = '2g'\n",
    )];
    let command_line = || set(FROM_COMMAND_LINE, "placement.strategy=best-fit");
    for (overrides, expected) in [
        (
            vec![],
            vec![
                "placement.strategy: spread -> pack",
                "placement.reserve: 1GiB -> 2GiB",
            ],
        ),
        (
            vec![command_line()],
            vec![
                "placement.reserve: 1GiB -> 2GiB",
                "placement.strategy: spread -> pack (shadowed by --set)",
            ],
        ),
        (
            vec![
                set(FROM_API, "placement.strategy=worst-fit"),
                command_line(),
                env("PLACEMENT", "RESERVE", "3g"),
            ],
            vec![
                "placement.reserve: 1GiB -> 2GiB (shadowed by environment)",
                "placement.strategy: spread -> pack (shadowed by override)",
            ],
        ),
        (
            vec![set(FROM_COMMAND_LINE, "queue.order=fifo")],
            vec![
                "placement.strategy: spread -> pack",
                "placement.reserve: 1GiB -> 2GiB",
            ],
        ),
    ] {
        assert_eq!(changes(&before, &after, &overrides), expected);
    }
}

#[test]
fn a_hidden_value_that_comes_or_goes_is_told_as_such() {
    let (with, without) = (
        "[defaults]\ntimezone = 'UTC'\n[placement]\nstrategy = 'score'\nscore = '1'\n",
        "[placement]\nstrategy = 'score'\nscore = '1'\n",
    );
    let overrides = [set(FROM_COMMAND_LINE, "defaults.timezone=Europe/Berlin")];
    for (before, after, expected) in [
        (
            with,
            without,
            "defaults.timezone: UTC -> none (shadowed by --set)",
        ),
        (
            without,
            with,
            "defaults.timezone: none -> UTC (shadowed by --set)",
        ),
    ] {
        let file = |text| [("default.toml", text)];
        let found = changes(&file(before), &file(after), &overrides);
        assert_eq!(found, [expected]);
    }
}

/// (before, after), each a file: the words of the one look like those of the other.
#[test]
fn no_two_different_settings_have_equal_hashes() {
    let device = |settings: &str| format!("[[device]]\nname = 'x'\n{settings}\n");
    let rule = |settings: &str| format!("[[rule]]\nname = 'r'\nwhen = 'true'\n{settings}\n");
    for (one, other) in [
        (device(""), device("labels = ['none']")),
        (device("labels = []"), device("labels = ['none']")),
        (device("labels = ['a', 'b']"), device("labels = ['a-b']")),
        (device("labels = ['a', 'b']"), device("labels = ['b', 'a']")),
        (device(""), device("cordon = 'none'")),
        (device(""), device("drain = 'none'")),
        (device("cordon = 'x'"), device("drain = 'x'")),
        (device("cordon = 'x'"), device("cordon = '\"x\"'")),
        (device("reserve = 0"), device("")),
        (device("load_slots = 1"), device("")),
        (
            device("cordon = 'x'"),
            "[[device]]\nmatch = \"device.id == 'x'\"\ncordon = 'x'\n".to_owned(),
        ),
        (rule("deny = 'none'"), rule("hold = 'none'")),
        (rule("deny = 'none'"), rule("set.class = 'standard'")),
        (
            rule("set.select = \"device.id != ', ttl 5s'\""),
            rule("set = { ttl = '5s', select = \"device.id != ''\" }"),
        ),
        (rule("deny = 'x'"), rule("deny = 'x'\non_error = 'skip'")),
        (
            "[[class]]\nname = 'a'\n".to_owned(),
            "[[class]]\nname = 'a'\nmax_hold = '365d'\n".to_owned(),
        ),
        (
            "[[class]]\nname = 'none'\n".to_owned(),
            "[[class]]\nname = 'none'\n[defaults]\nclass = 'none'\n".to_owned(),
        ),
        (
            "[[tenant]]\nname = 't'\n".to_owned(),
            "[[tenant]]\nname = 't'\nmax_leases = 0\n".to_owned(),
        ),
        (
            "[[tenant]]\nname = 't'\n".to_owned(),
            "[[tenant]]\nname = 't'\nper = 'user'\n".to_owned(),
        ),
        (
            "[[tenant]]\nname = 't'\n".to_owned(),
            "[[tenant]]\nname = 't'\nmatch = 'true'\n".to_owned(),
        ),
    ] {
        let policy = |text: &str| policy(&[("default.toml", text)], &[]);
        let (one, other) = (policy(&one), policy(&other));
        let (before, after) = (&one.source.files, &other.source.files);
        assert_ne!(one.source.hash, other.source.hash, "{before:?} {after:?}");
        assert_ne!(diff(&one, &other), [], "{before:?} {after:?}");
    }
}

#[test]
fn what_an_override_brings_or_takes_away_is_a_change() {
    let files = [(
        "default.toml".to_owned(),
        "[queue]\norder = 'fifo'\n".to_owned(),
    )];
    let overrides = [
        set(FROM_API, "defaults.timezone=Europe/Berlin"),
        set(FROM_API, "queue.order=priority"),
    ];
    let bare = Layers {
        files: &files,
        overrides: &[],
    };
    let overridden = Layers {
        files: &files,
        overrides: &overrides,
    };
    let said = |before, after| -> Vec<String> {
        let found = diff_sources(before, after);
        found.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        said(bare, overridden),
        [
            "defaults.timezone: none -> Europe/Berlin",
            "queue.order: fifo -> priority"
        ]
    );
    assert_eq!(
        said(overridden, bare),
        [
            "defaults.timezone: Europe/Berlin -> none",
            "queue.order: priority -> fifo"
        ]
    );
    assert!(said(overridden, overridden).is_empty());
}

#[test]
fn an_override_that_does_not_fit_a_new_file_is_refused_naming_both() {
    for (file, setting, expected) in [
        (
            "[reload]\ngrace_max = '10s'\n",
            "reload.grace=30s",
            "error: `grace` 30s is longer than `grace_max` 10s of `default.toml` line 2\n --> --set:1:14\n",
        ),
        (
            "[reload]\ngrace = '30s'\n",
            "reload.grace_max=10s",
            "error: `grace` 30s is longer than `grace_max` 10s of `--set reload.grace_max=10s`\n --> default.toml:2:9\n",
        ),
        (
            "[placement]\nstrategy = 'score'\nscore = 'device.free'\n",
            "placement.strategy=pack",
            "error: `score` needs `strategy` = \"score\", and another is set by `--set placement.strategy=pack`\n --> default.toml:3:9\n",
        ),
        (
            "[[class]]\nname = 'night'\n",
            "defaults.class=batch",
            "error: class `batch` does not exist\n --> --set:1:16\n",
        ),
    ] {
        let overrides = [set(FROM_COMMAND_LINE, setting)];
        let shown = refused(&[("default.toml", file)], &overrides);
        assert!(shown.starts_with(expected), "{shown}");
    }
}

#[test]
fn an_error_within_the_expression_of_an_override_is_located() {
    for (text, column) in [
        ("placement.score=device.fre + 1", 17),
        ("placement.score=  device.fre + 1", 19),
        ("placement.score='device.fre + 1'", 18),
    ] {
        let overrides = [
            set(FROM_COMMAND_LINE, "placement.strategy=score"),
            set(FROM_API, text),
        ];
        let shown = refused(&[("default.toml", "# nothing")], &overrides);
        let place = format!(" --> override:1:{column}\n");
        assert!(shown.contains(&place), "{shown}");
    }
}

#[test]
fn a_drop_in_replaces_rules_and_tenants_where_they_stand() {
    let rule = |name: &str, rest: &str| {
        format!("[[rule]]\nname = '{name}'\nwhen = 'request.load'\n{rest}\n")
    };
    let tenant = |name: &str, rest: &str| format!("[[tenant]]\nname = '{name}'\n{rest}\n");
    let default = rule("a", "deny = 'x'")
        + &rule("b", "deny = 'x'")
        + &tenant("s", "max_leases = 1")
        + &tenant("t", "weight = 3");
    let drop_in = rule("a", "hold = 'y'\nreplace = true")
        + &rule("c", "set = { priority = 3 }")
        + &tenant("s", "replace = true");
    let before = [("default.toml", default.as_str())];
    let after = [
        ("default.toml", default.as_str()),
        ("50.toml", drop_in.as_str()),
    ];
    assert_eq!(
        changes(&before, &after, &[]),
        [
            "tenant s.max_leases: 1 -> none",
            "rule a.deny: \"x\" -> none",
            "rule a.hold: none -> \"y\"",
            "rule c: added (when request.load, set priority 3, on_error skip)",
        ]
    );
    let names: Vec<String> = policy(&after, &[])
        .tenants
        .into_iter()
        .map(|tenant| tenant.name)
        .collect();
    assert_eq!(names, ["s", "t"]);
}

#[test]
fn every_setting_is_part_of_the_hash_and_of_the_differences() {
    let base = "[defaults]\ntimezone = 'UTC'\n[[class]]\nname = 'c'\n\
                [[tenant]]\nname = 't'\nmatch = \"holder.user == 'a'\"\n\
                [[rule]]\nname = 'r'\nwhen = 'request.load'\ndeny = 'x'\n\
                [[rule]]\nname = 's'\nwhen = 'request.load'\nset = { class = 'c' }\n\
                [[device]]\nmatch = 'device.memory > 1'\n";
    for (from, to, expected) in [
        (
            "'UTC'",
            "'Europe/Berlin'",
            "defaults.timezone: UTC -> Europe/Berlin",
        ),
        (
            "[defaults]",
            "reload.confirm = 'never'\n[defaults]",
            "reload.confirm: drain -> never",
        ),
        (
            "[defaults]",
            "reload.on_shrink = 'drain'\n[defaults]",
            "reload.on_shrink: keep -> drain",
        ),
        (
            "[defaults]",
            "reload.rollback_errors = 0\n[defaults]",
            "reload.rollback_errors: 10 -> 0",
        ),
        (
            "[defaults]",
            "reload.rollback_within = '1h'\n[defaults]",
            "reload.rollback_within: 5m -> 1h",
        ),
        (
            "[defaults]",
            "queue.order = 'fair-share'\n[defaults]",
            "queue.order: priority -> fair-share",
        ),
        (
            "[defaults]",
            "queue.half_life = '2h'\n[defaults]",
            "queue.half_life: 1h -> 2h",
        ),
        (
            "== 'a'",
            "== 'b'",
            "tenant t.match: holder.user == 'a' -> holder.user == 'b'",
        ),
        (
            "name = 't'",
            "name = 't'\nweight = 2",
            "tenant t.weight: 1 -> 2",
        ),
        (
            "name = 't'",
            "name = 't'\nmax_devices = 2",
            "tenant t.max_devices: none -> 2",
        ),
        (
            "name = 't'",
            "name = 't'\nmax_memory = '2g'",
            "tenant t.max_memory: none -> 2GiB",
        ),
        (
            "name = 't'",
            "name = 't'\nmax_leases = 2",
            "tenant t.max_leases: none -> 2",
        ),
        (
            "name = 't'",
            "name = 't'\nper = 'user'",
            "tenant t.per: none -> user",
        ),
        (
            "'request.load'\ndeny",
            "'!request.load'\ndeny",
            "rule r.when: request.load -> !request.load",
        ),
        (
            "'request.load'\ndeny",
            "\"request.load\\n||true\"\ndeny",
            "rule r.when: request.load -> request.load ||true",
        ),
        ("deny = 'x'", "deny = 'y'", "rule r.deny: \"x\" -> \"y\""),
        (
            "deny = 'x'",
            "deny = 'x'\non_error = 'skip'",
            "rule r.on_error: deny -> skip",
        ),
        (
            "class = 'c'",
            "class = 'c', ttl = '9s'",
            "rule s.set: class c -> class c, ttl 9s",
        ),
        (
            "> 1'",
            "> 1'\ndrain = 'old'",
            "device match device.memory > 1.drain: none -> \"old\"",
        ),
        ("name = 'r'", "name = 'q'", "rule r: removed"),
    ] {
        let changed = base.replace(from, to);
        assert_ne!(base, changed, "{from}");
        let (old, new) = (
            policy(&[("default.toml", base)], &[]),
            policy(&[("default.toml", &changed)], &[]),
        );
        assert_ne!(old, new, "{to}");
        assert_eq!(diff(&old, &new)[0].to_string(), expected);
    }
    let spaced = base.replace("'request.load'", "\"  request.load\\n\"");
    let (old, new) = (
        policy(&[("default.toml", base)], &[]),
        policy(&[("default.toml", &spaced)], &[]),
    );
    assert_eq!(old, new);
}

#[test]
fn as_few_rules_as_possible_are_said_to_have_moved() {
    let rules = |names: &str| -> String {
        let rule = |name| format!("[[rule]]\nname = '{name}'\nwhen = 'request.load'\ndeny = 'x'\n");
        names.chars().map(rule).collect()
    };
    for (before, after, expected) in [
        ("abcde", "abcde", vec![]),
        ("abcde", "eabcd", vec!["rule e: moved (place 5 -> place 1)"]),
        ("abcde", "bcdea", vec!["rule a: moved (place 1 -> place 5)"]),
        (
            "abcd",
            "badc",
            vec![
                "rule b: moved (place 2 -> place 1)",
                "rule d: moved (place 4 -> place 3)",
            ],
        ),
        ("abc", "bc", vec!["rule a: removed"]),
    ] {
        let (before, after) = (rules(before), rules(after));
        let found = changes(
            &[("default.toml", &before)],
            &[("default.toml", &after)],
            &[],
        );
        assert_eq!(found, expected);
    }
}
