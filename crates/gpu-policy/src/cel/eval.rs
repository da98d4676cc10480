//! Evaluation of a checked expression: total, without recursion beyond what the check allowed, and with a
//! number of steps that it cannot exceed. Every failure is a value.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::inputs::Inputs;
use super::schema::Field;

/// The most steps that a check lets an expression take by its declared list lengths, about half a millisecond.
pub(super) const COST_MAX: u32 = 20_000;
/// The most steps that an evaluation takes whatever the lists of the moment are.
const STEPS_MAX: u32 = 2 * COST_MAX;

/// A checked expression. The types fit; what can still fail is what depends on values.
#[derive(Debug)]
pub(super) enum Node {
    And(Box<[Node; 2]>),
    Bool(bool),
    Calculate(Arithmetic, Box<[Node; 2]>),
    Compare(Comparison, Box<[Node; 2]>),
    Double(f64),
    Field(Field),
    /// Whether the labels have this one.
    HasLabel(String),
    If(Box<[Node; 3]>),
    /// An item among the items of a list, or a name among the names of labels.
    In(Box<[Node; 2]>),
    Index(Box<[Node; 2]>),
    Int(i64),
    List(Vec<Node>),
    /// The variable of the loop that is this many loops from the outermost.
    Local(usize),
    Loop(Box<Loop>),
    Negate(Box<Node>),
    Not(Box<Node>),
    Or(Box<[Node; 2]>),
    Size(Box<Node>),
    Text(String),
    /// A list of literal texts.
    Texts(Vec<String>),
    TextTest(TextTest, Box<[Node; 2]>),
    ToDouble(Box<Node>),
    ToInt(Box<Node>),
    /// A number of units of this many bytes, as bytes.
    Unit(i64, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Divide,
    Multiply,
    Remainder,
    Subtract,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    NotEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextTest {
    Contains,
    EndsWith,
    StartsWith,
}

/// A comprehension.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) what: LoopKind,
    pub(super) range: Node,
    /// The condition, or what each item is mapped to.
    pub(super) body: Node,
    /// Which items are mapped at all.
    pub(super) only: Option<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopKind {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// A value of one evaluation.
#[derive(Clone, Debug)]
pub(super) enum Value<'i> {
    Bool(bool),
    Double(f64),
    Int(i64),
    Labels(&'i BTreeMap<String, String>),
    List(Vec<Value<'i>>),
    Text(&'i str),
    Texts(&'i [String]),
}

/// Why an expression has no value for some inputs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Failure {
    #[error("division by zero")]
    DivisionByZero,
    #[error("there is no item {0} in the list")]
    Index(i64),
    /// The check did not do its work.
    #[error("the types do not fit")]
    Mismatch,
    #[error("the request has no label `{}`", crate::units::shortened(.0))]
    NoLabel(String),
    #[error("the result is not a number")]
    NotANumber,
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    #[error("the lists are too long")]
    Steps,
}

type Answer<T> = Result<T, Failure>;

/// The value of `node` for `inputs`.
pub(super) fn evaluate<'i>(node: &'i Node, inputs: &'i Inputs<'_>) -> Answer<Value<'i>> {
    let mut run = Run {
        inputs,
        locals: Vec::new(),
        steps: 0,
    };
    run.value(node)
}

/// One evaluation.
struct Run<'i> {
    inputs: &'i Inputs<'i>,
    locals: Vec<Value<'i>>,
    steps: u32,
}

impl<'i> Run<'i> {
    fn value(&mut self, node: &'i Node) -> Answer<Value<'i>> {
        self.step(1)?;
        Ok(match node {
            Node::Bool(value) => Value::Bool(*value),
            Node::Double(value) => Value::Double(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Text(value) => Value::Text(value),
            Node::Texts(values) => Value::Texts(values),
            Node::Field(field) => self.inputs.read(*field),
            Node::Local(index) => self.locals.get(*index).cloned().ok_or(Failure::Mismatch)?,
            Node::List(items) => self.list(items)?,
            Node::If(branches) => {
                let [condition, then, otherwise] = &**branches;
                let branch = if self.bool(condition)? {
                    then
                } else {
                    otherwise
                };
                self.value(branch)?
            }
            Node::Index(pair) => self.index(pair)?,
            Node::Loop(each) => self.each(each)?,
            Node::Calculate(operator, pair) => {
                let (left, right) = self.pair(pair)?;
                calculate(*operator, left, right)?
            }
            Node::Negate(operand) => match self.value(operand)? {
                Value::Int(value) => Value::Int(value.checked_neg().ok_or(overflow())?),
                Value::Double(value) => Value::Double(-value),
                _ => return Err(Failure::Mismatch),
            },
            Node::Size(operand) => Value::Int(size(&self.value(operand)?)?),
            Node::ToDouble(operand) => Value::Double(double(&self.value(operand)?)?),
            Node::ToInt(operand) => Value::Int(whole(&self.value(operand)?)?),
            Node::Unit(bytes, operand) => Value::Int(unit(*bytes, &self.value(operand)?)?),
            Node::And(_)
            | Node::Or(_)
            | Node::Not(_)
            | Node::Compare(..)
            | Node::In(_)
            | Node::HasLabel(_)
            | Node::TextTest(..) => Value::Bool(self.bool(node)?),
        })
    }

    fn bool(&mut self, node: &'i Node) -> Answer<bool> {
        match node {
            Node::And(pair) => self.connect(pair, false),
            Node::Or(pair) => self.connect(pair, true),
            Node::Not(operand) => Ok(!self.bool(operand)?),
            Node::Compare(comparison, pair) => {
                let (left, right) = self.pair(pair)?;
                comparison.holds(&left, &right)
            }
            Node::In(pair) => self.is_in(pair),
            Node::HasLabel(name) => match self.inputs.read(Field::RequestLabels) {
                Value::Labels(labels) => Ok(labels.contains_key(name)),
                _ => Err(Failure::Mismatch),
            },
            Node::TextTest(test, pair) => match self.pair(pair)? {
                (Value::Text(text), Value::Text(part)) => Ok(test.holds(text, part)),
                _ => Err(Failure::Mismatch),
            },
            node => match self.value(node)? {
                Value::Bool(value) => Ok(value),
                _ => Err(Failure::Mismatch),
            },
        }
    }

    fn pair(&mut self, pair: &'i [Node; 2]) -> Answer<(Value<'i>, Value<'i>)> {
        self.step(1)?;
        Ok((self.value(&pair[0])?, self.value(&pair[1])?))
    }

    /// `&&` and `||`: the side that decides does so though the other fails.
    fn connect(&mut self, pair: &'i [Node; 2], decisive: bool) -> Answer<bool> {
        self.step(1)?;
        match self.bool(&pair[0]) {
            Ok(value) if value == decisive => Ok(decisive),
            Ok(_) => self.bool(&pair[1]),
            Err(Failure::Steps) => Err(Failure::Steps),
            Err(failure) => match self.bool(&pair[1])? {
                value if value == decisive => Ok(decisive),
                _ => Err(failure),
            },
        }
    }

    fn list(&mut self, items: &'i [Node]) -> Answer<Value<'i>> {
        let items = items.iter().map(|item| self.value(item));
        Ok(Value::List(items.collect::<Answer<_>>()?))
    }

    fn is_in(&mut self, pair: &'i [Node; 2]) -> Answer<bool> {
        let (item, list) = self.pair(pair)?;
        match (item, list) {
            (Value::Text(name), Value::Labels(labels)) => Ok(labels.contains_key(name)),
            (Value::Text(text), Value::Texts(texts)) => {
                self.step(texts.len())?;
                Ok(texts.iter().any(|one| one == text))
            }
            (item, Value::List(items)) => {
                self.step(items.len())?;
                Ok(items
                    .iter()
                    .any(|one| one.order(&item) == Some(Ordering::Equal)))
            }
            _ => Err(Failure::Mismatch),
        }
    }

    fn index(&mut self, pair: &'i [Node; 2]) -> Answer<Value<'i>> {
        match self.pair(pair)? {
            (Value::Labels(labels), Value::Text(name)) => match labels.get(name) {
                Some(text) => Ok(Value::Text(text)),
                None => Err(Failure::NoLabel(name.to_owned())),
            },
            (list, Value::Int(index)) => {
                let place = usize::try_from(index).map_err(|_| Failure::Index(index))?;
                list.item(place).ok_or(Failure::Index(index))
            }
            _ => Err(Failure::Mismatch),
        }
    }

    fn each(&mut self, each: &'i Loop) -> Answer<Value<'i>> {
        let range = self.value(&each.range)?;
        match each.what {
            LoopKind::All => self.decide(each, &range, false),
            LoopKind::Exists => self.decide(each, &range, true),
            LoopKind::ExistsOne => Ok(Value::Bool(self.count(each, &range)? == 1)),
            LoopKind::Filter | LoopKind::Map => self.collect(each, &range),
        }
    }

    /// `all` and `exists`: an item that decides does so though others fail.
    fn decide(&mut self, each: &'i Loop, range: &Value<'i>, decisive: bool) -> Answer<Value<'i>> {
        let mut failed = None;
        for item in range.items() {
            match self.with(item, |run| run.bool(&each.body)) {
                Ok(value) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                Err(Failure::Steps) => return Err(Failure::Steps),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn count(&mut self, each: &'i Loop, range: &Value<'i>) -> Answer<usize> {
        let mut count = 0;
        for item in range.items() {
            count += usize::from(self.with(item, |run| run.bool(&each.body))?);
        }
        Ok(count)
    }

    fn collect(&mut self, each: &'i Loop, range: &Value<'i>) -> Answer<Value<'i>> {
        let mut items = Vec::new();
        for item in range.items() {
            let kept = match (&each.only, each.what) {
                (Some(only), _) => self.with(item.clone(), |run| run.bool(only))?,
                (None, LoopKind::Filter) => self.with(item.clone(), |run| run.bool(&each.body))?,
                (None, _) => true,
            };
            match (kept, each.what) {
                (false, _) => {}
                (true, LoopKind::Filter) => items.push(item),
                (true, _) => items.push(self.with(item, |run| run.value(&each.body))?),
            }
        }
        Ok(Value::List(items))
    }

    /// What `work` says while `item` is the variable of the innermost loop.
    fn with<T>(&mut self, item: Value<'i>, work: impl FnOnce(&mut Self) -> Answer<T>) -> Answer<T> {
        self.step(1)?;
        self.locals.push(item);
        let answer = work(self);
        self.locals.pop();
        answer
    }

    fn step(&mut self, count: usize) -> Answer<()> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.steps = self.steps.saturating_add(count);
        match self.steps <= STEPS_MAX {
            true => Ok(()),
            false => Err(Failure::Steps),
        }
    }
}

impl<'i> Value<'i> {
    /// How two values of the same type, or two numbers, compare; not at all where one is not a number.
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(left), Self::Bool(right)) => Some(left.cmp(right)),
            (Self::Double(left), Self::Double(right)) => left.partial_cmp(right),
            (Self::Double(left), Self::Int(right)) => left.partial_cmp(&as_double(*right)),
            (Self::Int(left), Self::Double(right)) => as_double(*left).partial_cmp(right),
            (Self::Int(left), Self::Int(right)) => Some(left.cmp(right)),
            (Self::Text(left), Self::Text(right)) => Some(left.cmp(right)),
            _ => None,
        }
    }

    /// The items of a list.
    fn items(&self) -> Box<dyn Iterator<Item = Self> + '_> {
        match self {
            Self::List(items) => Box::new(items.iter().cloned()),
            Self::Texts(texts) => Box::new(texts.iter().map(|text| Self::Text(text))),
            _ => Box::new(std::iter::empty()),
        }
    }

    fn item(&self, place: usize) -> Option<Self> {
        match self {
            Self::List(items) => items.get(place).cloned(),
            Self::Texts(texts) => texts.get(place).map(|text| Self::Text(text)),
            _ => None,
        }
    }

    /// Appends bytes that only an equal value appends.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let mut text = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        match self {
            Self::Bool(value) => bytes.push(u8::from(*value)),
            Self::Double(value) => bytes.extend(value.to_bits().to_le_bytes()),
            Self::Int(value) => bytes.extend(value.to_le_bytes()),
            Self::Labels(labels) => {
                for (name, value) in *labels {
                    text(name);
                    text(value);
                }
                // No name is as long as this says.
                bytes.extend(u64::MAX.to_le_bytes());
            }
            Self::Text(value) => text(value),
            Self::List(_) | Self::Texts(_) => {
                let items: Vec<Self> = self.items().collect();
                bytes.extend((items.len() as u64).to_le_bytes());
                items.iter().for_each(|item| item.write(bytes));
            }
        }
    }
}

/// A number that is one.
pub(super) fn number(value: &Value<'_>) -> Answer<f64> {
    double(value).and_then(|value| match value.is_finite() {
        true => Ok(value),
        false => Err(Failure::NotANumber),
    })
}

impl Comparison {
    fn holds(self, left: &Value<'_>, right: &Value<'_>) -> Answer<bool> {
        let order = left.order(right);
        if order.is_none() && !matches!(self, Self::Equal | Self::NotEqual) {
            return Err(Failure::NotANumber);
        }
        Ok(match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterEqual => order.is_some_and(Ordering::is_ge),
            Self::Less => order == Some(Ordering::Less),
            Self::LessEqual => order.is_some_and(Ordering::is_le),
            Self::NotEqual => order != Some(Ordering::Equal),
        })
    }
}

