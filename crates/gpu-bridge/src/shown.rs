//! Text of strangers in messages.

const SHOWN_CHARS_MAX: usize = 80;

/// Hostile text for a message: short, and without anything that a terminal would act on.
pub(crate) fn shown(text: &str) -> String {
    let chars = text.chars().take(SHOWN_CHARS_MAX);
    chars.flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(&"x".repeat(500)).len(), SHOWN_CHARS_MAX);
    }
}
