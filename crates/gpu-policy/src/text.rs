//! The text of one layer: its limits, its lines, and its TOML tree.

use std::ops::Range;

use toml::de::{DeTable, Error as TomlError};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use crate::compile::SourceFile;
use crate::diagnostic::{Problem, Problems, Site};

/// The file that a set of policy files must have, and that applies first.
pub const DEFAULT_FILE: &str = "default.toml";

/// A policy file larger than this many bytes is refused.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// A set of more policy files than this is refused.
pub const FILES_MAX: usize = 256;

/// Above this size only the first syntax error of a file is reported.
const RECOVER_BYTES_MAX: usize = 64 << 10;

/// A key may have this many dots; the tree that a longer one makes is too deep to be dropped safely.
const KEY_DOTS_MAX: usize = 8;

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The text of a file or an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// Place among the layers.
    pub(crate) index: usize,
    /// As shown to people.
    pub(crate) name: String,
    /// Without a byte order mark.
    pub(crate) body: String,
}

impl Text {
    /// The text of `file`; what keeps it from being TOML at all goes to `problems`.
    pub(crate) fn read(index: usize, file: &SourceFile, problems: &mut Problems) -> Option<Self> {
        let fit = file.bytes.len().min(FILE_BYTES_MAX);
        let decoded = String::from_utf8_lossy(&file.bytes[..fit]);
        let body = decoded.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&decoded);
        let text = Self {
            index,
            name: file.name.clone(),
            body: body.to_owned(),
        };
        match text.unreadable(&file.bytes) {
            None => Some(text),
            Some((offset, problem)) => {
                problems.add(&text.site(offset..offset + 1), problem);
                None
            }
        }
    }

    /// The text of an override, above all files.
    pub(crate) fn of_override(name: &str, body: &str) -> Self {
        Self {
            index: usize::MAX,
            name: name.to_owned(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn is_override(&self) -> bool {
        self.index == usize::MAX
    }

    /// The place of `span` in this text.
    pub(crate) fn site(&self, span: Range<usize>) -> Site<'_> {
        Site { text: self, span }
    }

    /// The line of the byte at `offset`, counted from 1, and the offset at which it starts.
    pub(crate) fn line_and_start(&self, offset: usize) -> (usize, usize) {
        let before = &self.body[..self.floor(offset)];
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, start)
    }

    /// The last character boundary at or before `offset`.
    pub(crate) fn floor(&self, offset: usize) -> usize {
        self.body.floor_char_boundary(offset)
    }

    /// The tree of this text, if it is TOML.
    pub(crate) fn parse(&self, problems: &mut Problems) -> Option<DeTable<'_>> {
        if let Some(span) = self.key_too_deep() {
            let problem = Problem::new(format!("a key has more than {KEY_DOTS_MAX} dots"));
            problems.add(&self.site(span), problem);
            return None;
        }
        match DeTable::parse(&self.body) {
            Ok(table) => Some(table.into_inner()),
            Err(first) => {
                for error in self.syntax_errors(first) {
                    let span = error.span().unwrap_or(0..1);
                    problems.add(&self.site(span), Problem::new(error.message()));
                }
                None
            }
        }
    }

    fn unreadable(&self, bytes: &[u8]) -> Option<(usize, Problem)> {
        if bytes.is_empty() {
            let hint = "write a comment into a file that is meant to say nothing";
            return Some((0, Problem::new("the file is empty").hint(hint)));
        }
        if bytes.len() > FILE_BYTES_MAX {
            let mib = FILE_BYTES_MAX >> 20;
            return Some((
                0,
                Problem::new(format!("the file is larger than {mib} MiB")),
            ));
        }
        let error = std::str::from_utf8(bytes).err()?;
        let mark = match bytes.starts_with(BYTE_ORDER_MARK.as_bytes()) {
            true => BYTE_ORDER_MARK.len(),
            false => 0,
        };
        let byte = bytes[error.valid_up_to()];
        let problem = Problem::new(format!("byte 0x{byte:02x} is not UTF-8"));
        Some((
            error.valid_up_to() - mark,
            problem.hint("save the file as UTF-8"),
        ))
    }

    /// The first key with too many dots.
    fn key_too_deep(&self) -> Option<Range<usize>> {
        let mut dots = 0;
        for token in Source::new(&self.body).lex() {
            match token.kind() {
                TokenKind::Dot => dots += 1,
                TokenKind::Atom
                | TokenKind::BasicString
                | TokenKind::LiteralString
                | TokenKind::Whitespace => {}
                _ => dots = 0,
            }
            if dots > KEY_DOTS_MAX {
                return Some(token.span().start()..token.span().end());
            }
        }
        None
    }

    fn syntax_errors(&self, first: TomlError) -> Vec<TomlError> {
        if self.body.len() > RECOVER_BYTES_MAX {
            return vec![first];
        }
        DeTable::parse_recoverable(&self.body).1
    }
}