impl TextTest {
    fn holds(self, text: &str, part: &str) -> bool {
        match self {
            Self::Contains => text.contains(part),
            Self::EndsWith => text.ends_with(part),
            Self::StartsWith => text.starts_with(part),
        }
    }
}

fn calculate<'i>(operator: Arithmetic, left: Value<'i>, right: Value<'i>) -> Answer<Value<'i>> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => {
            whole_numbers(operator, left, right).map(Value::Int)
        }
        (Value::Double(left), Value::Double(right)) => {
            doubles(operator, left, right).map(Value::Double)
        }
        _ => Err(Failure::Mismatch),
    }
}

fn whole_numbers(operator: Arithmetic, left: i64, right: i64) -> Answer<i64> {
    let divides = matches!(operator, Arithmetic::Divide | Arithmetic::Remainder);
    if divides && right == 0 {
        return Err(Failure::DivisionByZero);
    }
    let result = match operator {
        Arithmetic::Add => left.checked_add(right),
        Arithmetic::Divide => left.checked_div(right),
        Arithmetic::Multiply => left.checked_mul(right),
        Arithmetic::Remainder => left.checked_rem(right),
        Arithmetic::Subtract => left.checked_sub(right),
    };
    result.ok_or(overflow())
}

fn doubles(operator: Arithmetic, left: f64, right: f64) -> Answer<f64> {
    Ok(match operator {
        Arithmetic::Add => left + right,
        Arithmetic::Divide => left / right,
        Arithmetic::Multiply => left * right,
        Arithmetic::Remainder => return Err(Failure::Mismatch),
        Arithmetic::Subtract => left - right,
    })
}

