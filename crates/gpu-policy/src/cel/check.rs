//! From a parsed expression to one that can be evaluated: names, types, lengths of lists and the number of
//! steps are checked against the schema.

mod functions;
mod names;
mod operators;

use std::ops::Range;

use cel::common::ast::{CallExpr, Expr, IdedExpr, ListExpr, LiteralValue, SelectExpr, SourceInfo};

use super::Fault;
use super::eval::{self, COST_MAX, Node};
use super::inputs::Inputs;
use super::scan::{Kind, Token};
use super::schema::{Field, Fields, Scalar, Scope, Type};

/// Nodes within nodes.
const DEPTH_MAX: usize = 64;
/// Items of a literal list.
const ITEMS_MAX: u32 = 128;
/// What a comprehension over a field may count on; more items than this fail at run time once they are too many.
const LABELS_MAX: u32 = 32;

/// An expression that passed, and what it reads.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) node: Node,
    pub(super) fields: Fields,
    /// The labels of requests that it names.
    pub(super) labels: Vec<String>,
}

/// Checks `root`, parsed from `text`, for `scope`.
pub(super) fn check(
    text: &str,
    tokens: &[Token],
    info: &SourceInfo,
    root: &IdedExpr,
    scope: Scope,
) -> Result<Checked, Fault> {
    let mut checker = Checker {
        text,
        tokens,
        info,
        scope,
        fields: Fields::default(),
        labels: Vec::new(),
        locals: Vec::new(),
        depth: 0,
    };
    let whole = checker.node(root)?;
    checker.fits(&whole)?;
    if whole.cost > COST_MAX {
        let fault = Fault::new(format!(
            "the expression may take {} steps; {COST_MAX} are allowed",
            whole.cost
        ));
        return Err(fault.hint("loop over fewer items, or not within another loop"));
    }
    Ok(Checked {
        node: whole.node,
        fields: checker.fields,
        labels: checker.labels,
    })
}

struct Checker<'t> {
    text: &'t str,
    tokens: &'t [Token],
    info: &'t SourceInfo,
    scope: Scope,
    fields: Fields,
    labels: Vec<String>,
    /// The variables of the loops around, the outermost first.
    locals: Vec<(String, Scalar)>,
    depth: usize,
}

/// A checked part.
struct Part {
    node: Node,
    kind: Type,
    /// The most steps that it takes.
    cost: u32,
    /// The most items that it has, if it is a list.
    items: u32,
    /// Where it is in the text.
    range: Range<usize>,
}

type Answer = Result<Part, Fault>;

