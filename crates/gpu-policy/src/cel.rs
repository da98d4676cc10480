//! Expressions of policies and requests, in the Common Expression Language.
//!
//! Text goes through four guards before it is an [`Expression`]: a scanner that bounds everything a parser
//! recurses over, the parser of the `cel` crate on a deep stack, a check of names, types and steps against the
//! schema, and a probe. What is left is a typed tree that is evaluated here rather than by the crate: an
//! evaluation ends within a number of steps, allocates next to nothing and has an error for a value. The
//! tests hold that both agree.

mod check;
mod eval;
mod inputs;
mod probe;
mod scan;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cel::Env;
use gpu_lease::Device;

use self::check::Checked;
use self::eval::{Failure, Value};
pub(crate) use self::inputs::Inputs;
pub(crate) use self::scan::TEXT_BYTES_MAX;
use self::scan::Token;
use self::schema::Field;
pub(crate) use self::schema::Scope;
use crate::units::shortened;

/// Of more expressions than this, half are not kept for the next time that their text is compiled.
const KEPT_MAX: usize = 2048;
/// As many requests may wait, each with a filter of its own, before one is compiled again.
const KEPT_FILTERS_MAX: usize = 4096;

const PARSER_STACK_BYTES: usize = 8 << 20;
const PARSER_DEPTH_MAX: u16 = 32;
const PARSER_ERRORS_MAX: u32 = 1;

/// What is wrong with the text of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// A fragment that names the thing in backticks.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Which bytes of the text it is about; `None` is the whole.
    pub(crate) span: Option<Range<usize>>,
}

/// An expression that passed all guards. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Expression(Arc<Compiled>);

struct Compiled {
    text: String,
    checked: Checked,
}

/// A set of fields that expressions read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads(schema::Fields);

impl Expression {
    /// What `text` says in `scope`. A text that was compiled of late is not compiled again.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(crate) fn compile(text: &str, scope: Scope) -> Result<Self, Fault> {
        static KEPT: Kept = Kept::new(KEPT_MAX);
        static KEPT_FILTERS: Kept = Kept::new(KEPT_FILTERS_MAX);
        let kept = match scope {
            Scope::Select => &KEPT_FILTERS,
            _ => &KEPT,
        };
        if let Some(expression) = kept.get(text, scope) {
            return Ok(expression);
        }
        let expression = compile_anew(text, scope)?;
        kept.keep(scope, &expression);
        Ok(expression)
    }

    /// The text that it was compiled from.
    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether it holds for `inputs`.
    ///
    /// # Errors
    /// It has no value for them, and why.
    pub(crate) fn test(&self, inputs: &Inputs<'_>) -> Result<bool, String> {
        match self.evaluate(inputs) {
            Ok(Value::Bool(value)) => Ok(value),
            Ok(_) => Err(Failure::Mismatch.to_string()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Its number for `inputs`; never infinite.
    ///
    /// # Errors
    /// It has no value for them, and why.
    pub(crate) fn number(&self, inputs: &Inputs<'_>) -> Result<f64, String> {
        let value = self.evaluate(inputs).and_then(|value| eval::number(&value));
        value.map_err(|failure| failure.to_string())
    }

    /// What it reads.
    pub(crate) fn reads(&self) -> Reads {
        Reads(self.0.checked.fields)
    }

    /// Whether it reads a field of `books`.
    pub(crate) fn reads_books(&self) -> bool {
        self.reads().books()
    }

    /// Whether it reads a field of `now`.
    pub(crate) fn reads_now(&self) -> bool {
        self.reads().now()
    }

    fn evaluate<'i>(&'i self, inputs: &'i Inputs<'_>) -> Result<Value<'i>, Failure> {
        #[cfg(test)]
        EVALUATIONS.with(|count| count.set(count.get() + 1));
        eval::evaluate(&self.0.checked.node, inputs)
    }
}

#[cfg(test)]
thread_local! {
    /// How many expressions this thread evaluated.
    pub(crate) static EVALUATIONS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.text())
    }
}

impl Reads {
    /// What either reads.
    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0.union(other.0))
    }

    /// Whether a field of `books` is read.
    pub(crate) fn books(self) -> bool {
        self.0.iter().any(Field::is_of_books)
    }

    /// Whether a field of `now` is read.
    pub(crate) fn now(self) -> bool {
        self.0.iter().any(Field::is_of_now)
    }

    /// The smallest step of the clock that can change what is read.
    pub(crate) fn step(self) -> Option<Step> {
        let reads = |fields: &[Field]| fields.iter().any(|field| self.0.contains(*field));
        match () {
            () if reads(&[Field::NowMinute, Field::NowClock]) => Some(Step::Minute),
            () if reads(&[Field::NowHour]) => Some(Step::Hour),
            () if self.now() => Some(Step::Day),
            () => None,
        }
    }
}

