//! From a parsed expression to one that can be evaluated: names, types, lengths of lists and the number of
//! steps are checked against the schema.

use std::ops::Range;

use cel::common::ast::{
    CallExpr, Expr, IdedExpr, ListExpr, LiteralValue, SelectExpr, SourceInfo, operators,
};

use super::Fault;
use super::eval::{self, Arithmetic, COST_MAX, Comparison, Loop, LoopKind, Node, TextTest};
use super::inputs::Inputs;
use super::scan::{Kind, Token};
use super::schema::{Field, Fields, Scalar, Scope, Type};
use crate::suggest::{did_you_mean, list};
use crate::units::shortened;

/// Nodes within nodes.
const DEPTH_MAX: usize = 64;
/// Comprehensions within comprehensions.
const LOOPS_MAX: usize = 2;
/// Items of a literal list.
const ITEMS_MAX: u32 = 128;
/// What a comprehension over a field may count on; more items than this fail at run time once they are too many.
const LABELS_MAX: u32 = 32;

const FUNCTIONS: [&str; 8] = ["KiB", "MiB", "GiB", "TiB", "size", "has", "int", "double"];
const METHODS: [&str; 9] = [
    "contains",
    "startsWith",
    "endsWith",
    "size",
    "all",
    "exists",
    "exists_one",
    "filter",
    "map",
];

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
            return Err(self.unknown(range.clone(), &self.text[range.clone()]));
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

    /// What is wrong with a name that leads nowhere.
    fn unknown(&self, range: Range<usize>, path: &str) -> Fault {
        let shown = shortened(path);
        let root = path.split('.').next().unwrap_or(path);
        if let Some((local, kind)) = self.locals.iter().rev().find(|(local, _)| local == root) {
            return Fault::new(format!("`{local}` is {kind} and has no fields")).at(range);
        }
        let above = path.rsplit_once('.').map_or("", |(above, _)| above);
        if let Some(field) = Field::named(above).filter(|field| field.is_seen_by(self.scope)) {
            return Fault::new(format!("`{above}` is {} and has no fields", field.kind()))
                .at(range);
        }
        let group = format!("{path}.");
        let inside: Vec<&str> = self
            .scope
            .paths()
            .filter(|field| field.starts_with(&group))
            .collect();
        if !inside.is_empty() {
            let fault = Fault::new(format!("`{shown}` is not a value")).at(range);
            return fault.hint(format!("name one of its fields: {}", list(inside)));
        }
        if let Some(fault) = self.unseen(&range, path, root) {
            return fault;
        }
        let roots = self.scope.roots();
        if !roots.contains(&root) {
            return self.unknown_root(range.start, root);
        }
        let fault = Fault::new(format!("there is no `{shown}`")).at(range);
        let siblings = || {
            self.scope
                .paths()
                .filter(|field| field.split('.').next() == Some(root))
        };
        let near = did_you_mean(path, siblings());
        fault.hint(near.unwrap_or_else(|| format!("the fields are {}", list(siblings()))))
    }

    /// What is wrong with a name that other scopes see.
    fn unseen(&self, range: &Range<usize>, path: &str, root: &str) -> Option<Fault> {
        let unseen = |what: &str| Fault::new(format!("{} does not see `{what}`", self.scope));
        let roots = self.scope.roots();
        if let Some(field) = Field::named(path).filter(|_| roots.contains(&root)) {
            let audience: Vec<String> = field.scopes().map(|scope| scope.to_string()).collect();
            let fault = unseen(path).at(range.clone());
            return Some(fault.hint(format!("only {} sees it", audience.join(" or "))));
        }
        let elsewhere = Field::all().any(|field| field.root() == root) && !roots.contains(&root);
        let fault = unseen(root).at(range.start..range.start + root.len());
        elsewhere.then(|| fault.hint(format!("it sees {}", list(roots))))
    }

    /// What is wrong with the first word of a name.
    fn unknown_root(&self, start: usize, root: &str) -> Fault {
        let roots = self.scope.roots();
        let locals = self.locals.iter().map(|(local, _)| local.as_str());
        let near = did_you_mean(root, roots.iter().copied().chain(locals));
        let hint = near.or_else(|| self.field_named(root));
        let fault = Fault::new(format!("there is no `{}`", shortened(root)));
        let fault = fault.at(start..(start + root.len()).min(self.text.len()));
        fault.hint(hint.unwrap_or_else(|| {
            format!(
                "{} sees {}; text is quoted: 'text'",
                self.scope,
                list(roots)
            )
        }))
    }

    /// The field that ends like `name`.
    fn field_named(&self, name: &str) -> Option<String> {
        let end = format!(".{name}");
        let mut fields = self.scope.paths();
        let field = fields.find(|field| field.ends_with(&end))?;
        Some(format!("did you mean `{field}`?"))
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

    fn operator(&mut self, expr: &IdedExpr, name: &str, args: &[IdedExpr]) -> Option<Answer> {
        let at = self.token_range(expr);
        let comparison = match name {
            operators::EQUALS => Some(Comparison::Equal),
            operators::GREATER => Some(Comparison::Greater),
            operators::GREATER_EQUALS => Some(Comparison::GreaterEqual),
            operators::LESS => Some(Comparison::Less),
            operators::LESS_EQUALS => Some(Comparison::LessEqual),
            operators::NOT_EQUALS => Some(Comparison::NotEqual),
            _ => None,
        };
        let arithmetic = match name {
            operators::ADD => Some(Arithmetic::Add),
            operators::DIVIDE => Some(Arithmetic::Divide),
            operators::MODULO => Some(Arithmetic::Remainder),
            operators::MULTIPLY => Some(Arithmetic::Multiply),
            operators::SUBSTRACT => Some(Arithmetic::Subtract),
            _ => None,
        };
        Some(match (name, args) {
            (operators::LOGICAL_AND, [left, right]) => self.connect(left, right, Node::And),
            (operators::LOGICAL_OR, [left, right]) => self.connect(left, right, Node::Or),
            (operators::LOGICAL_NOT, [operand]) => self.not(operand),
            (operators::NEGATE, [operand]) => self.negate(operand, at),
            (operators::CONDITIONAL, [condition, then, otherwise]) => {
                self.choose(condition, then, otherwise, at)
            }
            (operators::IN, [item, list]) => self.is_in(item, list, at),
            (operators::INDEX, [list, index]) => self.index(list, index, at),
            (_, [left, right]) => match (comparison, arithmetic) {
                (Some(comparison), _) => self.compare(comparison, left, right, at),
                (None, Some(operator)) => self.calculate(operator, left, right, at),
                (None, None) => return None,
            },
            _ => return None,
        })
    }

    fn connect(
        &mut self,
        left: &IdedExpr,
        right: &IdedExpr,
        make: fn(Box<[Node; 2]>) -> Node,
    ) -> Answer {
        let (left, right) = (self.condition(left)?, self.condition(right)?);
        let range = left.range.start..right.range.end;
        Ok(both(left, right, Type::One(Scalar::Bool), range, make))
    }

    /// A part that must be true or false.
    fn condition(&mut self, expr: &IdedExpr) -> Answer {
        let part = self.node(expr)?;
        match part.kind {
            Type::One(Scalar::Bool) => Ok(part),
            other => {
                Err(Fault::new(format!("this must be true or false, it is {other}")).at(part.range))
            }
        }
    }

    fn not(&mut self, operand: &IdedExpr) -> Answer {
        let operand = self.condition(operand)?;
        Ok(Part {
            node: Node::Not(Box::new(operand.node)),
            cost: add(operand.cost, 1),
            ..operand
        })
    }

    fn negate(&mut self, operand: &IdedExpr, at: Range<usize>) -> Answer {
        let operand = self.node(operand)?;
        let range = at.start..operand.range.end.max(at.end);
        match operand.kind {
            Type::One(Scalar::Int | Scalar::Double) => Ok(Part {
                node: Node::Negate(Box::new(operand.node)),
                cost: add(operand.cost, 1),
                range,
                ..operand
            }),
            other => {
                Err(Fault::new(format!("`-` needs a number, this is {other}")).at(operand.range))
            }
        }
    }

    fn choose(
        &mut self,
        condition: &IdedExpr,
        then: &IdedExpr,
        otherwise: &IdedExpr,
        at: Range<usize>,
    ) -> Answer {
        let condition = self.condition(condition)?;
        let (then, otherwise) = (self.node(then)?, self.node(otherwise)?);
        if then.kind != otherwise.kind {
            let message = format!(
                "the two answers differ: {} and {}",
                then.kind, otherwise.kind
            );
            return Err(Fault::new(message)
                .at(at)
                .hint_of(number_hint(then.kind, otherwise.kind)));
        }
        let branches = add(then.cost, otherwise.cost);
        Ok(Part {
            kind: then.kind,
            cost: add(add(condition.cost, branches), 1),
            items: then.items.max(otherwise.items),
            range: condition.range.start..otherwise.range.end,
            node: Node::If(Box::new([condition.node, then.node, otherwise.node])),
        })
    }

    fn compare(
        &mut self,
        comparison: Comparison,
        left: &IdedExpr,
        right: &IdedExpr,
        at: Range<usize>,
    ) -> Answer {
        let (left, right) = (self.node(left)?, self.node(right)?);
        let sign = self.text[at.clone()].to_owned();
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        let fits = match (left.kind, right.kind) {
            (Type::One(Scalar::Bool), Type::One(Scalar::Bool)) => equality,
            (Type::One(left), Type::One(right)) => {
                left == right || (left.is_number() && right.is_number())
            }
            _ => false,
        };
        if !fits {
            let message = format!("`{sign}` cannot compare {} with {}", left.kind, right.kind);
            return Err(Fault::new(message)
                .at(at)
                .hint_of(comparison_hint(&left, &right)));
        }
        let range = left.range.start..right.range.end;
        Ok(both(left, right, Type::One(Scalar::Bool), range, |pair| {
            Node::Compare(comparison, pair)
        }))
    }

    fn calculate(
        &mut self,
        operator: Arithmetic,
        left: &IdedExpr,
        right: &IdedExpr,
        at: Range<usize>,
    ) -> Answer {
        let (left, right) = (self.node(left)?, self.node(right)?);
        let sign = self.text[at.clone()].to_owned();
        let kind = match (left.kind, right.kind) {
            (Type::One(Scalar::Int), Type::One(Scalar::Int)) => Scalar::Int,
            (Type::One(Scalar::Double), Type::One(Scalar::Double))
                if operator != Arithmetic::Remainder =>
            {
                Scalar::Double
            }
            (left, right) => {
                let message = format!("`{sign}` cannot take {left} and {right}");
                return Err(Fault::new(message).at(at).hint_of(number_hint(left, right)));
            }
        };
        let range = left.range.start..right.range.end;
        let part = both(left, right, Type::One(kind), range, |pair| {
            Node::Calculate(operator, pair)
        });
        located(part, at)
    }

    fn is_in(&mut self, item: &IdedExpr, list: &IdedExpr, at: Range<usize>) -> Answer {
        let (item, list) = (self.node(item)?, self.node(list)?);
        match (item.kind, list.kind) {
            (Type::One(Scalar::Text), Type::Labels) => {
                if let Node::Text(name) = &item.node {
                    self.labels.push(name.clone());
                }
            }
            (Type::One(item), Type::List(items)) if item == items => {}
            (_, Type::One(other)) => {
                let fault = Fault::new(format!("`in` needs a list on its right, this is {other}"));
                return Err(fault
                    .at(list.range)
                    .hint("write `in ['a', 'b']`, or `text.contains('a')`"));
            }
            (item, list) => {
                return Err(Fault::new(format!("`in` cannot find {item} in {list}")).at(at));
            }
        }
        let range = item.range.start..list.range.end;
        let items = list.items;
        let part = both(item, list, Type::One(Scalar::Bool), range, Node::In);
        Ok(Part {
            cost: add(part.cost, items),
            items: 0,
            ..part
        })
    }

    fn index(&mut self, list: &IdedExpr, index: &IdedExpr, at: Range<usize>) -> Answer {
        let (list, index) = (self.node(list)?, self.node(index)?);
        let kind = match (list.kind, index.kind) {
            (Type::Labels, Type::One(Scalar::Text)) => Scalar::Text,
            (Type::List(item), Type::One(Scalar::Int)) => item,
            (list, index) => {
                return Err(Fault::new(format!("{list} has no item by {index}")).at(at));
            }
        };
        if let (Type::Labels, Node::Text(name)) = (list.kind, &index.node) {
            self.labels.push(name.clone());
        }
        let range = list.range.start..index.range.end.max(at.end);
        Ok(Part {
            items: 0,
            ..both(list, index, Type::One(kind), range, Node::Index)
        })
    }

    fn function(&mut self, range: Range<usize>, name: &str, args: &[IdedExpr]) -> Answer {
        let unit = match name {
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            "TiB" => Some(1_i64 << 40),
            _ => None,
        };
        match (name, unit, args) {
            ("has", _, [label]) => self.has(label, range),
            ("size", _, [operand]) => self.size(operand, range),
            ("int" | "double", _, [operand]) => {
                let (make, kind): (fn(Box<Node>) -> Node, _) = match name {
                    "int" => (Node::ToInt, Scalar::Int),
                    _ => (Node::ToDouble, Scalar::Double),
                };
                self.number(operand, range, name, kind, make)
            }
            (_, Some(bytes), [operand]) => {
                self.number(operand, range, name, Scalar::Int, |operand| {
                    Node::Unit(bytes, operand)
                })
            }
            (name, _, _) if FUNCTIONS.contains(&name) => {
                Err(Fault::new(format!("`{name}` takes one value")).at(range))
            }
            (name, _, _) if METHODS.contains(&name) => {
                let fault = Fault::new(format!("`{name}` follows what it is about")).at(range);
                Err(fault.hint(format!("write `VALUE.{name}(...)`")))
            }
            (name, _, _) => Err(no_function(name, range)),
        }
    }

    fn number(
        &mut self,
        operand: &IdedExpr,
        range: Range<usize>,
        name: &str,
        kind: Scalar,
        make: impl FnOnce(Box<Node>) -> Node,
    ) -> Answer {
        let operand = self.node(operand)?;
        if !matches!(operand.kind, Type::One(Scalar::Int | Scalar::Double)) {
            let message = format!("`{name}` needs a number, this is {}", operand.kind);
            return Err(Fault::new(message).at(operand.range));
        }
        let whole = range.start..operand.range.end;
        let part = Part {
            cost: add(operand.cost, 1),
            ..part(make(Box::new(operand.node)), Type::One(kind), whole)
        };
        located(part, range)
    }

    fn has(&mut self, label: &IdedExpr, range: Range<usize>) -> Answer {
        let path = path(label).unwrap_or_default();
        let name = path
            .strip_prefix("request.labels.")
            .filter(|name| !name.contains('.'));
        let Some(name) = name else {
            let known = Field::named(&path).is_some_and(|field| field.is_seen_by(self.scope));
            let message = match known {
                true => format!("`{path}` is always there"),
                false => "`has` asks for a label of the request".to_owned(),
            };
            return Err(Fault::new(message)
                .at(self.range(label))
                .hint("write `has(request.labels.NAME)`"));
        };
        self.field(Field::RequestLabels, &self.range(label))?;
        self.labels.push(name.to_owned());
        let whole = range.start..self.range(label).end;
        Ok(part(
            Node::HasLabel(name.to_owned()),
            Type::One(Scalar::Bool),
            whole,
        ))
    }

    fn size(&mut self, operand: &IdedExpr, range: Range<usize>) -> Answer {
        let operand = self.node(operand)?;
        if matches!(
            operand.kind,
            Type::One(Scalar::Bool | Scalar::Double | Scalar::Int)
        ) {
            return Err(Fault::new(format!("{} has no size", operand.kind)).at(operand.range));
        }
        let whole = range.start.min(operand.range.start)..range.end.max(operand.range.end);
        let node = Node::Size(Box::new(operand.node));
        Ok(Part {
            cost: add(operand.cost, 1),
            ..part(node, Type::One(Scalar::Int), whole)
        })
    }

    fn method(
        &mut self,
        range: Range<usize>,
        name: &str,
        target: &IdedExpr,
        args: &[IdedExpr],
    ) -> Answer {
        let test = match name {
            "contains" => Some(TextTest::Contains),
            "endsWith" => Some(TextTest::EndsWith),
            "startsWith" => Some(TextTest::StartsWith),
            _ => None,
        };
        let each = match name {
            "all" => Some(LoopKind::All),
            "exists" => Some(LoopKind::Exists),
            "exists_one" => Some(LoopKind::ExistsOne),
            "filter" => Some(LoopKind::Filter),
            "map" => Some(LoopKind::Map),
            _ => None,
        };
        match (test, each, args) {
            (Some(test), _, [argument]) => self.text_test(test, target, argument, range, name),
            (_, Some(what), [variable, body]) => {
                self.each(what, target, variable, None, body, range)
            }
            (_, Some(LoopKind::Map), [variable, only, body]) => {
                self.each(LoopKind::Map, target, variable, Some(only), body, range)
            }
            (_, _, []) if name == "size" => self.size(target, range),
            (Some(_), ..) => Err(Fault::new(format!("`{name}` takes one text")).at(range)),
            (_, Some(_), _) => {
                let fault =
                    Fault::new(format!("`{name}` takes a name and an expression")).at(range);
                Err(fault.hint(format!("write `LIST.{name}(x, ...)`")))
            }
            _ if FUNCTIONS.contains(&name) => {
                let fault = Fault::new(format!("`{name}` comes before what it is about")).at(range);
                Err(fault.hint(format!("write `{name}(...)`")))
            }
            _ => Err(no_function(name, range)),
        }
    }

    fn text_test(
        &mut self,
        test: TextTest,
        target: &IdedExpr,
        argument: &IdedExpr,
        range: Range<usize>,
        name: &str,
    ) -> Answer {
        let (text, part) = (self.node(target)?, self.node(argument)?);
        if matches!(text.kind, Type::List(_)) && test == TextTest::Contains {
            let fault =
                Fault::new(format!("`{name}` is about text, this is {}", text.kind)).at(range);
            return Err(fault.hint("write `ITEM in LIST`"));
        }
        for operand in [&text, &part] {
            if operand.kind != Type::One(Scalar::Text) {
                let message = format!("`{name}` is about text, this is {}", operand.kind);
                return Err(Fault::new(message).at(operand.range.clone()));
            }
        }
        let whole = text.range.start..part.range.end;
        Ok(both(text, part, Type::One(Scalar::Bool), whole, |pair| {
            Node::TextTest(test, pair)
        }))
    }

    fn each(
        &mut self,
        what: LoopKind,
        target: &IdedExpr,
        variable: &IdedExpr,
        only: Option<&IdedExpr>,
        body: &IdedExpr,
        range: Range<usize>,
    ) -> Answer {
        let target = self.node(target)?;
        let Type::List(item) = target.kind else {
            let fault =
                Fault::new(format!("there are no items in {}", target.kind)).at(target.range);
            return Err(fault.hint("loops are over `device.labels` and lists such as `['a', 'b']`"));
        };
        let name = self.variable(variable)?;
        if self.locals.len() >= LOOPS_MAX {
            let fault = Fault::new(format!("loops are within loops more than {LOOPS_MAX} deep"));
            return Err(fault.at(range));
        }
        self.locals.push((name, item));
        let only = only.map(|only| self.condition(only)).transpose()?;
        let body = match what {
            LoopKind::Map => self.node(body)?,
            _ => self.condition(body)?,
        };
        self.locals.pop();
        let kind = match what {
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => Type::One(Scalar::Bool),
            LoopKind::Filter => target.kind,
            LoopKind::Map => Type::List(self.scalar(&body)?),
        };
        let once = add(add(body.cost, only.as_ref().map_or(0, |only| only.cost)), 3);
        Ok(Part {
            kind,
            cost: add(add(target.cost, 1), once.saturating_mul(target.items)),
            items: target.items,
            range: target.range.start..body.range.end.max(range.end),
            node: Node::Loop(Box::new(Loop {
                what,
                range: target.node,
                body: body.node,
                only: only.map(|only| only.node),
            })),
        })
    }

    /// The name that a loop gives to its items.
    fn variable(&self, variable: &IdedExpr) -> Result<String, Fault> {
        let range = self.range(variable);
        let Expr::Ident(name) = &variable.expr else {
            return Err(Fault::new("this must be a name for the items")
                .at(range)
                .hint("such as `x`"));
        };
        let taken = self.locals.iter().any(|(local, _)| local == name);
        let root = Field::all().any(|field| field.root() == name);
        match taken || root || name.starts_with('.') {
            true => {
                Err(Fault::new(format!("`{}` has a meaning already", shortened(name))).at(range))
            }
            false => Ok(name.clone()),
        }
    }

    /// The token that the parser says `expr` is at.
    fn token(&self, expr: &IdedExpr) -> Option<usize> {
        let (start, _) = self.info.offset_for(expr.id)?;
        let start = self.byte(usize::try_from(start).ok()?);
        self.tokens
            .iter()
            .position(|token| token.range.contains(&start))
    }

    /// The parser counts characters.
    fn byte(&self, place: usize) -> usize {
        let mut places = self.text.char_indices();
        places.nth(place).map_or(self.text.len(), |(byte, _)| byte)
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

fn no_function(name: &str, range: Range<usize>) -> Fault {
    let fault = Fault::new(format!("there is no function `{}`", shortened(name))).at(range);
    let known = FUNCTIONS.into_iter().chain(METHODS);
    let near = did_you_mean(name, known.clone());
    fault.hint(match name {
        "matches" => "use `startsWith`, `endsWith`, `contains` or `in`".to_owned(),
        _ => near.unwrap_or_else(|| format!("the functions are {}", list(known))),
    })
}

fn number_hint(left: Type, right: Type) -> Option<String> {
    match (left, right) {
        (Type::One(Scalar::Int), Type::One(Scalar::Double))
        | (Type::One(Scalar::Double), Type::One(Scalar::Int)) => {
            Some("write a double as `2.0`, or convert by `double(...)` or `int(...)`".to_owned())
        }
        (Type::One(Scalar::Text), _) | (_, Type::One(Scalar::Text)) => {
            Some("texts are not joined here: compare the parts".to_owned())
        }
        _ => None,
    }
}

fn comparison_hint(left: &Part, right: &Part) -> Option<String> {
    let number = |part: &Part| match &part.node {
        Node::Text(text) => Some(text.clone()),
        _ => None,
    };
    let text = number(left).or_else(|| number(right));
    match (left.kind, right.kind, text) {
        (_, _, Some(text))
            if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() =>
        {
            Some(format!(
                "write the number without quotes: {}",
                shortened(&text)
            ))
        }
        (_, _, Some(text)) if crate::units::parse_size(&text).is_ok() => {
            Some("sizes are written `GiB(40)`".to_owned())
        }
        (Type::List(_) | Type::Labels, ..) | (_, Type::List(_) | Type::Labels, _) => {
            Some("write `ITEM in LIST`".to_owned())
        }
        _ => None,
    }
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
