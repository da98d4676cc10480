//! The JSON schema agrees with the compiler: on the policies that are shipped, and on what both refuse.

use gpu_policy::{SourceFile, compile, schema_json};
use serde_json::Value;

type Bound = fn(&i64, &i64) -> bool;

/// The first place at which `value` is not what `schema` says, by the words that our schema uses. Patterns
/// are for editors: the compiler reads what they describe.
fn mismatch(schema: &Value, value: &Value, path: &str) -> Option<String> {
    let at = |what: &str| Some(format!("{path}: {what}"));
    if let Some(only) = schema.get("const") {
        return if only == value { None } else { at("const") };
    }
    if !types(schema).iter().any(|kind| is_of_type(kind, value)) {
        return at("type");
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return at("enum");
    }
    let count = |count: usize| i64::try_from(count).expect("few");
    let length = |text: &str| count(text.chars().count());
    for (key, wrong, number) in [
        ("minimum", i64::lt as Bound, value.as_i64()),
        ("maximum", i64::gt, value.as_i64()),
        ("minLength", i64::lt, value.as_str().map(length)),
        ("maxLength", i64::gt, value.as_str().map(length)),
        (
            "maxItems",
            i64::gt,
            value.as_array().map(|items| count(items.len())),
        ),
    ] {
        let bound = schema[key].as_i64();
        if bound
            .zip(number)
            .is_some_and(|(bound, number)| wrong(&number, &bound))
        {
            return at(key);
        }
    }
    match value {
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            mismatch(&schema["items"], item, &format!("{path}[{index}]"))
        }),
        Value::Object(entries) => {
            let required = schema["required"].as_array().into_iter().flatten();
            let missing = required
                .filter_map(Value::as_str)
                .find(|key| !entries.contains_key(*key));
            if let Some(key) = missing {
                return at(&format!("no {key}"));
            }
            if let Some(choices) = schema["oneOf"].as_array() {
                let there = |choice: &&Value| {
                    entries.contains_key(choice["required"][0].as_str().expect("a key"))
                };
                if choices.iter().filter(there).count() != 1 {
                    return at("oneOf");
                }
            }
            entries
                .iter()
                .find_map(|(key, value)| match schema["properties"].get(key) {
                    Some(schema) => mismatch(schema, value, &format!("{path}.{key}")),
                    None => at(&format!("unknown {key}")),
                })
        }
        _ => None,
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => panic!("no type in {schema}"),
    }
}

fn is_of_type(kind: &str, value: &Value) -> bool {
    match kind {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("unknown type {other}"),
    }
}

/// What the schema and what the compiler say of a `default.toml` with `text`.
fn both(text: &str) -> (Option<String>, bool) {
    let schema: Value = serde_json::from_str(&schema_json()).expect("JSON");
    let file: toml::Table = text.parse().expect("TOML");
    let file = serde_json::to_value(file).expect("JSON");
    let compiled = compile(&[SourceFile::new("default.toml", text)], &[]);
    (mismatch(&schema, &file, ""), compiled.is_ok())
}

#[test]
fn the_shipped_policies_follow_the_schema() {
    for text in [
        include_str!("../../../policies/default.toml"),
        include_str!("../../../policies/workstation/default.toml"),
        include_str!("../../../policies/shared-lab/default.toml"),
        include_str!("../../../policies/model-serving/default.toml"),
        include_str!("../../../policies/strict-production/default.toml"),
    ] {
        assert_eq!(both(text), (None, true));
        assert!(
            text.starts_with("#:schema "),
            "editors look at the first line"
        );
    }
}

#[test]
fn what_the_schema_refuses_the_compiler_refuses() {
    for (text, expected) in [
        ("schema = 2", ".schema: const"),
        ("[placment]", ": unknown placment"),
        (
            "[placement]\nstrategy = 'spred'",
            ".placement.strategy: enum",
        ),
        ("[placement]\nreserve = -1", ".placement.reserve: minimum"),
        ("[placement]\nreserve = true", ".placement.reserve: type"),
        (
            "[placement]\nload_slots = 65",
            ".placement.load_slots: maximum",
        ),
        ("[reload]\ngrace = 30", ".reload.grace: type"),
        ("[[class]]\npriority = 1", ".class[0]: no name"),
        (
            "[[class]]\nname = 'a'\npreempts = []",
            ".class[0]: unknown preempts",
        ),
        ("[[rule]]\nname = 'r'\nwhen = 'true'", ".rule[0]: oneOf"),
        (
            "[[rule]]\nname = 'r'\nwhen = 'true'\nset = {clas = 'a'}",
            ".rule[0].set: unknown clas",
        ),
        (
            "[[rule]]\nname = 'r'\nwhen = ''\ndeny = 'x'",
            ".rule[0].when: minLength",
        ),
        (
            "[[device]]\nname = 'a'\nmatch = 'true'",
            ".device[0]: oneOf",
        ),
        (
            "[[tenant]]\nname = 't'\nper = 'group'",
            ".tenant[0].per: enum",
        ),
    ] {
        assert_eq!(both(text), (Some(expected.to_owned()), false), "{text}");
    }
}
