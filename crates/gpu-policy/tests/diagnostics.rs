//! What a person sees for a broken policy, word for word.

use gpu_policy::{DIAGNOSTICS_MAX, Diagnostics, Override, OverrideError, SourceFile, compile};

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
error: `strategy` must be one of `first-fit`, `best-fit`, `worst-fit`, `spread`, `pack`, not `spred`
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
error: `order` must be one of `fifo`, `priority`, not `füfo`
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
fn what_is_planned_is_refused_rather_than_ignored() {
    for (text, expected) in [
        (
            "[reload]\nconfirm = 'drain'\n",
            "2:11 `confirm` = \"drain\" is not supported yet",
        ),
        (
            "[reload]\non_shrink = 'drain'\n",
            "2:1 `on_shrink` is not supported yet",
        ),
        (
            "[placement]\nstrategy = 'fgd'\n",
            "2:12 `strategy` = \"fgd\" is not supported yet",
        ),
        (
            "[queue]\norder = 'fair-share'\n",
            "2:9 `order` = \"fair-share\" is not supported yet",
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
            "[[device]]\nname = 'a'\nmatch = 'true'\n",
            "3:1 `match` is not supported yet",
        ),
        (
            "[[rule]]\nwhen = 'true'\n",
            "1:3 `rule` is not supported yet",
        ),
        (
            "[[tenant]]\nname = 'a'\n",
            "1:3 `tenant` is not supported yet",
        ),
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
                "# the lab\n[[class]]\nname = \"batch\"\n[[device]]\nname = \"*\"\n",
            ),
            (
                "policies/50-night.toml",
                "[[class]]\nname = \"batch\"\n[[device]]\nname = \"*\"\n",
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

2 errors in the policy
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

error: `strategy` must be one of `first-fit`, `best-fit`, `worst-fit`, `spread`, `pack`, not `spred`
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
    assert!(matches!(parse("class.name=x"), OverrideError::Table(_)));
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
