//! The guard before the parser: bounds everything that the parser would recurse over, and knows where every
//! token is.
//!
//! The grammar is cut down to what a policy needs. What is left out (escapes by number, raw and long strings,
//! bytes, unsigned numbers, maps, messages, comments, quoted names) is left out so that this scanner and the
//! parser cannot disagree about where a token ends.

use std::ops::Range;

use super::Fault;
use crate::units::shortened;

/// An expression longer than this many bytes is refused.
pub(crate) const TEXT_BYTES_MAX: usize = 2048;

const TOKENS_MAX: usize = 256;
/// Brackets within brackets; `!` and `-` in a row; `?` in one expression.
const NESTING_MAX: usize = 16;
/// Operators, calls and fields in a row that make one operand of `&&`, `||`, `?:` or `,`.
const CHAIN_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 64;
const NUMBER_BYTES_MAX: usize = 32;

/// What a token is, as far as the guards care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    Symbol,
    Text,
}

/// A token and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
}

/// The tokens of `text`, in order; none of what makes a parser recurse is without a bound.
pub(super) fn scan(text: &str) -> Result<Vec<Token>, Fault> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Fault::new(format!(
            "the expression is longer than {TEXT_BYTES_MAX} bytes"
        )));
    }
    let mut tokens = Vec::new();
    let mut depth = Depth::default();
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        if matches!(next, ' ' | '\t' | '\r' | '\n') {
            at += 1;
            continue;
        }
        let token = token(text, at, next)?;
        at = token.range.end;
        depth.step(&text[token.range.clone()], &token)?;
        tokens.push(token);
        if tokens.len() > TOKENS_MAX {
            let end = tokens[TOKENS_MAX].range.clone();
            return Err(Fault::new(format!(
                "the expression has more than {TOKENS_MAX} words and operators"
            ))
            .at(end));
        }
    }
    match tokens.is_empty() {
        true => Err(Fault::new("the expression is empty")),
        false => Ok(tokens),
    }
}

fn token(text: &str, at: usize, next: char) -> Result<Token, Fault> {
    match next {
        'a'..='z' | 'A'..='Z' | '_' => name(text, at),
        '0'..='9' => number(text, at),
        '\'' | '"' => quoted(text, at, next),
        _ => symbol(text, at, next),
    }
}

fn name(text: &str, at: usize) -> Result<Token, Fault> {
    let end = end_of(text, at, |c| c.is_ascii_alphanumeric() || c == '_');
    let word = &text[at..end];
    let token = Token {
        kind: Kind::Name,
        range: at..end,
    };
    let quote = text[end..].starts_with(['\'', '"']);
    let hint = match word {
        "and" => "write `&&`",
        "or" => "write `||`",
        "not" => "write `!`",
        _ if quote => "strings have no prefix: write 'text' or \"text\"",
        _ if word.len() > NAME_BYTES_MAX => {
            return Err(Fault::new(format!("`{}` is no name", shortened(word))).at(at..end));
        }
        _ => return Ok(token),
    };
    Err(Fault::new(format!("`{}` is no operator", shortened(word)))
        .at(at..end)
        .hint(hint))
}

fn number(text: &str, at: usize) -> Result<Token, Fault> {
    let mut end = end_of(text, at, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
    });
    let signed =
        |end: usize| text[at..end].ends_with(['e', 'E']) && !text[at..end].starts_with("0x");
    if signed(end) && text[end..].starts_with(['+', '-']) {
        end = end_of(text, end + 1, |c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
        });
    }
    let word = &text[at..end];
    if word.len() <= NUMBER_BYTES_MAX && is_number(word) {
        return Ok(Token {
            kind: Kind::Number,
            range: at..end,
        });
    }
    let fault = Fault::new(format!("`{}` is no number", shortened(word))).at(at..end);
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    Err(match word[digits.len()..].to_ascii_lowercase().as_str() {
        "u" => fault.hint(format!("write `{digits}`")),
        "k" | "kb" | "kib" => fault.hint(format!("sizes are written `KiB({digits})`")),
        "m" | "mb" | "mib" => fault.hint(format!("sizes are written `MiB({digits})`")),
        "g" | "gb" | "gib" => fault.hint(format!("sizes are written `GiB({digits})`")),
        "t" | "tb" | "tib" => fault.hint(format!("sizes are written `TiB({digits})`")),
        _ => fault,
    })
}

/// `12`, `0xff`, `1.5`, `1e9`, `1.5e-9`.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(hex) = word.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let whole = match mantissa.split_once('.') {
        Some((whole, part)) => digits(whole) && digits(part),
        None => digits(mantissa),
    };
    whole && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}

