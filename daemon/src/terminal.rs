//! Numbers and tables for people at a terminal.

use std::fmt::Write;
use std::io::Write as _;

/// Writes `text` to stdout and ends the line unless it is ended. A reader that went away is no error: who pipes into
/// `head` has what they want.
pub fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    if let Err(error) = write!(stdout, "{text}{end}").and_then(|()| stdout.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "cannot write to stdout");
    }
}

/// `1536` as `1.50 KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {unit}")
}

/// `3725.4` seconds as `1 h 2 min`, `74.6` as `1 min 15 s`, `7.31` as `7.3 s`.
pub fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "?".to_owned();
    }
    let whole = value.round() as u64;
    if whole < 60 {
        format!("{value:.1} s")
    } else if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

/// A loss in nats, or a dash.
pub fn loss(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// A share as per cent, or a dash.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// Rows under heads, columns as wide as their widest cell; the first column is left-aligned, the others right.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(heads[column].chars().count())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut padded = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            // Writing into a String does not fail.
            let _ = if column == 0 {
                write!(padded, "{cell:<width$}")
            } else {
                write!(padded, "  {cell:>width$}")
            };
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    };
    line(heads.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    text
}

/// An amount in TAO, exact, with four decimals at least.
pub fn tao(rao: u64) -> String {
    const RAO: u64 = 1_000_000_000;
    let fraction = format!("{:09}", rao % RAO);
    let kept = fraction.trim_end_matches('0').len().max(4);
    format!("{}.{}", rao / RAO, &fraction[..kept])
}

/// A share of 65535, the chain's unit of scores, in percent.
pub fn share_u16(share: u16) -> String {
    percent(Some(f64::from(share) / f64::from(u16::MAX)))
}

/// A share in parts per million, in percent.
pub fn share_ppm(ppm: u32) -> String {
    percent(Some(f64::from(ppm) / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        assert_eq!(tao(0), "0.0000");
        assert_eq!(tao(1), "0.000000001");
        assert_eq!(tao(1_250_000_000), "1.2500");
        assert_eq!(tao(u64::MAX), "18446744073.709551615");
    }

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (51_200, "50.0 KiB"),
            (3 << 30, "3.00 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn seconds_grow_into_minutes_and_hours() {
        for (value, text) in [
            (7.31, "7.3 s"),
            (59.7, "1 min 0 s"),
            (74.6, "1 min 15 s"),
            (3725.4, "1 h 2 min"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["a1".to_owned(), "1".to_owned()],
            vec!["b".to_owned(), "12345".to_owned()],
        ];
        assert_eq!(
            table(&["peer", "n"], &rows),
            "peer      n\na1        1\nb     12345\n"
        );
    }
}
