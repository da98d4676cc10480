//! What a person sees for a broken policy, word for word.

use gpu_policy::{
    DIAGNOSTICS_MAX, Diagnostics, Override, OverrideError, Severity, SourceFile, compile,
    compile_with_warnings,
};

fn errors(files: &[(&str, &str)], overrides: &[Override]) -> Diagnostics {
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| SourceFile::new(*name, *text))
        .collect();
    compile(&files, overrides).expect_err("a broken policy")
}

/// A `default.toml` with `text` is refused with `expected`.
fn check(text: &str, expected: &str) {
    let shown = errors(&[("default.toml", text)], &[]).to_string();
    assert_eq!(shown, expected.trim_matches('\n'), "of:\n{text}");
}

/// The place and message of each error of a `default.toml` with `text`.
fn brief(text: &str) -> Vec<String> {
    let errors = errors(&[("default.toml", text)], &[]);
    let brief =
        |item: &gpu_policy::Diagnostic| format!("{}:{} {}", item.line, item.column, item.message);
    errors.items().iter().map(brief).collect()
}

#[test]
fn all_errors_at_once_with_hints() {
    check(
        "[placement]\nstrategy = \"spred\"\nreserv = \"1GiB\"\nload_slots = \"two\"\n\n[queue]\nmax_waiting = -1\n",
        r#"
error: `strategy` must be one of `first-fit`, `best-fit`, `worst-fit`, `spread`, `pack`, `score`, not `spred`
 --> default.toml:2:12
  |
2 | strategy = "spred"
  |            ^^^^^^^
  = hint: did you mean `spread`?

error: unknown key `reserv` in [placement]
 --> default.toml:3:1
  |
3 | reserv = "1GiB"
  | ^^^^^^
  = hint: did you mean `reserve`?

error: `load_slots` must be a whole number, not "two"
 --> default.toml:4:14
  |
4 | load_slots = "two"
  |              ^^^^^

error: `max_waiting` must be between 0 and 100000, not -1
 --> default.toml:7:15
  |
7 | max_waiting = -1
  |               ^^

4 errors in the policy
"#,
    );
}

