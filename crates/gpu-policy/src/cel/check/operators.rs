//! Operators: what they take, and what they answer.

use std::ops::Range;

use cel::common::ast::{IdedExpr, operators};

use super::super::Fault;
use super::super::eval::{Arithmetic, Comparison, Node};
use super::super::schema::{Scalar, Type};
use super::{Answer, Checker, Part, add, both, located};
use crate::units::shortened;

impl Checker<'_> {
    pub(super) fn operator(
        &mut self,
        expr: &IdedExpr,
        name: &str,
        args: &[IdedExpr],
    ) -> Option<Answer> {
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

    pub(super) fn connect(
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
    pub(super) fn condition(&mut self, expr: &IdedExpr) -> Answer {
        let part = self.node(expr)?;
        match part.kind {
            Type::One(Scalar::Bool) => Ok(part),
            other => {
                Err(Fault::new(format!("this must be true or false, it is {other}")).at(part.range))
            }
        }
    }

    pub(super) fn not(&mut self, operand: &IdedExpr) -> Answer {
        let operand = self.condition(operand)?;
        Ok(Part {
            node: Node::Not(Box::new(operand.node)),
            cost: add(operand.cost, 1),
            ..operand
        })
    }

    pub(super) fn negate(&mut self, operand: &IdedExpr, at: Range<usize>) -> Answer {
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

    pub(super) fn choose(
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

    pub(super) fn compare(
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

    pub(super) fn calculate(
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

    pub(super) fn is_in(&mut self, item: &IdedExpr, list: &IdedExpr, at: Range<usize>) -> Answer {
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

    pub(super) fn index(&mut self, list: &IdedExpr, index: &IdedExpr, at: Range<usize>) -> Answer {
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
