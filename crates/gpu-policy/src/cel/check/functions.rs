//! Functions and comprehensions: what they take, and what they answer.

use std::ops::Range;

use cel::common::ast::{Expr, IdedExpr};

use super::super::Fault;
use super::super::eval::{Loop, LoopKind, Node, TextTest};
use super::super::schema::{Field, Scalar, Type};
use super::{Answer, Checker, Part, add, both, located, part, path};
use crate::suggest::{did_you_mean, list};
use crate::units::shortened;

/// Comprehensions within comprehensions.
const LOOPS_MAX: usize = 2;

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

impl Checker<'_> {
    pub(super) fn function(
        &mut self,
        range: Range<usize>,
        name: &str,
        args: &[IdedExpr],
    ) -> Answer {
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

    pub(super) fn number(
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

    pub(super) fn has(&mut self, label: &IdedExpr, range: Range<usize>) -> Answer {
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

    pub(super) fn size(&mut self, operand: &IdedExpr, range: Range<usize>) -> Answer {
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

    pub(super) fn method(
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

    pub(super) fn text_test(
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

    pub(super) fn each(
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
    pub(super) fn variable(&self, variable: &IdedExpr) -> Result<String, Fault> {
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