#[test]
fn a_syntax_error_is_located() {
    check(
        "# a comment\n[placement\nstrategy = \"spread\"\n",
        r"
error: unclosed table, expected `]`
 --> default.toml:2:11
  |
2 | [placement
  |           ^

1 error in the policy
",
    );
}

#[test]
fn columns_count_characters_and_tabs_do_not_move_the_caret() {
    check(
        "\u{feff}# é\r\n\t[queue]\r\n\torder = \"füfo\" # é\r\n",
        r#"
error: `order` must be one of `fifo`, `priority`, `fair-share`, not `füfo`
 --> default.toml:3:10
  |
3 |  order = "füfo" # é
  |          ^^^^^^
  = hint: did you mean `fifo`?

1 error in the policy
"#,
    );
}

#[test]
fn one_line_each() {
    for (text, expected) in [
        ("[placment]\n", vec!["1:2 unknown key `placment`"]),
        ("schema = 2\n", vec!["1:10 `schema` must be 1, not 2"]),
        ("", vec!["1:1 the file is empty"]),
        (
            "x\0y = 1\n",
            vec!["1:2 invalid unquoted key, expected letters, numbers, `-`, `_`"],
        ),
        (
            "a = 1\na = 2\n[queue]\n[queue]\n",
            vec!["2:1 duplicate key", "4:2 duplicate key"],
        ),
        (
            "[class]\nname = 'x'\n",
            vec!["1:2 `class` is a list of tables"],
        ),
        (
            "placement = 3\n[[queue]]\n",
            vec!["1:1 `placement` is a table", "2:3 `queue` is a table"],
        ),
        (
            "[[class]]\npriority = 1\n",
            vec!["1:1 [[class]] has no `name`"],
        ),
        (
            "[[class]]\nname = 'a b'\n",
            vec!["2:8 `name` must be a name, not `a b`"],
        ),
        (
            "[reload]\ngrace = 30\n",
            vec!["2:9 `grace` needs a unit, not `30`"],
        ),
        (
            "[reload]\ngrace = '2h'\n",
            vec!["2:9 `grace` 2h is longer than `grace_max` 1h"],
        ),
        (
            "[defaults]\nttl = '2h'\n",
            vec!["2:7 `ttl` must be between 1s and 1h, not 2h"],
        ),
        (
            "[defaults]\nclass = 'batch'\n",
            vec!["2:9 class `batch` does not exist"],
        ),
        (
            "[defaults]\ntimezone = '../etc'\n",
            vec!["2:12 `timezone` must be a time zone, not `../etc`"],
        ),
        (
            "[placement]\nreserve = '12 parsecs'\n",
            vec!["2:11 `reserve` must be a size, not `12 parsecs`"],
        ),
        (
            "[placement]\nreserve = -1\n",
            vec!["2:11 `reserve` must not be negative"],
        ),
        (
            "[placement]\nreserve = 9223372036854775808\n",
            vec!["2:11 `reserve` does not fit into 64 bits"],
        ),
        (
            "[placement]\nreserve = '2PB'\n",
            vec!["2:11 `reserve` must be a size, not `2PB`"],
        ),
        (
            "[reclaim]\nverify = 'true'\n",
            vec!["2:10 `verify` must be true or false, not \"true\""],
        ),
        (
            "[[device]]\nname = '['\n",
            vec!["2:8 `name` is no glob: unclosed character class; missing ']'"],
        ),
        (
            "[[device]]\nname = 'x'\ncordon = true\n",
            vec!["3:10 `cordon` must be the reason, in words, not true"],
        ),
        (
            "[[device]]\nname = 'x'\nlabels = ['a b']\n",
            vec!["3:10 `labels` has an entry that must be a name, not `a b`"],
        ),
        (
            "[[class]]\nname = 'n'\nhours = '18:00-09:00'\n",
            vec!["3:9 `hours` need a time zone"],
        ),
    ] {
        assert_eq!(brief(text), expected, "of:\n{text}");
    }
}

#[test]
fn one_line_each_of_rules_tenants_and_scores() {
    let rule = |rest: &str| format!("[[rule]]\nname = 'r'\nwhen = 'request.load'\n{rest}\n");
    for (text, expected) in [
        (
            rule(""),
            vec!["1:1 [[rule]] has none of `deny`, `hold`, `set`"],
        ),
        (
            rule("hold = 'a'\ndeny = 'b'"),
            vec!["4:1 `hold` excludes `deny` in [[rule]]"],
        ),
        (
            rule("deny = true"),
            vec!["4:8 `deny` must be the reason, in words, not true"],
        ),
        (rule("set = {}"), vec!["4:1 `set` sets nothing"]),
        (rule("set = 'batch'"), vec!["4:1 `set` is a table"]),
        (
            rule("set = { clas = 'a', ttl = '2h' }"),
            vec![
                "4:9 unknown key `clas` in [rule.set]",
                "4:27 `ttl` must be between 1s and 1h, not 2h",
            ],
        ),
        (
            rule("set = { class = 'bacth' }\n[[class]]\nname = 'batch'"),
            vec!["4:17 class `bacth` does not exist"],
        ),
        (
            rule("deny = 'x'\non_error = 'hold'"),
            vec!["5:12 `on_error` must be one of `deny`, `skip`, not `hold`"],
        ),
        (
            "[[rule]]\nwhen = true\ndeny = 'x'\n".to_owned(),
            vec![
                "1:1 [[rule]] has no `name`",
                "2:8 `when` must be an expression in quotes, not true",
            ],
        ),
        (
            "[[rule]]\nname = 'a\tb'\nwhen = ' '\ndeny = 'x'\n".to_owned(),
            vec![
                "2:8 `name` must be one line of at most 80 characters",
                "3:8 `when` must not be empty",
            ],
        ),
        (
            "[[tenant]]\nname = 't'\nweight = 0\nper = 'group'\nmax_leases = -1\n".to_owned(),
            vec![
                "3:10 `weight` must be between 1 and 1000, not 0",
                "4:7 `per` must be one of `user`, not `group`",
                "5:14 `max_leases` must be between 0 and 1000000, not -1",
            ],
        ),
        (
            "[[device]]\nreserve = '1g'\n".to_owned(),
            vec!["1:1 [[device]] has none of `name`, `match`"],
        ),
        (
            "[[device]]\nname = 'a'\nmatch = 'true'\n".to_owned(),
            vec!["3:1 `match` excludes `name` in [[device]]"],
        ),
        (
            "[queue]\nhalf_life = '7h'\n".to_owned(),
            vec!["2:13 `half_life` must be between 1m and 6h, not 7h"],
        ),
        (
            "[placement]\nstrategy = 'score'\n".to_owned(),
            vec!["2:12 `strategy` = \"score\" needs a `score`"],
        ),
        (
            "[placement]\nstrategy = 'pack'\nscore = 'device.free'\n".to_owned(),
            vec![
                "3:9 `score` needs `strategy` = \"score\", and another is set by `default.toml` line 2",
            ],
        ),
        (
            "[placement]\nscore = 'device.free'\n".to_owned(),
            vec!["2:9 `score` needs `strategy` = \"score\", and none is set"],
        ),
    ] {
        assert_eq!(brief(&text), expected, "of:\n{text}");
    }
}

/// A rule whose `when` is `source`, on line 3 from column 8 on, is refused at `place` with `carets` carets.
fn check_when(source: &str, place: (usize, usize), carets: usize, message: &str) {
    let text = format!("[[rule]]\nname = 'r'\nwhen = {source}\ndeny = 'x'\n");
    let errors = errors(&[("default.toml", &text)], &[]);
    let first = &errors.items()[0];
    let found = (
        first.line,
        first.column,
        first.width,
        first.message.as_str(),
    );
    assert_eq!(found, (place.0, place.1, carets, message), "{errors}");
}

#[test]
fn an_error_within_an_expression_is_located_in_every_kind_of_string() {
    const MEMRY: &str = "`when`: there is no `request.memry`";
    check_when("\"request.memry > 1\"", (3, 9), 13, MEMRY);
    check_when("'request.memry > 1'", (3, 9), 13, MEMRY);
    check_when("'  request.memry > 1'", (3, 11), 13, MEMRY);
    check_when(
        "\"'\\u00e9' == 'e' || request.memry > 1\"",
        (3, 28),
        13,
        MEMRY,
    );
    check_when(
        "\"holder.name == \\\"a\\\" || request.memry > 1\"",
        (3, 33),
        13,
        MEMRY,
    );
    check_when(
        "\"\"\"\nrequest.load\n  && request.memry > 1\n\"\"\"",
        (5, 6),
        13,
        MEMRY,
    );
    check_when(
        "\"\"\"request.load \\\n   && request.memry > 1\"\"\"",
        (4, 7),
        13,
        MEMRY,
    );
    check_when(
        "'''\r\nholder.name == 'é' && request.memry > 1'''",
        (4, 23),
        13,
        MEMRY,
    );
}

#[test]
fn errors_within_expressions_are_shown_as_every_other() {
    check(
        "[[rule]]\nname = \"a\"\nwhen = \"request.memry > GiB(40)\"\nhold = \"at night\"\n",
        r#"
error: `when`: there is no `request.memry`
 --> default.toml:3:9
  |
3 | when = "request.memry > GiB(40)"
  |         ^^^^^^^^^^^^^
  = hint: did you mean `request.memory`?

1 error in the policy
"#,
    );
}

#[test]
fn every_expression_of_a_set_is_compiled() {
    let text = "[placement]\nstrategy = 'score'\nscore = 'device.fre'\n\
                [[tenant]]\nname = 't'\nmatch = 'now.hour > 3'\n\
                [[device]]\nmatch = 'device.memory'\n\
                [[rule]]\nname = 'r'\nwhen = 'true'\nset = { select = 'device.free > 1' }\n";
    let places: Vec<_> = errors(&[("default.toml", text)], &[])
        .items()
        .iter()
        .map(|item| (item.line, item.message.clone()))
        .collect();
    let lines: Vec<usize> = places.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 6, 8, 12], "{places:?}");
}

