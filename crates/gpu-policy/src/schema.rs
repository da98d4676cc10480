//! The JSON schema of policy files: the keys that the draft asks for, with what they mean.

use crate::draft::Draft;
use crate::json::Json;
use crate::settings::Settings;

/// What each key means. Sections and tables are described by their own name.
const MEANINGS: &[(&str, &str)] = &[
    ("schema", "The version of this schema."),
    ("reload", "What a new policy does to running work."),
    (
        "reload.held",
        "What happens to a lease that the new policy no longer allows: it stays, its holder is asked to go, or it ends at once.",
    ),
    (
        "reload.scope",
        "Which leases a new policy looks at: those that the old one allowed and it does not, or all.",
    ),
    ("reload.grace", "The least time that a holder has to go."),
    (
        "reload.grace_max",
        "The most time that a holder has to go, whatever its class or its request asks for.",
    ),
    (
        "reload.confirm",
        "Which saves wait for `gpu-manager reload --confirm`: none, those that end a lease at once, or also those that drain one.",
    ),
    (
        "reload.on_shrink",
        "What happens to leases that a smaller quota or a larger reserve has no room for: they stay and nothing new is granted, or the newest are drained.",
    ),
    (
        "reload.rollback_errors",
        "This many errors of rules soon after a switch take it back; 0 never does.",
    ),
    ("reload.rollback_within", "How soon after a switch."),
    ("defaults", "What a request gets that does not say."),
    ("defaults.class", "The class of a request that names none."),
    (
        "defaults.ttl",
        "The longest time between two heartbeats of a holder.",
    ),
    (
        "defaults.wait",
        "How long a request waits; 0s asks for an answer at once.",
    ),
    (
        "defaults.timezone",
        "The zone of `hours` and of `now` in rules. `hours` need it; `now` is UTC without it.",
    ),
    ("placement", "Which device a grant goes to."),
    (
        "placement.strategy",
        "Which of the devices that fit is taken: the least or the most memory left over, the lowest index, the fewest or the most leases, or the highest `score`.",
    ),
    (
        "placement.score",
        "How well `device` suits the request. Needs `strategy = \"score\"`.",
    ),
    (
        "placement.reserve",
        "Memory of every device that is never granted.",
    ),
    (
        "placement.load_slots",
        "How many leases may load their model on one device at once.",
    ),
    ("queue", "Who is served first."),
    (
        "queue.order",
        "By arrival; by priority and then arrival; or by priority and then who had least of late for its weight.",
    ),
    (
        "queue.half_life",
        "For `fair-share`: what a tenant had this long ago counts half.",
    ),
    (
        "queue.aging",
        "Waiting this long raises the priority by one; 0s never does.",
    ),
    (
        "queue.backfill",
        "Whether a request may pass a larger one that waits, if it does not delay it.",
    ),
    ("queue.max_waiting", "More waiting requests are refused."),
    (
        "reclaim",
        "How memory of a lease that ended by force is taken back.",
    ),
    (
        "reclaim.verify",
        "Whether it waits for proof that the holder is gone.",
    ),
    (
        "reclaim.delay",
        "How long to wait where nothing can be observed.",
    ),
    (
        "reclaim.quarantine_after",
        "What is not proven by then is set aside, visibly, until it is.",
    ),
    (
        "reclaim.signal",
        "Which processes of holders may be signalled: none, those that `gpu-manager run` started, or all that are registered.",
    ),
    ("foreign", "Processes that never asked."),
    (
        "foreign.ignore_below",
        "Their use up to here does not keep an exclusive request off a device.",
    ),
    (
        "class",
        "A kind of request. The class `standard` is built in; declare it to change it.",
    ),
    ("class.name", "What requests call it."),
    ("class.priority", "Higher is served first."),
    (
        "class.drain_grace",
        "The time that its leases have to go, if longer than `reload.grace`.",
    ),
    (
        "class.max_hold",
        "The longest time that one lease is held. No limit without it.",
    ),
    (
        "class.hours",
        "New grants only then; what runs goes on. At any time without it.",
    ),
    (
        "class.replace",
        "Takes the place of an earlier table of this name, as a whole.",
    ),
    (
        "tenant",
        "A share that its members have together. The first whose `match` holds counts; a request may claim one that matches.",
    ),
    ("tenant.name", "What requests call it."),
    (
        "tenant.match",
        "Who belongs to it. Without it: who claims it, and everybody where `per = \"user\"`.",
    ),
    (
        "tenant.weight",
        "Its part of a fair share, relative to the others. 1 without it.",
    ),
    (
        "tenant.max_devices",
        "Most devices that its leases may be on, each counted as often as it is granted.",
    ),
    (
        "tenant.max_memory",
        "Most memory that may be granted to it.",
    ),
    ("tenant.max_leases", "Most leases that it may hold."),
    (
        "tenant.per",
        "Each of its users is a tenant of its own, with the same limits.",
    ),
    (
        "tenant.replace",
        "Takes the place of an earlier table of this name, as a whole.",
    ),
    (
        "rule",
        "A decision about requests: all sets in file order as the request arrives, then the first hold or deny that applies.",
    ),
    ("rule.name", "Unique; shown to whoever it stops."),
    ("rule.when", "Where it applies."),
    ("rule.deny", "Refuses, for this reason."),
    (
        "rule.hold",
        "Makes wait, for this reason, until it no longer applies.",
    ),
    ("rule.set", "Changes the request as it arrives."),
    ("rule.set.class", "Its class."),
    ("rule.set.priority", "Its priority, instead of its class's."),
    ("rule.set.ttl", "The longest time between its heartbeats."),
    (
        "rule.set.max_hold",
        "The longest time to hold it; of several the shortest.",
    ),
    ("rule.set.select", "Only devices that this holds for."),
    (
        "rule.on_error",
        "What happens if `when` fails. Without it: `deny` for deny and hold, `skip` for set. What is held is never touched by an error.",
    ),
    (
        "rule.replace",
        "Takes the place of an earlier table of this name, as a whole.",
    ),
    (
        "device",
        "Settings for some devices; of several that match the later wins.",
    ),
    (
        "device.name",
        "Which devices, by id or name; `*` is anything, case does not matter.",
    ),
    (
        "device.match",
        "Which devices, by expression, instead of `name`.",
    ),
    ("device.reserve", "Instead of `placement.reserve`."),
    ("device.load_slots", "Instead of `placement.load_slots`."),
    ("device.labels", "Words that people and expressions see."),
    ("device.cordon", "Why no new grants are made here."),
    (
        "device.drain",
        "Why no new grants are made here and what is held here has to go, as `reload.held` says.",
    ),
    (
        "device.replace",
        "Takes the place of an earlier table of this name, as a whole.",
    ),
];

