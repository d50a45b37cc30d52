//! A sparse square matrix over uids, in the arithmetic of the epoch.
//!
//! Absent entries are zero. Every operation saturates: sums of hostile numbers stay numbers.

use std::collections::BTreeMap;

use fixed::types::I32F32;

/// One row for each uid, every row in ascending order of column, each column at most once and within the matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matrix {
    rows: Vec<Row>,
}

type Row = Vec<(u16, I32F32)>;

impl Matrix {
    /// Takes stored rows as they are: entries in any order, of uids that may not exist. Of two entries of one uid the
    /// first counts.
    pub(super) fn read<'a>(rows: impl Iterator<Item = &'a [(u16, u16)]>, uids: usize) -> Self {
        let read = |row: &[(u16, u16)]| {
            let mut entries: Row = row
                .iter()
                .filter(|(uid, _)| usize::from(*uid) < uids)
                .map(|(uid, value)| (*uid, I32F32::from_num(*value)))
                .collect();
            entries.sort_by_key(|(uid, _)| *uid);
            entries.dedup_by_key(|(uid, _)| *uid);
            entries
        };
        Self {
            rows: rows.take(uids).map(read).collect(),
        }
    }

    /// Dense rows, zeros included.
    #[cfg(test)]
    pub(super) fn from_rows(rows: impl Iterator<Item = Vec<I32F32>>) -> Self {
        Self {
            rows: rows.map(|row| (0..).zip(row).collect()).collect(),
        }
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Keeps the entries for which `keep(row, column)` holds.
    pub(super) fn retain(&mut self, keep: impl Fn(usize, usize) -> bool) {
        for (uid, row) in self.rows.iter_mut().enumerate() {
            row.retain(|(column, _)| keep(uid, usize::from(*column)));
        }
    }

    /// The matrix with `change(row, column, value)` in place of each value.
    pub(super) fn map(&self, change: impl Fn(usize, usize, I32F32) -> I32F32) -> Self {
        let rows = self.rows.iter().enumerate().map(|(uid, row)| {
            let changed = |&(column, value)| (column, change(uid, usize::from(column), value));
            row.iter().map(changed).collect()
        });
        Self {
            rows: rows.collect(),
        }
    }

    /// `merge(left, right)` wherever either has an entry, where that is more than zero.
    pub(super) fn merge(&self, other: &Self, merge: impl Fn(I32F32, I32F32) -> I32F32) -> Self {
        let rows = self.rows.iter().zip(&other.rows);
        Self {
            rows: rows.map(|(l, r)| merge_rows(l, r, &merge)).collect(),
        }
    }

    pub(super) fn row_sums(&self) -> Vec<I32F32> {
        let values = |row: &Row| sum(row.iter().map(|(_, value)| *value));
        self.rows.iter().map(values).collect()
    }

    pub(super) fn column_sums(&self) -> Vec<I32F32> {
        self.fold_columns(I32F32::saturating_add)
    }

    /// The sum over rows i of vector\[i\] * row i.
    pub(super) fn weighted_column_sums(&self, vector: &[I32F32]) -> Vec<I32F32> {
        self.map(|row, _, value| value.saturating_mul(vector[row]))
            .column_sums()
    }

    /// For each row the sum over columns j of vector\[j\] * value.
    pub(super) fn weighted_row_sums(&self, vector: &[I32F32]) -> Vec<I32F32> {
        self.map(|_, column, value| value.saturating_mul(vector[column]))
            .row_sums()
    }

    /// Each row divided by its sum.
    pub(super) fn rows_normalized(&self) -> Self {
        let sums = self.row_sums();
        self.map(|row, _, value| ratio(value, sums[row]))
    }

    /// Each column divided by its sum.
    pub(super) fn columns_normalized(&self) -> Self {
        let sums = self.column_sums();
        self.map(|_, column, value| ratio(value, sums[column]))
    }

    /// Each column divided by its largest value.
    pub(super) fn columns_upscaled(&self) -> Self {
        let largest = self.fold_columns(I32F32::max);
        self.map(|_, column, value| ratio(value, largest[column]))
    }

    fn fold_columns(&self, fold: impl Fn(I32F32, I32F32) -> I32F32) -> Vec<I32F32> {
        let mut columns = vec![I32F32::ZERO; self.rows.len()];
        for (column, value) in self.rows.iter().flatten() {
            let folded = &mut columns[usize::from(*column)];
            *folded = fold(*folded, *value);
        }
        columns
    }
}

fn merge_rows(left: &Row, right: &Row, merge: impl Fn(I32F32, I32F32) -> I32F32) -> Row {
    let mut sides = BTreeMap::<u16, (I32F32, I32F32)>::new();
    for (column, value) in left {
        sides.entry(*column).or_default().0 = *value;
    }
    for (column, value) in right {
        sides.entry(*column).or_default().1 = *value;
    }
    sides
        .into_iter()
        .map(|(column, (left, right))| (column, merge(left, right)))
        .filter(|(_, value)| *value > I32F32::ZERO)
        .collect()
}

/// Sums, saturating.
pub(super) fn sum(values: impl Iterator<Item = I32F32>) -> I32F32 {
    values.fold(I32F32::ZERO, I32F32::saturating_add)
}

/// `value / whole`, rounded down; `value` itself where the whole is zero.
pub(super) fn ratio(value: I32F32, whole: I32F32) -> I32F32 {
    if whole == I32F32::ZERO {
        value
    } else {
        value.saturating_div(whole)
    }
}

/// Each value divided by the sum of all.
pub(super) fn normalized(values: &[I32F32]) -> Vec<I32F32> {
    let whole = sum(values.iter().copied());
    values.iter().map(|value| ratio(*value, whole)).collect()
}