fn overflow() -> Failure {
    Failure::OutOfRange("the result")
}

/// Text counts in characters.
fn size(value: &Value<'_>) -> Answer<i64> {
    let size = match value {
        Value::Labels(labels) => labels.len(),
        Value::List(items) => items.len(),
        Value::Text(text) => text.chars().count(),
        Value::Texts(texts) => texts.len(),
        Value::Bool(_) | Value::Double(_) | Value::Int(_) => return Err(Failure::Mismatch),
    };
    i64::try_from(size).map_err(|_| overflow())
}

fn double(value: &Value<'_>) -> Answer<f64> {
    match value {
        Value::Double(value) => Ok(*value),
        Value::Int(value) => Ok(as_double(*value)),
        _ => Err(Failure::Mismatch),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "that is what `double(int)` means"
)]
fn as_double(value: i64) -> f64 {
    value as f64
}

/// An int, or a double without its fraction.
fn whole(value: &Value<'_>) -> Answer<i64> {
    match value {
        Value::Int(value) => Ok(*value),
        Value::Double(value) => truncated(*value),
        _ => Err(Failure::Mismatch),
    }
}

fn unit(bytes: i64, value: &Value<'_>) -> Answer<i64> {
    match value {
        Value::Int(count) => count
            .checked_mul(bytes)
            .ok_or(Failure::OutOfRange("the size")),
        Value::Double(count) => truncated(count * as_double(bytes)),
        _ => Err(Failure::Mismatch),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn truncated(value: f64) -> Answer<i64> {
    // 2^63 is exact as a double, and the first number that does not fit.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    match value > -LIMIT && value < LIMIT {
        true => Ok(value as i64),
        false => Err(Failure::OutOfRange("the number")),
    }
}

impl Node {
    /// The literal that is this value, for values that have no parts that live elsewhere.
    pub(super) fn literal(value: Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(value),
            Value::Double(value) => Self::Double(value),
            Value::Int(value) => Self::Int(value),
            Value::Text(value) => Self::Text(value.to_owned()),
            Value::Labels(_) | Value::List(_) | Value::Texts(_) => return None,
        })
    }

    /// Whether it has the same value for all inputs.
    pub(super) fn is_literal(&self) -> bool {
        matches!(
            self,
            Self::Bool(_) | Self::Double(_) | Self::Int(_) | Self::Text(_) | Self::Texts(_)
        )
    }

    /// A list of `items`.
    pub(super) fn list(items: Vec<Self>) -> Self {
        let text = |item: &Self| match item {
            Self::Text(text) => Some(text.clone()),
            _ => None,
        };
        let texts: Option<Vec<String>> = items.iter().map(text).collect();
        texts.map_or(Self::List(items), Self::Texts)
    }
}