#[test]
fn warnings_come_with_a_policy_and_with_errors() {
    let text = "[[tenant]]\nname = 'idle'\nmax_leases = 0\n\
                [[rule]]\nname = 'closed'\nwhen = ' true '\ndeny = 'moving house'\n";
    let file = SourceFile::new("default.toml", text);
    let compiled = compile_with_warnings(&[file], &[]).expect("a policy");
    let shown: Vec<String> = compiled.warnings.iter().map(ToString::to_string).collect();
    let expected = [
        r#"
warning: tenant `idle` may hold nothing: `max_leases` is 0
 --> default.toml:3:14
  |
3 | max_leases = 0
  |              ^
  = hint: leave `max_leases` out for no limit
"#,
        r#"
warning: rule `closed` denies every request: nothing is granted
 --> default.toml:6:8
  |
6 | when = ' true '
  |        ^^^^^^^^
  = hint: remove it when that is no longer meant
"#,
    ];
    assert_eq!(
        shown,
        expected.map(|text| text.trim_matches('\n').to_owned())
    );

    let broken = format!("{text}\n[queue]\norder = 'lifo'\n");
    let errors = errors(&[("default.toml", &broken)], &[]);
    let severities: Vec<Severity> = errors.items().iter().map(|item| item.severity).collect();
    assert_eq!(
        severities,
        [Severity::Error, Severity::Warning, Severity::Warning]
    );
    assert_eq!(errors.total(), 1);
    assert!(
        errors
            .to_string()
            .ends_with("1 error and 2 warnings in the policy")
    );
}

