//! Random expressions: what is evaluated here is what the `cel` crate evaluates.

use ::cel::{Context, Program, Value as CelValue};

use super::super::eval::Value;
use super::super::schema::{Field, Scalar, Type};
use super::*;

/// xorshift64
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

#[test]
fn the_cel_crate_says_the_same() {
    let seed = std::env::var("GPU_POLICY_SEED");
    let seed = seed.ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}: run again with GPU_POLICY_SEED={seed}");
    let mut random = Random(seed);
    let requests = requests();
    let (mut compared, mut failed) = (0, 0);
    for round in 0..400 {
        let text = condition(&mut random, 3);
        let Ok(expression) = compile_anew(&text, Scope::Rule) else {
            continue;
        };
        let program = Program::compile(&text).expect(&text);
        for request in &requests {
            let inputs = Inputs::of_request(request, &standing(), THURSDAY, None);
            let ours = expression.test(&inputs);
            let theirs = program.execute(&context(&inputs));
            let agree = match (&ours, &theirs) {
                (Ok(ours), Ok(CelValue::Bool(theirs))) => ours == theirs,
                (Err(_), Err(_)) => true,
                _ => false,
            };
            assert!(
                agree,
                "seed {seed} round {round}: {text}: {ours:?} here, {theirs:?} there"
            );
            compared += 1;
            failed += usize::from(ours.is_err());
        }
    }
    println!("{compared} compared, {failed} of them failed in both");
    assert!(compared > 400 && failed > 10);
}

fn requests() -> Vec<Request> {
    let mut other = request();
    other.amount = Amount::Exclusive;
    other.labels.clear();
    other.labels.insert("project".to_owned(), "ann".to_owned());
    other.devices = 1;
    let mut large = request();
    large.amount = Amount::Memory(u64::MAX);
    large.holder.user = "é".to_owned();
    vec![request(), other, large]
}

/// A context of the crate with the same values.
fn context(inputs: &Inputs<'_>) -> Context<'static, 'static> {
    let mut context = Context::default();
    for (name, bytes) in [("KiB", 1_i64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)] {
        let unit = move |count: i64| {
            let size = count.checked_mul(bytes);
            size.ok_or_else(|| ::cel::ExecutionError::function_error(name, "overflow"))
        };
        context.add_function(name, unit).expect("a free name");
    }
    for root in Scope::Rule.roots() {
        let text = record(inputs, root);
        let value = Program::compile(&text)
            .expect(&text)
            .execute(&context)
            .expect(&text);
        context.add_variable_from_value(root, value);
    }
    context
}

/// The fields that begin with `group`, as a literal of the language.
fn record(inputs: &Inputs<'_>, group: &str) -> String {
    let mut entries = Vec::new();
    let mut groups = Vec::new();
    let prefix = format!("{group}.");
    for path in Scope::Rule.paths() {
        let Some(rest) = path.strip_prefix(&prefix) else {
            continue;
        };
        let field = Field::named(path).expect("a field");
        match rest.split_once('.') {
            None => entries.push(format!("'{rest}': {}", literal(&inputs.read(field)))),
            Some((inner, _)) if !groups.contains(&inner) => {
                groups.push(inner);
                entries.push(format!(
                    "'{inner}': {}",
                    record(inputs, &format!("{prefix}{inner}"))
                ));
            }
            Some(_) => {}
        }
    }
    format!("{{{}}}", entries.join(", "))
}

fn literal(value: &Value<'_>) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Text(value) => format!("'{value}'"),
        Value::Labels(labels) => {
            let labels = labels
                .iter()
                .map(|(name, value)| format!("'{name}': '{value}'"));
            format!("{{{}}}", labels.collect::<Vec<_>>().join(", "))
        }
        other => panic!("no field of a rule is {other:?}"),
    }
}

/// A random expression that is true or false.
pub(super) fn condition(random: &mut Random, depth: usize) -> String {
    Maker {
        random,
        locals: Vec::new(),
    }
    .of(Type::One(Scalar::Bool), depth)
}

struct Maker<'r> {
    random: &'r mut Random,
    locals: Vec<(&'static str, Scalar)>,
}

