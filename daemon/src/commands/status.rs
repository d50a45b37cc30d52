//! `gradmesh status`

use std::fmt::Write;

use anyhow::Context;

use super::chain::{neurons_table, show_concentration};
use super::{print_json, running};
use crate::cli::GlobalArgs;
use crate::status::{
    AuditStatus, CapacityStatus, ChainStatus, DENSE_BITS, FindingState, Status, client,
};
use crate::terminal::{bytes, loss, percent, say, share_u16, table, tao};

/// Rounds shown; all that the daemon keeps are in `--json`.
const ROUNDS_SHOWN: usize = 10;
/// Findings shown; likewise.
const FINDINGS_SHOWN: usize = 5;

pub(super) async fn run(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let (dir, address) = running(global).await?;
    let status = client::status(&address.url).await.with_context(|| {
        format!(
            "the daemon of {} does not run; start it with `gradmesh launch` or `gradmesh join`",
            dir.path().display()
        )
    })?;
    if json {
        return print_json(&status);
    }
    say(&format!(
        "{}page        {}\nstate       {}",
        render(&status),
        address.url,
        dir.path().display()
    ));
    Ok(())
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    let identity = &status.identity;
    let short = |hex: &str| hex.chars().take(8).collect::<String>();
    line(
        "run",
        format!("{} ({})", identity.name, short(&identity.run)),
    );
    line(
        "peer",
        format!("{}, training on {}", short(&identity.peer), identity.device),
    );
    line(
        "round",
        format!(
            "{} of {}: {}",
            status.round,
            identity.rounds,
            status.phase.words()
        ),
    );
    if let Some(detail) = &status.detail {
        line("", detail.clone());
    }
    if let Some(problem) = &status.problem {
        line("problem", problem.clone());
    }
    if !status.network.is_empty() {
        line("network", status.network.clone());
    }
    if let Some(own) = &status.capacity {
        line("capacity", capacity(own, status));
    }
    let number = |round: Option<u64>| round.map_or("-".to_owned(), |round| round.to_string());
    let root = status
        .state_root
        .map_or("-".to_owned(), |root| root.short());
    line(
        "decided",
        format!(
            "{}, applied {}, state root {root}",
            number(status.decided),
            number(status.applied)
        ),
    );
    let traffic = &status.traffic;
    line(
        "bytes",
        format!(
            "in {} + {} bulk, out {} + {} bulk",
            bytes(traffic.control_in),
            bytes(traffic.bulk_in),
            bytes(traffic.control_out),
            bytes(traffic.bulk_out)
        ),
    );
    if let Some(bits) = status.bits_per_param {
        let times = if bits > 0.0 {
            DENSE_BITS / bits
        } else {
            f64::INFINITY
        };
        line(
            "update",
            format!("{bits:.3} bits per parameter, {times:.0} times less than f32"),
        );
    }
    line(
        "in sync",
        format!("{} of the time", percent(status.sync_share)),
    );
    if let Some(checkpoint) = &status.checkpoint {
        line(
            "checkpoint",
            format!(
                "after round {}: {}",
                checkpoint.round,
                checkpoint.path.display()
            ),
        );
    }
    if let Some(ticket) = &status.ticket {
        line("ticket", ticket.clone());
    }
    if let Some(audit) = &status.audit {
        show_audits(audit, &mut line);
    }
    if let Some(chain) = &status.chain {
        show_chain(chain, &mut line);
    }
    if !status.roster.is_empty() {
        let rows: Vec<_> = status
            .roster
            .iter()
            .map(|peer| {
                vec![
                    format!("{}{}", peer.peer, if peer.own { " (this one)" } else { "" }),
                    if peer.connected { "up" } else { "down" }.to_owned(),
                    number(peer.accepted_round),
                    loss(peer.loss),
                    format!("{} Mbit/s", peer.capacity_mbit),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&table(
            &["peer", "link", "last round", "loss", "capacity"],
            &rows,
        ));
    }
    if let Some(chain) = status
        .chain
        .as_ref()
        .filter(|chain| !chain.neurons.is_empty())
    {
        text.push('\n');
        text.push_str(&neurons_table(&chain.neurons, chain.uid));
    }
    if !status.history.is_empty() {
        let rows: Vec<_> = status
            .history
            .iter()
            .skip(status.history.len().saturating_sub(ROUNDS_SHOWN))
            .map(|round| {
                let part = |part: Option<f64>| part.map_or("-".to_owned(), |s| format!("{s:.2}"));
                vec![
                    round.round.to_string(),
                    loss(round.loss_first),
                    loss(round.loss_last),
                    format!("{}/{}", round.members, round.roster),
                    bytes(round.frame_bytes),
                    part(round.seconds.map(|s| s.train)),
                    part(round.seconds.map(|s| s.sync())),
                    round.root.map_or("-".to_owned(), |root| root.short()),
                ]
            })
            .collect();
        let heads = [
            "round",
            "loss first",
            "last",
            "updates",
            "frames",
            "train s",
            "sync s",
            "root",
        ];
        text.push('\n');
        text.push_str(&table(&heads, &rows));
    }
    text.push('\n');
    text
}

/// What the daemon says that its link can carry, why, and what the roster has of it meanwhile.
fn capacity(own: &CapacityStatus, status: &Status) -> String {
    let CapacityStatus { mbit, origin, .. } = *own;
    let mut words = match mbit {
        0 => format!("owns no shards, {origin}"),
        mbit => format!("{mbit} Mbit/s, {origin}"),
    };
    let member = status.roster.iter().find(|peer| peer.own);
    if let Some(decided) = member.map(|peer| peer.capacity_mbit)
        && decided != mbit
    {
        words.push_str(&format!("; decided so far: {decided} Mbit/s"));
    }
    words
}

/// What a validator did, or what was said of this peer.
fn show_audits(audit: &AuditStatus, line: &mut impl FnMut(&str, String)) {
    if audit.validates {
        line(
            "audits",
            format!(
                "{} done, {} asked for by panels: {} passed, {} grey, {} failed; {} not possible; {:.1} s of computing; \
                 {} rounds to go; {} validators judge",
                audit.audits(),
                audit.panels,
                audit.passed,
                audit.grey,
                audit.failed,
                audit.undone,
                audit.seconds,
                audit.open_rounds,
                audit.validators
            ),
        );
    } else if audit.findings.is_empty() {
        line("audits", "nobody found anything wrong here".to_owned());
    }
    let shown = audit.findings.len().saturating_sub(FINDINGS_SHOWN);
    for finding in audit.findings.iter().skip(shown) {
        let whose = match audit.validates {
            true => format!("peer {}: ", finding.peer.get(..8).unwrap_or(&finding.peer)),
            false => String::new(),
        };
        let state = match finding.state {
            FindingState::Stands => "",
            FindingState::Disputed => " (disputed)",
            FindingState::Overruled => " (overruled: it does not count)",
        };
        line(
            "finding",
            format!(
                "{whose}{}, says validator {}{state}",
                finding.words, finding.validator
            ),
        );
        if let Some(segment) = finding.first_failing {
            line("", format!("first segment that fails: {segment}"));
        }
    }
    for (peer, round) in &audit.suspended {
        line("suspended", format!("{peer}, not paid up to round {round}"));
    }
    if let Some(settled) = audit.settled.back() {
        let shares: Vec<String> = settled
            .scores
            .iter()
            .map(|score| {
                let peer = score.peer.get(..8).unwrap_or(&score.peer);
                format!("{peer} {:.1} %", score.share_ppm as f64 / 1e4)
            })
            .collect();
        line(
            "settled",
            format!("epoch {}: {}", settled.epoch, shares.join(", ")),
        );
    }
    for (validator, times) in &audit.flagged {
        line(
            "flagged",
            format!("validator {validator}: {times} times outvoted or in contradiction"),
        );
    }
}

/// Where the run stands on the chain.
fn show_chain(chain: &ChainStatus, line: &mut impl FnMut(&str, String)) {
    let block = match chain.block {
        Some(block) => format!("block {block} of {}", chain.endpoint),
        None => "not reached yet".to_owned(),
    };
    let uid = chain
        .uid
        .map_or("not registered".to_owned(), |uid| format!("uid {uid}"));
    line("chain", format!("{block}, subnet {}, {uid}", chain.netuid));
    if let Some(own) = chain.own() {
        line(
            "paid",
            format!(
                "{} TAO by the last epoch: incentive {}, dividends {}, stake {} TAO",
                tao(own.emission_rao),
                share_u16(own.incentive),
                share_u16(own.dividends),
                tao(own.stake_rao)
            ),
        );
    }
    let waiting = match chain.attestations_queued {
        0 => String::new(),
        waiting => format!("; {waiting} waiting for the chain"),
    };
    match &chain.attested {
        Some(attested) => line(
            "attested",
            format!(
                "epoch {}, round {}, at block {}{waiting}",
                attested.epoch, attested.round, attested.block
            ),
        ),
        None => line("attested", format!("nothing yet{waiting}")),
    }
    if let Some(weights) = &chain.weights {
        let revealed = match weights.reveal_round {
            Some(round) => format!(", revealed by round {round} of the beacon"),
            None => String::new(),
        };
        line(
            "weights",
            format!(
                "of epoch {} at block {}{revealed}",
                weights.epoch, weights.block
            ),
        );
    }
    if let Some(of) = &chain.concentration {
        show_concentration(of, line);
    }
    for problem in chain.problems.values() {
        line("problem", problem.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::capacity::Origin;
    use crate::status::{
        ConcentrationStatus, Identity, PeerStatus, Phase, RoundStatus, StatusHandle,
        SubnetConcentration,
    };

    #[test]
    fn the_reason_for_waiting_is_told_in_words() {
        let handle = StatusHandle::new();
        handle.set_identity(Identity {
            name: "demo".into(),
            rounds: 9,
            parameters: 1000,
            ..Identity::default()
        });
        handle.set_phase(
            3,
            Phase::Exchanging,
            Some("waiting for the update of 00ff00ff".into()),
        );
        handle.set_roster(vec![PeerStatus {
            peer: "a1b2c3d4".into(),
            own: true,
            connected: true,
            accepted_round: Some(2),
            loss: Some(2.5),
            capacity_mbit: 100,
        }]);
        handle.set_capacity(CapacityStatus {
            mbit: 20,
            origin: Origin::Measured,
            measured_mbit: Some(18.7),
        });
        handle.set_decided(RoundStatus {
            round: 2,
            members: 1,
            roster: 1,
            frame_bytes: 125,
            ..RoundStatus::default()
        });
        let text = render(&handle.snapshot());
        for part in [
            "round       3 of 9: exchanging updates\n",
            "            waiting for the update of 00ff00ff\n",
            "20 Mbit/s, as measured while updates were exchanged; decided so far: 100 Mbit/s\n",
            "1.000 bits per parameter, 32 times less than f32",
            "a1b2c3d4 (this one)    up           2  2.500  100 Mbit/s\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn how_few_hold_stake_weight_and_incentive_is_told_in_words() {
        let mut concentration = SubnetConcentration {
            stake: ConcentrationStatus {
                holders: 12,
                top_1_ppm: 310_000,
                top_5_ppm: 801_000,
                top_10_ppm: 990_000,
                nakamoto: 2,
                gini_ppm: 500_000,
            },
            ..SubnetConcentration::default()
        };
        let show = |of| {
            let handle = StatusHandle::new();
            handle.set_chain(ChainStatus {
                concentration: Some(of),
                ..ChainStatus::default()
            });
            render(&handle.snapshot())
        };
        let text = show(concentration);
        for part in [
            "stake       of 12 validators the first has 31.0 %, the first 5 80.1 %, the first 10 99.0 %; 2 hold more \
             than half\n",
            "weight      0 validators whose weights count have any\n",
            "incentive   0 miners have any\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        concentration.stake_of_all = true;
        let text = show(concentration);
        assert!(
            text.contains("of 12 neurons (none may validate) the first has"),
            "{text}"
        );
    }
}