#[test]
fn a_rule_that_names_what_does_not_exist_is_warned_of() {
    let text = "[[class]]\nname = 'batch'\n[[tenant]]\nname = 'lab'\n\
                [[rule]]\nname = 'a'\nwhen = \"request.class in ['batch', 'nigth', 'standard']\"\ndeny = 'x'\n\
                [[rule]]\nname = 'b'\nwhen = \"request.load && holder.tenant == 'labs'\"\ndeny = 'x'\n";
    let compiled = compile_with_warnings(&[SourceFile::new("default.toml", text)], &[]);
    let warnings = compiled.expect("a policy").warnings;
    let brief: Vec<_> = warnings
        .iter()
        .map(|item| (item.line, item.column, item.width, item.message.as_str()))
        .collect();
    assert_eq!(
        brief,
        [
            (7, 37, 5, "class `nigth` does not exist"),
            (11, 43, 4, "tenant `labs` does not exist"),
        ]
    );
    assert_eq!(warnings[1].hint.as_deref(), Some("did you mean `lab`?"));
}

#[test]
fn what_is_planned_is_refused_rather_than_ignored() {
    for (text, expected) in [
        (
            "[placement]\nstrategy = 'fgd'\n",
            "2:12 `strategy` = \"fgd\" is not supported yet",
        ),
        (
            "[[class]]\nname = 'a'\npreempts = ['b']\n",
            "3:1 `preempts` is not supported yet",
        ),
        (
            "[[class]]\nname = 'a'\nmin_runtime = '1m'\n",
            "3:1 `min_runtime` is not supported yet",
        ),
        (
            "[[engine]]\nmatch = 'true'\n",
            "1:3 `engine` is not supported yet",
        ),
        ("[[hook]]\nname = 'a'\n", "1:3 `hook` is not supported yet"),
    ] {
        assert_eq!(brief(text), vec![expected], "of:\n{text}");
    }
}

