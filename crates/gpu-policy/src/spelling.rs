//! Where the characters of a decoded TOML string are in the file: escapes, line breaks, quotes.

use std::ops::Range;

/// The bytes of `source` that spell the bytes `span` of the value that it stands for. `source` is a TOML
/// string of any of the four kinds, or the bare text of an override. A span beyond the value is its end.
pub(crate) fn spelled(source: &str, span: &Range<usize>) -> Range<usize> {
    let (begin, pieces) = pieces(source);
    let end_of_value = pieces.last().map_or(begin, |piece| piece.source.end);
    let start = pieces
        .iter()
        .find(|piece| piece.value.end > span.start)
        .map_or(end_of_value, |piece| piece.source.start);
    let last = pieces
        .iter()
        .take_while(|piece| piece.value.start < span.end)
        .last();
    let end = last.map_or(start, |piece| piece.source.end);
    start..end.max(start)
}

/// One character of the value and its spelling.
#[derive(Debug)]
struct Piece {
    value: Range<usize>,
    source: Range<usize>,
}

/// Where the value begins, and its characters.
fn pieces(source: &str) -> (usize, Vec<Piece>) {
    let lead = source.len() - source.trim_start().len();
    let (skip, quotes, escapes) = opening(&source[lead..]);
    let body = lead + skip..(source.trim_end().len().saturating_sub(quotes)).max(lead + skip);
    let mut found: Vec<Piece> = Vec::new();
    let mut at = body.start;
    while let Some(rest) = source.get(at..body.end).filter(|rest| !rest.is_empty()) {
        let (bytes, spelled) = match escapes {
            true => unit(rest),
            false => plain(rest),
        };
        let from = found.last().map_or(0, |piece| piece.value.end);
        if bytes > 0 {
            found.push(Piece {
                value: from..from + bytes,
                source: at..at + spelled,
            });
        }
        at += spelled;
    }
    (body.start, found)
}

/// How many bytes come before the value, how many quotes after it, and whether it has escapes.
fn opening(source: &str) -> (usize, usize, bool) {
    let newline = |rest: &str| match rest {
        rest if rest.starts_with("\r\n") => 2,
        rest if rest.starts_with('\n') => 1,
        _ => 0,
    };
    for (quote, escapes) in [("\"\"\"", true), ("'''", false)] {
        if let Some(rest) = source.strip_prefix(quote) {
            return (3 + newline(rest), 3, escapes);
        }
    }
    match source.as_bytes().first() {
        Some(b'"') => (1, 1, true),
        Some(b'\'') => (1, 1, false),
        _ => (0, 0, false),
    }
}

/// The bytes of the first character of `rest` in the value, and in the source.
fn plain(rest: &str) -> (usize, usize) {
    let length = rest.chars().next().map_or(1, char::len_utf8);
    (length, length)
}

/// [`plain`] of text with escapes.
fn unit(rest: &str) -> (usize, usize) {
    let Some(escape) = rest.strip_prefix('\\') else {
        return plain(rest);
    };
    let digits = match escape.as_bytes().first() {
        Some(b'x') => 2,
        Some(b'u') => 4,
        Some(b'U') => 8,
        Some(b' ' | b'\t' | b'\r' | b'\n') => {
            let rest = escape.trim_start_matches([' ', '\t', '\r', '\n']);
            return (0, 1 + escape.len() - rest.len());
        }
        _ => return (1, rest.len().min(2)),
    };
    let code = escape.get(1..=digits);
    let code = code.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let length = code.and_then(char::from_u32).map_or(1, char::len_utf8);
    (length, rest.len().min(2 + digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character of the value of `key = SOURCE` is found where it is spelled.
    fn check(source: &str, value: &str, spellings: &[(&str, &str)]) {
        let text = format!("key = {source}");
        let decoded = toml::de::DeTable::parse(&text).expect("TOML");
        let decoded = decoded.get_ref().get("key").expect("the key").get_ref();
        assert_eq!(decoded.as_str(), Some(value), "{source}");
        for (word, spelling) in spellings {
            let at = value.find(word).expect("a word of the value");
            let found = spelled(source, &(at..at + word.len()));
            assert_eq!(&source[found], *spelling, "{word} in {source}");
        }
    }

    #[test]
    fn all_four_kinds_of_strings() {
        check(
            "\"a && b\"",
            "a && b",
            &[("a", "a"), ("b", "b"), ("&& b", "&& b")],
        );
        check(
            r#""\"é\" \\ \u00e9 \x41 \U0001F600 x""#,
            "\"é\" \\ é A 😀 x",
            &[
                ("\"", "\\\""),
                ("\\", "\\\\"),
                ("A", "\\x41"),
                ("😀", "\\U0001F600"),
                ("x", "x"),
                ("A 😀 x", "\\x41 \\U0001F600 x"),
            ],
        );
        check("'a \\ b'", "a \\ b", &[("\\", "\\"), ("b", "b")]);
        check(
            "\"\"\"\na &&\n  b \\\n   c\"\"\"",
            "a &&\n  b c",
            &[("a", "a"), ("b", "b"), ("c", "c"), ("b c", "b \\\n   c")],
        );
        check("'''\r\n\\a\nb'''", "\\a\nb", &[("\\a", "\\a"), ("b", "b")]);
        check(
            "\"\"\"\r\na\r\nb\"\"\"",
            "a\r\nb",
            &[("a", "a"), ("b", "b")],
        );
        check("\"\"\"a\"\" b\"\"\"", "a\"\" b", &[("b", "b")]);
    }

    #[test]
    fn bare_text_and_spans_at_the_end() {
        let source = "  device.free ";
        assert_eq!(&source[spelled(source, &(7..11))], "free");
        for (source, span, expected) in [
            ("''", 0..0, 1..1),
            ("'ab'", 2..2, 3..3),
            ("'ab'", 9..12, 3..3),
            ("'ab'", 1..99, 2..3),
            ("\"", 0..1, 1..1),
            ("", 0..1, 0..0),
            ("\"\\u12\"", 0..9, 1..5),
        ] {
            assert_eq!(spelled(source, &span), expected, "{source}");
        }
    }
}
