//! Tables without borders, that `awk` and people can both read.

use comfy_table::{Row, Table};

/// Rows under a header.
pub(crate) struct Columns {
    table: Table,
}

impl Columns {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut columns = Self::without_header();
        columns.table.set_header(Row::from(header.to_vec()));
        columns
    }

    /// Pairs of a name and its value.
    pub(crate) fn without_header() -> Self {
        let mut table = Table::new();
        // Colours are ours (`Paint`), and so is the width: lines are never broken.
        table.load_style(comfy_table::presets::NOTHING).force_no_tty();
        Self { table }
    }

    pub(crate) fn row<T: ToString>(&mut self, cells: &[T]) {
        self.table.add_row(Row::from(cells.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }

    /// A pair; nothing where the value is empty.
    pub(crate) fn pair(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        if !value.is_empty() {
            self.row(&[format!("{name}:"), value]);
        }
    }

    pub(crate) fn finish(mut self) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<_> = self.table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_plain_text() {
        let mut columns = Columns::new(&["NAME", "STATE"]);
        columns.row(&["digits", "running"]);
        columns.row(&["a", ""]);
        assert_eq!(columns.finish(), "NAME    STATE\ndigits  running\na\n");
    }
}