impl Maker<'_> {
    fn of(&mut self, kind: Type, depth: usize) -> String {
        let locals = self
            .locals
            .iter()
            .filter(|(_, local)| Type::One(*local) == kind);
        let locals: Vec<&str> = locals.map(|(name, _)| *name).collect();
        if !locals.is_empty() && self.random.below(3) == 0 {
            return self.random.pick(&locals).to_owned();
        }
        match (kind, depth) {
            (_, 0) => self.leaf(kind),
            (Type::One(Scalar::Bool), _) => self.bool(depth - 1),
            (Type::One(Scalar::Int), _) => self.int(depth - 1),
            (Type::One(Scalar::Double), _) => self.double(depth - 1),
            (Type::List(item), _) => self.list(item, depth - 1),
            (Type::One(Scalar::Text) | Type::Labels, _) => self.leaf(kind),
        }
    }

    fn leaf(&mut self, kind: Type) -> String {
        let words: &[&str] = match kind {
            Type::Labels => &["request.labels"],
            Type::List(Scalar::Text) => &["['ann', 'bo']", "['', 'é', holder.user]"],
            Type::List(Scalar::Bool) => &["[true, false]", "[request.load]"],
            Type::List(Scalar::Double) => &["[1.5, 2.0]"],
            Type::List(Scalar::Int) => &["[0, 1, 2]", "[request.devices, 7]"],
            Type::One(Scalar::Bool) => &["true", "false", "request.load", "request.exclusive"],
            Type::One(Scalar::Double) => &["0.5", "2.0", "1e18", "-1.5", "0.0"],
            Type::One(Scalar::Int) => &[
                "0",
                "1",
                "2",
                "-7",
                "9223372036854775807",
                "request.devices",
                "request.memory",
                "now.hour",
                "books.leases",
            ],
            Type::One(Scalar::Text) => &[
                "'ann'",
                "''",
                "'é'",
                "holder.user",
                "holder.name",
                "request.class",
                "now.weekday",
                "request.labels.team",
                "request.labels['project']",
            ],
        };
        self.random.pick(words).to_owned()
    }

    fn bool(&mut self, depth: usize) -> String {
        let scalars = [Scalar::Int, Scalar::Double, Scalar::Text, Scalar::Bool];
        let scalar = scalars[self.random.below(scalars.len())];
        let kind = Type::One(scalar);
        match self.random.below(9) {
            0 => format!(
                "({} && {})",
                self.bool(depth.saturating_sub(1)),
                self.of(Type::One(Scalar::Bool), depth)
            ),
            1 => format!(
                "({} || {})",
                self.of(Type::One(Scalar::Bool), depth),
                self.of(Type::One(Scalar::Bool), depth)
            ),
            2 => format!("!({})", self.of(Type::One(Scalar::Bool), depth)),
            3 => format!(
                "({} ? {} : {})",
                self.of(Type::One(Scalar::Bool), depth),
                self.of(Type::One(Scalar::Bool), depth),
                self.of(Type::One(Scalar::Bool), depth)
            ),
            4 => format!(
                "({} in {})",
                self.of(kind, depth),
                self.of(Type::List(scalar), depth)
            ),
            5 => self
                .random
                .pick(&["has(request.labels.team)", "'project' in request.labels"])
                .to_owned(),
            6 => {
                let test = self.random.pick(&["contains", "startsWith", "endsWith"]);
                format!(
                    "{}.{test}({})",
                    self.leaf(Type::One(Scalar::Text)),
                    self.leaf(Type::One(Scalar::Text))
                )
            }
            7 if self.locals.len() < 2 => {
                let each = self.random.pick(&["all", "exists", "exists_one"]);
                self.each(scalar, each, Type::One(Scalar::Bool), depth)
            }
            _ => {
                let signs: &[&str] = match scalar {
                    Scalar::Bool => &["==", "!="],
                    _ => &["==", "!=", "<", "<=", ">", ">="],
                };
                let (left, right) = (self.of(kind, depth), self.of(kind, depth));
                format!("({left} {} {right})", self.random.pick(signs))
            }
        }
    }

    fn int(&mut self, depth: usize) -> String {
        let kind = Type::One(Scalar::Int);
        match self.random.below(6) {
            0 => format!("int({})", self.of(Type::One(Scalar::Double), depth)),
            1 => format!("size({})", self.of(Type::List(Scalar::Int), depth)),
            2 => format!("size({})", self.leaf(Type::One(Scalar::Text))),
            3 => format!(
                "{}({})",
                self.random.pick(&["KiB", "GiB"]),
                self.of(kind, depth)
            ),
            4 => format!(
                "{}[{}]",
                self.of(Type::List(Scalar::Int), depth),
                self.of(kind, depth)
            ),
            _ => {
                let (left, right) = (self.of(kind, depth), self.of(kind, depth));
                format!(
                    "({left} {} {right})",
                    self.random.pick(&["+", "-", "*", "/", "%"])
                )
            }
        }
    }

    fn double(&mut self, depth: usize) -> String {
        let kind = Type::One(Scalar::Double);
        match self.random.below(2) {
            0 => format!("double({})", self.of(Type::One(Scalar::Int), depth)),
            _ => {
                let (left, right) = (self.of(kind, depth), self.of(kind, depth));
                format!(
                    "({left} {} {right})",
                    self.random.pick(&["+", "-", "*", "/"])
                )
            }
        }
    }

    fn list(&mut self, item: Scalar, depth: usize) -> String {
        match self.random.below(3) {
            0 if self.locals.len() < 2 => self.each(item, "filter", Type::One(Scalar::Bool), depth),
            1 if self.locals.len() < 2 => self.each(Scalar::Int, "map", Type::One(item), depth),
            _ => self.leaf(Type::List(item)),
        }
    }

    fn each(&mut self, item: Scalar, what: &str, body: Type, depth: usize) -> String {
        let range = self.leaf(Type::List(item));
        let name = ["x", "y"][self.locals.len()];
        self.locals.push((name, item));
        let body = self.of(body, depth);
        self.locals.pop();
        format!("{range}.{what}({name}, {body})")
    }
}
