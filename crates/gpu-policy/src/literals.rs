//! Names that rules compare with: a class or a tenant that does not exist never applies, and nobody is told.

use std::ops::Range;

/// The texts that `expression` compares the field `name` with, such as `request.class == 'batch'` or
/// `request.class in ['a', 'b']`, and where they are, without their quotes.
pub(crate) fn compared<'e>(expression: &'e str, name: &str) -> Vec<(&'e str, Range<usize>)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices(name) {
        let rest = &expression[at + name.len()..];
        let Some(operand) = after_operator(rest) else {
            continue;
        };
        let mut literals = Cursor {
            text: expression,
            at: expression.len() - operand.len(),
        };
        if literals.skip("[") {
            while let Some(literal) = literals.literal() {
                found.push(literal);
                if !literals.skip(",") {
                    break;
                }
            }
        } else {
            found.extend(literals.literal());
        }
    }
    found
}

/// What follows `==`, `!=` or `in`.
fn after_operator(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let mut operators = ["==", "!=", "in "].into_iter();
    operators.find_map(|operator| text.strip_prefix(operator))
}

struct Cursor<'e> {
    text: &'e str,
    at: usize,
}

impl<'e> Cursor<'e> {
    fn skip(&mut self, token: &str) -> bool {
        let rest = self.text[self.at..].trim_start();
        match rest.strip_prefix(token) {
            Some(rest) => {
                self.at = self.text.len() - rest.len();
                true
            }
            None => false,
        }
    }

    /// A text without escapes.
    fn literal(&mut self) -> Option<(&'e str, Range<usize>)> {
        let rest = self.text[self.at..].trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let start = self.text.len() - rest.len() + 1;
        let (literal, _) = self.text[start..].split_once(quote)?;
        let range = start..start + literal.len();
        self.at = range.end + 1;
        (!literal.is_empty() && !literal.contains('\\')).then_some((literal, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_a_field_is_compared_with() {
        for (expression, expected) in [
            ("request.class == 'batch'", vec!["batch"]),
            (
                "request.class!=\"a\" || request.class  ==  'b'",
                vec!["a", "b"],
            ),
            ("request.class in ['a', \"b\" ,'c',]", vec!["a", "b", "c"]),
            (
                "!(request.class in [ 'a' ]) && holder.name == 'x'",
                vec!["a"],
            ),
            ("request.class == holder.name", vec![]),
            ("request.class.startsWith('a')", vec![]),
            ("request.class in ['é', 'a\\'b']", vec!["é"]),
            ("request.class in ['a', holder.name]", vec!["a"]),
            ("request.class == '", vec![]),
            ("request.class ==", vec![]),
            ("holder.tenant == ''", vec![]),
        ] {
            let found = compared(expression, "request.class");
            let words: Vec<&str> = found.iter().map(|(word, _)| *word).collect();
            assert_eq!(words, expected, "{expression}");
            for (word, range) in found {
                assert_eq!(&expression[range], word);
            }
        }
    }
}
