//! What every benchmark tells its results with: a table for terminals, a self-contained page with plots for browsers.
//!
//! Knows no benchmark. Measures nothing.

mod output;
mod page;
mod plot;

pub(crate) use output::Output;
pub(crate) use page::Page;
pub(crate) use plot::{Band, Bar, Bars, Lines, Scale, Series};

/// Lines of text with columns as wide as their widest cell: the first `names` columns on the left, the others, numbers,
/// on the right. `heads` and each of `rows` have the same length; a shorter row leaves its last columns out.
pub(crate) fn table(names: usize, heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&heads).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if column < names {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let cells: Vec<String> = cells.collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Of an even number, the mean of the two in the middle; `None` without any value.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values[middle - 1] + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_names_on_the_left_and_numbers_on_the_right() {
        let rows = [
            vec!["gloo".into(), "10.5".into()],
            vec!["é".into(), "2".into()],
        ];
        let text = table(1, &["system", "s"], &rows);
        assert_eq!(text, "system     s\ngloo    10.5\né          2\n");
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }
}