#[test]
fn a_duplicate_over_two_files_names_both_places() {
    let errors = errors(
        &[
            (
                "policies/default.toml",
                "# the lab\n[[class]]\nname = \"batch\"\n[[device]]\nname = \"*\"\n\
                 [[tenant]]\nname = \"all\"\n[[rule]]\nname = \"r\"\nwhen = \"request.load\"\ndeny = \"x\"\n",
            ),
            (
                "policies/50-night.toml",
                "[[class]]\nname = \"batch\"\n[[device]]\nname = \"*\"\n\
                 [[tenant]]\nname = \"all\"\n[[rule]]\nname = \"r\"\nwhen = \"request.load\"\nhold = \"x\"\n",
            ),
        ],
        &[],
    );
    let expected = r#"
error: class `batch` is declared twice, first in `policies/default.toml` line 3
 --> policies/50-night.toml:2:8
  |
2 | name = "batch"
  |        ^^^^^^^
  = hint: say `replace = true` here, or remove one of the two

error: device `*` is declared twice, first in `policies/default.toml` line 5
 --> policies/50-night.toml:4:8
  |
4 | name = "*"
  |        ^^^
  = hint: say `replace = true` here, or remove one of the two

error: tenant `all` is declared twice, first in `policies/default.toml` line 7
 --> policies/50-night.toml:6:8
  |
6 | name = "all"
  |        ^^^^^
  = hint: say `replace = true` here, or remove one of the two

error: rule `r` is declared twice, first in `policies/default.toml` line 9
 --> policies/50-night.toml:8:8
  |
8 | name = "r"
  |        ^^^
  = hint: say `replace = true` here, or remove one of the two

4 errors in the policy
"#;
    assert_eq!(errors.to_string(), expected.trim_matches('\n'));
}

#[test]
fn a_set_without_its_default_file_is_an_error_and_so_is_no_set() {
    let first = |files: &[(&str, &str)]| errors(files, &[]).items()[0].message.clone();
    assert_eq!(first(&[]), "there are no policy files");
    assert_eq!(
        first(&[("50-a.toml", "# x")]),
        "there is no `default.toml` among the policy files"
    );
}

#[test]
fn overrides_are_located_in_their_own_text() {
    let set = |text| Override::parse("--set", text).expect("an override");
    let variables = [
        ("GPU_MANAGER_POLICY__QUEUE__AGEING", "5m"),
        ("GPU_MANAGER_POLICY_DIR", "x"),
    ];
    let env = Override::from_env(variables.map(|(name, value)| (name.into(), value.into())));
    let mut overrides = env.expect("variables");
    overrides.push(set("placement.strategy=spred"));
    let errors = errors(&[("default.toml", "# nothing")], &overrides);
    let expected = r#"
error: unknown key `ageing` in [queue]
 --> environment:1:1
  |
1 | GPU_MANAGER_POLICY__QUEUE__AGEING=5m
  | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  = hint: did you mean `aging`?

error: `strategy` must be one of `first-fit`, `best-fit`, `worst-fit`, `spread`, `pack`, `score`, not `spred`
 --> --set:1:20
  |
1 | placement.strategy=spred
  |                    ^^^^^
  = hint: did you mean `spread`?

2 errors in the policy
"#;
    assert_eq!(errors.to_string(), expected.trim_matches('\n'));
}

#[test]
fn text_that_is_no_override() {
    let parse = |text: &str| Override::parse("--set", text).expect_err("no override");
    assert!(matches!(
        parse("placement.strategy"),
        OverrideError::Malformed(_)
    ));
    assert!(matches!(
        parse("strategy=spread"),
        OverrideError::Malformed(_)
    ));
    assert!(matches!(parse(".x=1"), OverrideError::Malformed(_)));
    for table in ["class", "device", "rule", "tenant"] {
        let text = format!("{table}.name=x");
        assert!(matches!(parse(&text), OverrideError::Table(_)), "{text}");
    }
    assert!(matches!(
        parse(&format!("queue.order={}", "x".repeat(5000))),
        OverrideError::TooLong(_)
    ));
}

#[test]
fn more_errors_than_a_person_reads_are_counted() {
    let text: String = (0..5000).map(|n| format!("unknown-{n} = 1\n")).collect();
    let errors = errors(&[("default.toml", &text)], &[]);
    assert_eq!(
        (errors.items().len(), errors.total()),
        (DIAGNOSTICS_MAX, 5000)
    );
    assert!(
        errors
            .to_string()
            .contains("and 4900 more that are not shown")
    );
}

#[test]
fn bytes_that_are_no_text_are_located() {
    let file = SourceFile::new(
        "default.toml",
        b"# ok\n[queue]\norder = \"\xff\"\n".as_slice(),
    );
    let errors = compile(&[file], &[]).expect_err("not UTF-8");
    let first = &errors.items()[0];
    assert_eq!(
        (first.line, first.column, first.message.as_str()),
        (3, 10, "byte 0xff is not UTF-8")
    );
}
