//! Aligned columns.

use crate::cli::output::{Paint, Tone, clean};

const GAP: &str = "  ";

/// On which side a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One piece of a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Rows under a header. The last column is as wide as it likes.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// Text with a tone.
    pub(crate) fn tone(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: clean(&text.into()),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::tone(text, Tone::Plain)
    }
}

impl Table {
    /// A table of these columns, without rows.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has a cell for every column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for every column");
        self.rows.push(cells.into());
    }

    /// The same of as many cells as there are columns.
    pub(crate) fn cells(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<_> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for every column");
        self.rows.push(cells);
    }

    /// The lines.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let header: Vec<Cell> = self
            .columns
            .iter()
            .map(|(name, _)| Cell::tone(*name, Tone::Dim))
            .collect();
        let widths = self.widths();
        let lines = std::iter::once(&header).chain(&self.rows);
        lines
            .map(|cells| self.line(cells, &widths, paint))
            .collect()
    }

    /// The lines without the header; columns without a name are as wide as what is in them.
    pub(crate) fn render_rows(&self, paint: Paint) -> String {
        let widths = self.widths();
        let lines = self.rows.iter();
        lines
            .map(|cells| self.line(cells, &widths, paint))
            .collect()
    }

    fn widths(&self) -> Vec<usize> {
        let columns = 0..self.columns.len();
        columns.map(|column| self.width(column)).collect()
    }

    fn width(&self, column: usize) -> usize {
        let name = self.columns[column].0.chars().count();
        let cells = self.rows.iter().map(|row| row[column].text.chars().count());
        cells.max().unwrap_or(0).max(name)
    }

    fn line(&self, cells: &[Cell], widths: &[usize], paint: Paint) -> String {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let fill = " ".repeat(widths[column] - cell.text.chars().count());
            let text = paint.tone(&cell.text, cell.tone);
            let last = column + 1 == cells.len();
            match self.columns[column].1 {
                Align::Left if last => line.push_str(&text),
                Align::Left => line.push_str(&format!("{text}{fill}")),
                Align::Right => line.push_str(&format!("{fill}{text}")),
            }
            if !last {
                line.push_str(GAP);
            }
        }
        format!("{}\n", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("FREE", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row(["a".into(), "12.0 GiB".into(), "".into()]);
        table.row(["longer".into(), "1 B".into(), "well\n".into()]);
        assert_eq!(
            table.render(Paint::off()),
            "NAME        FREE  NOTE\n\
             a       12.0 GiB\n\
             longer       1 B  well\u{fffd}\n"
        );
    }
}