/// What a section was asked for.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) keys: Vec<(&'static str, Node)>,
    pub(crate) required: Vec<&'static str>,
    /// One of these keys has to be there, and only one.
    pub(crate) exactly_one: Vec<&'static str>,
}

/// What a key is.
#[derive(Debug)]
pub(crate) enum Node {
    Table(Shape),
    Tables(Shape),
    /// A value, and its range in words.
    Value(Json, String),
}

/// The JSON schema (draft 2020-12) of a policy file, for editors and `policy check`; ends with a line break.
pub fn schema_json() -> String {
    let head = Json::object()
        .with("$schema", "https://json-schema.org/draft/2020-12/schema")
        .with("title", "gpu-manager policy file");
    let document = Draft::shape().schema("", head, &Settings::built_in());
    format!("{document}\n")
}

impl Shape {
    pub(crate) fn value(&mut self, key: &'static str, shape: Json, says: String) {
        self.keys.push((key, Node::Value(shape, says)));
    }

    /// This table, at `path`, as JSON schema; `head` is what it begins with.
    fn schema(&self, path: &str, head: Json, defaults: &Settings) -> Json {
        let mut properties = Json::object();
        for (key, node) in &self.keys {
            let path = join(path, key);
            properties = properties.with(key, node.schema(&path, defaults));
        }
        let mut schema = head
            .with("type", "object")
            .with("properties", properties)
            .with("additionalProperties", false);
        if !self.required.is_empty() {
            schema = schema.with("required", Json::list(self.required.iter().copied()));
        }
        if !self.exactly_one.is_empty() {
            let requires = |key: &&'static str| Json::object().with("required", Json::list([*key]));
            schema = schema.with("oneOf", Json::list(self.exactly_one.iter().map(requires)));
        }
        schema
    }
}