impl Checker<'_> {
    fn node(&mut self, expr: &IdedExpr) -> Answer {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let fault = Fault::new(format!(
                "the expression is nested more than {DEPTH_MAX} deep"
            ));
            return Err(fault.at(self.range(expr)).hint("make two rules of it"));
        }
        let part = match &expr.expr {
            Expr::Call(call) => self.call(expr, call),
            Expr::Ident(name) => self.ident(expr, name),
            Expr::List(list) => self.list(expr, list),
            Expr::Literal(literal) => self.literal(expr, literal),
            Expr::Select(select) => self.select(expr, select),
            Expr::Comprehension(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err(Fault::new("this is not supported here").at(self.range(expr)))
            }
        }?;
        self.depth -= 1;
        fold(part)
    }

    fn fits(&self, whole: &Part) -> Result<(), Fault> {
        let number = matches!(whole.kind, Type::One(Scalar::Int | Scalar::Double));
        let (fits, wanted) = match self.scope {
            Scope::Score => (number, "a number"),
            _ => (whole.kind == Type::One(Scalar::Bool), "true or false"),
        };
        if fits {
            return Ok(());
        }
        let message = format!("{} must say {wanted}, this is {}", self.scope, whole.kind);
        let fault = Fault::new(message).at(whole.range.clone());
        Err(match whole.kind {
            Type::One(Scalar::Int | Scalar::Double) => fault.hint("compare it with something"),
            Type::One(Scalar::Bool) => fault.hint("write `CONDITION ? 1 : 0`"),
            Type::One(Scalar::Text) => fault.hint("compare it: `== '...'`"),
            _ => fault,
        })
    }

    fn literal(&self, expr: &IdedExpr, literal: &LiteralValue) -> Answer {
        let range = self.range(expr);
        let (node, kind) = match literal {
            LiteralValue::Boolean(value) => (Node::Bool(*value.inner()), Scalar::Bool),
            LiteralValue::Double(value) => (Node::Double(*value.inner()), Scalar::Double),
            LiteralValue::Int(value) => (Node::Int(*value.inner()), Scalar::Int),
            LiteralValue::String(value) => (Node::Text(value.inner().to_owned()), Scalar::Text),
            LiteralValue::Null => {
                let fault = Fault::new("there is no `null` here").at(range);
                return Err(fault.hint("what is not set is '' or 0; ask for a label by `has(...)`"));
            }
            LiteralValue::Bytes(_) | LiteralValue::UInt(_) => {
                return Err(Fault::new("this is not supported here").at(range));
            }
        };
        Ok(part(node, Type::One(kind), range))
    }

    fn list(&mut self, expr: &IdedExpr, list: &ListExpr) -> Answer {
        let range = self.range(expr);
        let count = u32::try_from(list.elements.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(Fault::new("the list is empty").at(range));
        }
        if count > ITEMS_MAX {
            return Err(Fault::new(format!("the list has more than {ITEMS_MAX} items")).at(range));
        }
        let mut items = Vec::new();
        let mut cost = 1;
        let mut scalar = None;
        for element in &list.elements {
            let item = self.node(element)?;
            let kind = self.scalar(&item)?;
            if let Some(first) = scalar.replace(kind).filter(|first| *first != kind) {
                let message = format!("the list begins with {first}, this is {kind}");
                return Err(Fault::new(message).at(item.range));
            }
            cost = add(cost, item.cost);
            items.push(item.node);
        }
        let kind = Type::List(scalar.unwrap_or(Scalar::Text));
        Ok(Part {
            cost,
            items: count,
            ..part(Node::list(items), kind, range)
        })
    }

    fn scalar(&self, part: &Part) -> Result<Scalar, Fault> {
        match part.kind {
            Type::One(scalar) => Ok(scalar),
            other => {
                Err(Fault::new(format!("{other} cannot be within a list")).at(part.range.clone()))
            }
        }
    }

    fn ident(&mut self, expr: &IdedExpr, name: &str) -> Answer {
        let local = self.locals.iter().rposition(|(local, _)| local == name);
        if let Some(index) = local {
            let kind = Type::One(self.locals[index].1);
            return Ok(part(Node::Local(index), kind, self.range(expr)));
        }
        Err(self.unknown(self.range(expr), name))
    }

    fn select(&mut self, expr: &IdedExpr, select: &SelectExpr) -> Answer {
        let range = self.range(expr);
        let Some(path) = path(expr) else {
            let operand = self.node(&select.operand)?;
            return Err(no_fields(operand.kind, range));
        };
        if let Some(label) = path
            .strip_prefix("request.labels.")
            .filter(|label| !label.contains('.'))
        {
            let labels = self.field(Field::RequestLabels, &range)?;
            self.labels.push(label.to_owned());
            let name = part(
                Node::Text(label.to_owned()),
                Type::One(Scalar::Text),
                range.clone(),
            );
            return Ok(both(
                labels,
                name,
                Type::One(Scalar::Text),
                range,
                Node::Index,
            ));
        }
        match Field::named(&path) {
            Some(field) => self.field(field, &range),
            None => Err(self.unknown(range, &path)),
        }
    }

    fn field(&mut self, field: Field, range: &Range<usize>) -> Answer {
        if !field.is_seen_by(self.scope) {
            return Err(self.unknown(range.clone(), field.path()));
        }
        self.fields.insert(field);
        let items = match field.kind() {
            Type::List(_) => LABELS_MAX,
            _ => 0,
        };
        Ok(Part {
            items,
            ..part(Node::Field(field), field.kind(), range.clone())
        })
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr) -> Answer {
        let name = call.func_name.as_str();
        if let Some(answer) = self.operator(expr, name, &call.args) {
            return answer;
        }
        let range = self.function_range(expr);
        match (&call.target, call.args.as_slice()) {
            (None, args) => self.function(range, name, args),
            (Some(target), args) => self.method(range, name, target, args),
        }
    }

    /// The token that the parser says `expr` is at; it counts bytes.
    fn token(&self, expr: &IdedExpr) -> Option<usize> {
        let (start, _) = self.info.offset_for(expr.id)?;
        let start = usize::try_from(start).ok()?;
        self.tokens
            .iter()
            .position(|token| token.range.contains(&start))
    }

    fn token_range(&self, expr: &IdedExpr) -> Range<usize> {
        let token = self.token(expr).and_then(|index| self.tokens.get(index));
        token.map_or(0..self.text.len(), |token| token.range.clone())
    }

    /// The name before the bracket that the parser says a call is at.
    fn function_range(&self, expr: &IdedExpr) -> Range<usize> {
        let name = self
            .token(expr)
            .and_then(|index| self.tokens.get(index.checked_sub(1)?));
        let name = name.filter(|token| token.kind == Kind::Name);
        name.map_or_else(|| self.token_range(expr), |token| token.range.clone())
    }

    /// What of the text to point at for `expr`.
    fn range(&self, expr: &IdedExpr) -> Range<usize> {
        match &expr.expr {
            Expr::Select(select) => {
                let start = self.range(&select.operand).start;
                let field = self
                    .token(expr)
                    .and_then(|index| self.tokens.get(index + 1));
                let end = field.map_or(start, |token| token.range.end);
                start..end.max(start)
            }
            Expr::Call(call) if call.target.is_some() || !call.func_name.contains(['_', '@']) => {
                self.function_range(expr)
            }
            _ => self.token_range(expr),
        }
    }
}

