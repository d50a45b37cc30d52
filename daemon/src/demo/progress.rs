//! What a person sees while the demo runs: one bar per peer on a terminal, one line per round everywhere.

use std::io::{IsTerminal, stderr};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::peer::VALIDATOR;
use crate::status::{RoundStatus, Status};
use crate::terminal::{self, bytes, loss};

/// See the module documentation.
pub(super) struct Progress {
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    quiet: bool,
    told_round: u64,
}

impl Progress {
    /// `quiet`: nothing on stdout, which belongs to the JSON summary.
    pub(super) fn new(peers: u32, quiet: bool) -> Progress {
        let bars = stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{prefix:>9} {bar:14} {pos:>3}/{len:<3} {wide_msg}")
                    .expect("a constant template");
            let all = MultiProgress::new();
            let names = (0..peers).map(|number| format!("peer {number}"));
            let bars = names
                .chain([VALIDATOR.to_owned()])
                .map(|name| {
                    let bar = all.add(ProgressBar::new(0).with_style(style.clone()));
                    bar.set_prefix(name);
                    bar.set_message("starting");
                    bar
                })
                .collect();
            (all, bars)
        });
        Progress {
            bars,
            quiet,
            told_round: 0,
        }
    }

    /// One line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            // A terminal that is gone is no reason to stop training.
            Some((all, _)) => drop(all.println(line)),
            None if self.quiet => eprintln!("{line}"),
            None => terminal::say(line),
        }
    }

    /// Shows the newest status of each peer, and a line for each round that was decided since.
    pub(super) fn show(&mut self, statuses: &[Option<Status>]) {
        let rounds = new_rounds(statuses, self.told_round);
        for (round, of) in rounds {
            self.told_round = round.round;
            self.say(&round_line(&round, of));
        }
        if let Some((_, bars)) = &self.bars {
            for ((bar, status), words) in bars.iter().zip(statuses).zip(words(statuses)) {
                if let Some(status) = status {
                    bar.set_length(status.identity.rounds);
                    bar.set_position(status.applied.unwrap_or(0));
                }
                bar.set_message(words);
            }
        }
    }

    /// Takes the bars away.
    pub(super) fn finish(&mut self) {
        if let Some((all, _)) = self.bars.take() {
            drop(all.clear());
        }
    }
}

/// Rounds after `told` that some peer has decided and applied, in order, and the number of rounds of the run.
fn new_rounds(statuses: &[Option<Status>], told: u64) -> Vec<(RoundStatus, u64)> {
    let mut found: Vec<(RoundStatus, u64)> = Vec::new();
    for status in statuses.iter().flatten() {
        for round in &status.history {
            let known = found.iter().any(|(known, _)| known.round == round.round);
            if round.round > told && !known && round.members > 0 && round.root.is_some() {
                found.push((round.clone(), status.identity.rounds));
            }
        }
    }
    found.sort_by_key(|(round, _)| round.round);
    found
}

fn round_line(round: &RoundStatus, of: u64) -> String {
    let mut line = format!(
        "round {:>2}/{of}: loss {} -> {}, {} of {} updates, {}",
        round.round,
        loss(round.loss_first),
        loss(round.loss_last),
        round.members,
        round.roster,
        bytes(round.frame_bytes),
    );
    if let Some(seconds) = &round.seconds {
        line.push_str(&format!(
            ", {:.1} s (train {:.1}, exchange {:.1}, decide {:.1}, apply {:.1})",
            seconds.total(),
            seconds.train,
            seconds.exchange,
            seconds.decide,
            seconds.apply
        ));
    }
    line
}

/// How each peer does, what it does and what it waits for, in words.
pub(super) fn words(statuses: &[Option<Status>]) -> Vec<String> {
    statuses
        .iter()
        .map(|status| match status {
            None => "starting".to_owned(),
            Some(status) => {
                let newest = status
                    .history
                    .iter()
                    .rev()
                    .find_map(|round| round.loss_last);
                let mut words = match newest {
                    Some(newest) => format!("loss {newest:.3}, {}", status.phase.words()),
                    None => status.phase.words().to_owned(),
                };
                if let Some(detail) = &status.detail {
                    words.push_str(": ");
                    words.push_str(detail);
                }
                if let Some(problem) = &status.problem {
                    words.push_str("; ");
                    words.push_str(problem);
                }
                words
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use gradmesh_protocol::hash::Hash;

    use super::*;
    use crate::status::StatusHandle;

    fn status(rounds: &[u64]) -> Option<Status> {
        let handle = StatusHandle::new();
        for round in rounds {
            handle.set_decided(RoundStatus {
                round: *round,
                members: 4,
                roster: 4,
                loss_first: Some(5.5),
                loss_last: Some(4.25),
                frame_bytes: 2048,
                ..RoundStatus::default()
            });
            handle.set_applied(*round, Hash::ZERO, None);
        }
        Some(handle.snapshot())
    }

    #[test]
    fn each_round_is_told_once_in_order_whoever_has_it_first() {
        let statuses = [status(&[1]), None, status(&[1, 2, 3])];
        let rounds = |told| -> Vec<u64> {
            let found = new_rounds(&statuses, told);
            found.iter().map(|(round, _)| round.round).collect()
        };
        assert_eq!(rounds(0), [1, 2, 3]);
        assert_eq!(rounds(2), [3]);
        assert_eq!(rounds(3), [0; 0]);
    }

    #[test]
    fn a_line_tells_loss_updates_and_bytes() {
        let statuses = [status(&[3])];
        let (round, _) = &new_rounds(&statuses, 0)[0];
        let line = round_line(round, 14);
        assert_eq!(
            line,
            "round  3/14: loss 5.500 -> 4.250, 4 of 4 updates, 2.00 KiB"
        );
    }
}