/// A step of a civil clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Minute,
    Hour,
    Day,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            span: None,
        }
    }

    fn at(self, span: Range<usize>) -> Self {
        let span = Some(span);
        Self { span, ..self }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        self.hint_of(Some(hint.into()))
    }

    fn hint_of(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }
}

/// Whether `device`, with `labels`, passes the filter `text`; one that does not compile is passed by none.
pub(crate) fn select_filter(
    text: &str,
    device: &Device,
    labels: &[String],
) -> Result<bool, String> {
    let filter = Expression::compile(text, Scope::Select).map_err(|fault| fault.message)?;
    filter.test(&Inputs::of_device(device, labels))
}

fn compile_anew(text: &str, scope: Scope) -> Result<Expression, Fault> {
    let tokens = scan::scan(text)?;
    let checked = on_deep_stack(|| parsed(text, &tokens, scope))?;
    probe::probe(&checked)?;
    let text = text.to_owned();
    Ok(Expression(Arc::new(Compiled { text, checked })))
}

fn parsed(text: &str, tokens: &[Token], scope: Scope) -> Result<Checked, Fault> {
    // An environment without macros leaves `all`, `has` and so on as the calls that they are written as.
    let parser = Env::default().with_optional_support(false).parser();
    let parser = parser
        .max_recursion_depth(PARSER_DEPTH_MAX)
        .error_recovery_limit(PARSER_ERRORS_MAX);
    match parser.parse_with_source_info(text) {
        Ok((root, info)) => check::check(text, tokens, &info, &root, scope),
        Err(errors) => {
            let places = errors
                .errors
                .iter()
                .map(|error| error.pos)
                .filter(|pos| pos.0 > 0);
            Err(unparsed(text, tokens, places.min()))
        }
    }
}

/// What is wrong at a line and column where the parser stopped.
fn unparsed(text: &str, tokens: &[Token], place: Option<(isize, isize)>) -> Fault {
    let number = |number: isize| usize::try_from(number - 1).unwrap_or_default();
    let byte = place.map(|(line, column)| {
        let before: usize = text
            .split_inclusive('\n')
            .take(number(line))
            .map(str::len)
            .sum();
        let rest = text[before..].char_indices().nth(number(column));
        rest.map_or(text.len(), |(offset, _)| before + offset)
    });
    let token = byte.and_then(|byte| tokens.iter().find(|token| token.range.end > byte));
    match (byte, token) {
        (Some(_), Some(token)) => {
            let word = shortened(&text[token.range.clone()]);
            Fault::new(format!("`{word}` is not expected here")).at(token.range.clone())
        }
        (Some(_), None) => {
            let last = tokens
                .last()
                .map_or(0..text.len(), |token| token.range.clone());
            Fault::new("the expression is not complete").at(last)
        }
        (None, _) => Fault::new("this is no expression"),
    }
}

/// What `work` says on a stack that is deep enough for everything that the scanner lets through.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("gpu-policy-parse".to_owned());
        let parser = builder
            .stack_size(PARSER_STACK_BYTES)
            .spawn_scoped(scope, work);
        match parser.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Fault::new("the expression cannot be parsed")),
        }
    })
}

/// Expressions by what they were compiled from; one half goes when it is full, so that a few too many do not
/// make all be compiled again.
struct Kept {
    most: usize,
    expressions: Mutex<BTreeMap<(Scope, String), Expression>>,
}

impl Kept {
    const fn new(most: usize) -> Self {
        let expressions = Mutex::new(BTreeMap::new());
        Self { most, expressions }
    }

    fn get(&self, text: &str, scope: Scope) -> Option<Expression> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let expressions = self
            .expressions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        expressions.get(&(scope, text.to_owned())).cloned()
    }

    fn keep(&self, scope: Scope, expression: &Expression) {
        let mut expressions = self
            .expressions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if expressions.len() >= self.most {
            let mut stays = false;
            expressions.retain(|_, _| {
                stays = !stays;
                stays
            });
        }
        expressions.insert((scope, expression.text().to_owned()), expression.clone());
    }
}
