//! Rule "seven levels": it tries every ladder on every entry.

use super::levels::step_of;
use super::{Entry, Group};

/// Spacings of ladders.
fn spacings() -> impl Iterator<Item = i64> {
    (1..=16).map(|half| 2 * half)
}

/// What the rule takes for 2^(24 - below / 32).
fn magnitude(below: i64) -> i64 {
    let mantissa = (f64::from((-below).rem_euclid(32) as u8) / 32.0).exp2() as f32;
    let octave = (-below).div_euclid(32) as i32;
    (f64::from(mantissa) * 2.0_f64.powi(24 + octave)).floor() as i64
}

/// How many steps the level is below the high one, for an entry that is `below` it; `None` where it is left out.
fn level_below(below: i64, spacing: i64) -> Option<i64> {
    let power = |steps: i64| (steps as f64 / 32.0).exp2();
    let reach = (1..)
        .take_while(|&steps| 2.0 * power(-steps) >= 1.0 + power(-spacing))
        .count() as i64;
    let code = (0..6).find(|code| below <= code * spacing + reach);
    let level = code.unwrap_or(6) * spacing;
    (below <= level + 32).then_some(level)
}

/// The entries of a tile. `order`: the chosen elements besides the peak, in descending order of their magnitudes.
pub(super) fn entries(values: &[f32], peak: usize, order: &[usize]) -> Vec<Entry> {
    let step = |index: usize| i64::from(step_of(values[index].abs()));
    let peak_step = step(peak);
    if peak_step == 0 {
        return Vec::new();
    }
    let largest = order.first().map_or(0, |&index| step(index));
    let mut best: Option<(i64, i64, i64)> = None;
    for spacing in spacings() {
        for high in (largest - 16..=peak_step).rev() {
            if largest == 0 || high < 1 || level_below(high - largest, spacing) != Some(0) {
                continue;
            }
            let error = |&index: &usize| {
                let entry = magnitude(largest - step(index));
                let level = level_below(high - step(index), spacing)
                    .map_or(0, |below| magnitude(largest - high + below));
                (entry - level).pow(2)
            };
            let error = order.iter().map(error).sum();
            if best.is_none_or(|best| error < best.0) {
                best = Some((error, high, spacing));
            }
        }
    }

    let entry = |index: usize, step: i64, group| Entry {
        index,
        negative: values[index] < 0.0,
        step: step as u16,
        group,
    };
    let mut entries = vec![entry(peak, peak_step, Group::Peak)];
    if let Some((_, high, spacing)) = best {
        for &index in order {
            let level = level_below(high - step(index), spacing).map(|below| high - below);
            if let Some(level) = level.filter(|&level| level > 0) {
                entries.push(entry(index, level, Group::High));
            }
        }
    }
    entries.sort_by_key(|entry| entry.index);
    // The first at the step of the peak is the peak.
    let mut is_first = true;
    for entry in &mut entries {
        if i64::from(entry.step) == peak_step {
            entry.group = if is_first { Group::Peak } else { Group::High };
            is_first = false;
        }
    }
    entries
}

/// The high level of a tile of two entries or more.
pub(super) fn high(entries: &[Entry]) -> Option<u16> {
    let others = entries.iter().filter(|entry| entry.group != Group::Peak);
    others.map(|entry| entry.step).max()
}

/// The smallest spacing that has all levels.
pub(super) fn spacing(entries: &[Entry]) -> u16 {
    let high = high(entries).unwrap_or(0);
    let others = || entries.iter().filter(|entry| entry.group != Group::Peak);
    let is_level = |spacing, entry: &Entry| (0..7).any(|code| entry.step + code * spacing == high);
    let has_all = |spacing: &u16| others().all(|entry| is_level(*spacing, entry));
    let spacings = spacings().map(|spacing| spacing as u16);
    spacings.into_iter().find(has_all).unwrap_or(0)
}

pub(super) fn code(entry: &Entry, entries: &[Entry]) -> u16 {
    match (entry.group, high(entries)) {
        (Group::Low | Group::High, Some(high)) => (high - entry.step) / spacing(entries),
        _ => 7,
    }
}