fn quoted(text: &str, at: usize, quote: char) -> Result<Token, Fault> {
    let mut chars = text[at + 1..].char_indices();
    while let Some((offset, next)) = chars.next() {
        let here = at + 1 + offset;
        match next {
            _ if next == quote => {
                let end = here + 1;
                if end == at + 2 && text[end..].starts_with(quote) {
                    let fault = Fault::new("strings of three quotes are not supported");
                    return Err(fault.at(at..end + 1));
                }
                return Ok(Token {
                    kind: Kind::Text,
                    range: at..end,
                });
            }
            '\\' => match chars.next() {
                Some((_, '\\' | '\'' | '"')) => {}
                Some((_, other)) => {
                    let fault =
                        Fault::new(format!("the escape `\\{}` is not supported", shown(other)));
                    let fault = fault.at(here..here + 1 + other.len_utf8());
                    return Err(fault.hint("write the character itself, or `\\\\`, `\\'`, `\\\"`"));
                }
                None => break,
            },
            _ if is_hidden(next) => return Err(hidden(here, next)),
            _ => {}
        }
    }
    Err(Fault::new("the string is not closed").at(at..at + 1))
}

fn symbol(text: &str, at: usize, next: char) -> Result<Token, Fault> {
    const PAIRS: [&str; 6] = ["&&", "||", "==", "!=", "<=", ">="];
    let pair = PAIRS.iter().any(|pair| text[at..].starts_with(pair));
    let range = at..at + if pair { 2 } else { next.len_utf8() };
    let alone = matches!(
        next,
        '<' | '>'
            | '+'
            | '-'
            | '*'
            | '/'
            | '%'
            | '!'
            | '?'
            | ':'
            | '.'
            | ','
            | '('
            | ')'
            | '['
            | ']'
    );
    let comment = text[at..].starts_with("//");
    if (pair || alone) && !comment {
        return Ok(Token {
            kind: Kind::Symbol,
            range,
        });
    }
    if is_hidden(next) {
        return Err(hidden(at, next));
    }
    let fault = Fault::new(format!("`{}` has no meaning here", shown(next))).at(range);
    Err(match next {
        '=' => fault.hint("write `==` to compare"),
        '&' => fault.hint("write `&&`"),
        '|' => fault.hint("write `||`"),
        '/' => fault.hint("comments belong outside of the expression"),
        '{' | '}' => fault.hint("maps and messages are not supported"),
        _ => fault,
    })
}

/// What makes text look other than it is: control characters, marks of direction, spaces without width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn hidden(at: usize, c: char) -> Fault {
    let code = u32::from(c);
    Fault::new(format!(
        "the invisible character U+{code:04X} is not allowed"
    ))
    .at(at..at + c.len_utf8())
}

fn shown(c: char) -> String {
    shortened(&c.to_string())
}

fn end_of(text: &str, at: usize, belongs: impl Fn(char) -> bool) -> usize {
    text[at..]
        .find(|c| !belongs(c))
        .map_or(text.len(), |length| at + length)
}

/// How deep the parser would be.
#[derive(Debug, Default)]
struct Depth {
    /// The links of the chain outside of each open bracket.
    outer: Vec<usize>,
    chain: usize,
    unary: usize,
    ternary: usize,
}

impl Depth {
    fn step(&mut self, word: &str, token: &Token) -> Result<(), Fault> {
        let unary = matches!(word, "!" | "-");
        self.unary = if unary { self.unary + 1 } else { 0 };
        match (token.kind, word) {
            (Kind::Symbol, "(" | "[") => {
                self.outer.push(self.chain + 1);
                self.chain = 0;
            }
            (Kind::Symbol, ")" | "]") => self.chain = self.outer.pop().unwrap_or_default(),
            (Kind::Symbol, "&&" | "||" | "," | ":") => self.chain = 0,
            (Kind::Symbol, "?") => {
                self.chain = 0;
                self.ternary += 1;
            }
            (Kind::Symbol, _) | (Kind::Name, "in") => self.chain += 1,
            _ => {}
        }
        let too = |what: &str| {
            Err(Fault::new(what)
                .at(token.range.clone())
                .hint("make two rules of it"))
        };
        match () {
            () if self.outer.len() > NESTING_MAX => too("brackets are nested more than 16 deep"),
            () if self.ternary > NESTING_MAX => too("there are more than 16 `?`"),
            () if self.unary > NESTING_MAX => too("there are more than 16 `!` or `-` in a row"),
            () if self.chain > CHAIN_MAX => too("there are more than 32 operators in a row"),
            () => Ok(()),
        }
    }
}