impl Node {
    fn schema(&self, path: &str, defaults: &Settings) -> Json {
        let described = |text: String| Json::object().with("description", text);
        match self {
            Self::Table(shape) => shape.schema(path, described(meaning(path)), defaults),
            Self::Tables(shape) => {
                let items = shape.schema(path, Json::object(), defaults);
                described(meaning(path))
                    .with("type", "array")
                    .with("items", items)
            }
            Self::Value(shape, says) => {
                let mut schema = described(format!("{} ({says})", meaning(path)));
                if let Some(value) = defaults.value(path) {
                    schema = schema.with("default", typed(shape, value));
                }
                match shape {
                    Json::Object(entries) => entries.iter().fold(schema, |schema, (key, value)| {
                        schema.with(key, value.clone())
                    }),
                    _ => schema,
                }
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

fn meaning(path: &str) -> String {
    let found = MEANINGS.iter().find(|(known, _)| *known == path);
    found.map_or_else(String::new, |(_, meaning)| (*meaning).to_owned())
}

/// `value` in the type that `shape` asks for.
fn typed(shape: &Json, value: &str) -> Json {
    match (shape.get("type"), value) {
        (Some(Json::Text(kind)), "true" | "false") if kind == "boolean" => (value == "true").into(),
        (Some(Json::Text(kind)), number) if kind == "integer" => number
            .parse::<i64>()
            .map_or_else(|_| number.into(), Json::from),
        (_, text) => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Compares the file at `path`, from the root of the checkout, with `expected`; `UPDATE_EXPECT=1`
    /// writes it anew.
    fn check_file(path: &str, expected: impl Fn(&str) -> String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(path);
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, expected(&read())).expect("the directory is there");
        }
        assert!(
            read() == expected(&read()),
            "{} is old: run this test with UPDATE_EXPECT=1",
            path.display()
        );
    }

    /// Every key with its path, tables before what is in them.
    fn paths(shape: &Shape, path: &str) -> Vec<String> {
        let of_key = |(key, node): &(&'static str, Node)| {
            let path = join(path, key);
            let inner = match node {
                Node::Table(shape) | Node::Tables(shape) => paths(shape, &path),
                Node::Value(..) => Vec::new(),
            };
            [path].into_iter().chain(inner).collect::<Vec<_>>()
        };
        shape.keys.iter().flat_map(of_key).collect()
    }

    /// The keys of a table as rows of Markdown.
    fn rows(shape: &Shape, path: &str, defaults: &Settings) -> String {
        let mut text = String::new();
        for (key, node) in &shape.keys {
            let path = join(path, key);
            let meaning = meaning(&path);
            match node {
                Node::Value(_, says) => {
                    let default = defaults.value(&path).map(|value| format!("`{value}`"));
                    let key = path.split_once('.').map_or(path.as_str(), |(_, key)| key);
                    let default = default.unwrap_or_default();
                    text += &format!("| `{key}` | {says} | {default} | {meaning} |\n");
                }
                Node::Table(inner) if path.contains('.') => {
                    text += &rows(inner, &path, defaults);
                }
                Node::Table(inner) | Node::Tables(inner) => {
                    let title = match node {
                        Node::Tables(_) => format!("[[{path}]]"),
                        _ => format!("[{path}]"),
                    };
                    text += &format!("\n### `{title}`\n\n{meaning}\n\n");
                    text += "| key | value | default | |\n|---|---|---|---|\n";
                    text += &rows(inner, &path, defaults);
                }
            }
        }
        text
    }

    #[test]
    fn the_schema_that_is_checked_in_is_up_to_date() {
        check_file("schemas/policy.schema.json", |_| schema_json());
    }

    #[test]
    fn the_reference_that_is_checked_in_is_up_to_date() {
        const BEGIN: &str = "<!-- keys: written by a test of gpu-policy -->\n";
        const END: &str = "<!-- end of keys -->\n";
        check_file("docs/policy.md", |text| {
            let (before, rest) = text.split_once(BEGIN).expect("the beginning of the keys");
            let (_, after) = rest.split_once(END).expect("the end of the keys");
            let shape = Draft::shape();
            let tables = Shape {
                keys: shape
                    .keys
                    .into_iter()
                    .filter(|(key, _)| *key != "schema")
                    .collect(),
                ..Shape::default()
            };
            let keys = rows(&tables, "", &Settings::built_in());
            format!("{before}{BEGIN}{keys}\n{END}{after}")
        });
    }

    #[test]
    fn every_key_is_described_and_every_description_is_of_a_key() {
        let described: Vec<String> = MEANINGS
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .collect();
        assert_eq!(paths(&Draft::shape(), ""), described);
    }
}