/// `a.b.c` as it is written.
fn path(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", path(&select.operand)?, select.field))
        }
        _ => None,
    }
}

fn no_fields(kind: Type, range: Range<usize>) -> Fault {
    Fault::new(format!("{kind} has no fields")).at(range)
}

fn part(node: Node, kind: Type, range: Range<usize>) -> Part {
    Part {
        node,
        kind,
        cost: 1,
        items: 0,
        range,
    }
}

fn both(
    left: Part,
    right: Part,
    kind: Type,
    range: Range<usize>,
    make: impl FnOnce(Box<[Node; 2]>) -> Node,
) -> Part {
    let cost = add(add(left.cost, right.cost), 2);
    let node = make(Box::new([left.node, right.node]));
    Part {
        cost,
        ..part(node, kind, range)
    }
}

fn add(left: u32, right: u32) -> u32 {
    left.saturating_add(right)
}

/// `part` as a literal, where it is the same for all inputs.
fn fold(part: Part) -> Answer {
    let range = part.range.clone();
    located(part, range)
}

/// [`fold`], and what is wrong is at `at`.
fn located(part: Part, at: Range<usize>) -> Answer {
    let fixed = match &part.node {
        Node::Calculate(_, pair) | Node::Compare(_, pair) | Node::TextTest(_, pair) => {
            pair.iter().all(Node::is_literal)
        }
        Node::Negate(operand)
        | Node::ToDouble(operand)
        | Node::ToInt(operand)
        | Node::Unit(_, operand) => operand.is_literal(),
        _ => false,
    };
    if !fixed {
        return Ok(part);
    }
    let inputs = Inputs::empty();
    let value = match eval::evaluate(&part.node, &inputs) {
        Ok(value) => Node::literal(value),
        Err(failure) => return Err(Fault::new(failure.to_string()).at(at)),
    };
    Ok(match value {
        Some(node) => Part {
            node,
            cost: 1,
            ..part
        },
        None => part,
    })
}
