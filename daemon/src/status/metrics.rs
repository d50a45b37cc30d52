//! The status as Prometheus gauges. Names end in their unit; everything is set anew for each scrape.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::{Phase, Status, SubnetConcentration};

/// Names each metric once per process.
pub(super) fn describe() {
    let gauges = [
        ("gradmesh_round", Unit::Count, "round that the daemon is in"),
        ("gradmesh_rounds", Unit::Count, "rounds of the run"),
        (
            "gradmesh_decided_round",
            Unit::Count,
            "last round known to be decided",
        ),
        ("gradmesh_applied_round", Unit::Count, "last round applied"),
        ("gradmesh_training", Unit::Count, "1 while local steps run"),
        (
            "gradmesh_waiting",
            Unit::Count,
            "1 while the daemon can only wait for others",
        ),
        (
            "gradmesh_finished",
            Unit::Count,
            "1 once the last round is applied",
        ),
        (
            "gradmesh_roster_peers",
            Unit::Count,
            "members of the roster",
        ),
        (
            "gradmesh_connected_peers",
            Unit::Count,
            "members that are connected, this one included",
        ),
        (
            "gradmesh_capacity_mbit",
            Unit::Count,
            "what this daemon says that its link can carry, Mbit/s",
        ),
        (
            "gradmesh_capacity_measured_mbit",
            Unit::Count,
            "what its link carried when it was full, Mbit/s",
        ),
        (
            "gradmesh_parameters",
            Unit::Count,
            "parameters of the model",
        ),
        (
            "gradmesh_loss_first_nats",
            Unit::Count,
            "first loss of the last decided round, mean",
        ),
        (
            "gradmesh_loss_last_nats",
            Unit::Count,
            "last loss of the last decided round, mean",
        ),
        (
            "gradmesh_round_members",
            Unit::Count,
            "updates that count in the last decided round",
        ),
        (
            "gradmesh_round_frame_bytes",
            Unit::Bytes,
            "bytes of its frames",
        ),
        (
            "gradmesh_round_tokens",
            Unit::Count,
            "tokens that it was trained on",
        ),
        (
            "gradmesh_round_seconds",
            Unit::Seconds,
            "where the time of the last applied round went",
        ),
        (
            "gradmesh_bits_per_param",
            Unit::Count,
            "bits of an update per parameter",
        ),
        (
            "gradmesh_sync_share",
            Unit::Count,
            "share of time that is not training",
        ),
        (
            "gradmesh_subnet_holders",
            Unit::Count,
            "how many hold any of the subnet's stake, weight, incentive",
        ),
        (
            "gradmesh_subnet_top_share",
            Unit::Count,
            "share of it that the first so many hold",
        ),
        (
            "gradmesh_subnet_majority_holders",
            Unit::Count,
            "how many of the first hold more than half of it",
        ),
    ];
    for (name, unit, text) in gauges {
        describe_gauge!(name, unit, text);
    }
    describe_counter!(
        "gradmesh_traffic_bytes",
        Unit::Bytes,
        "bytes through the sockets"
    );
}

/// Writes `status` into the process's recorder.
pub(super) fn set(status: &Status) {
    let flag = |set: bool| if set { 1.0 } else { 0.0 };
    gauge!("gradmesh_round").set(status.round as f64);
    gauge!("gradmesh_rounds").set(status.identity.rounds as f64);
    gauge!("gradmesh_parameters").set(status.identity.parameters as f64);
    gauge!("gradmesh_training").set(flag(status.phase == Phase::Training));
    gauge!("gradmesh_waiting").set(flag(status.phase.waits()));
    gauge!("gradmesh_finished").set(flag(status.finished));
    gauge!("gradmesh_roster_peers").set(status.roster.len() as f64);
    let connected = status.roster.iter().filter(|peer| peer.connected).count();
    gauge!("gradmesh_connected_peers").set(connected as f64);
    let optional = [
        (
            "gradmesh_capacity_mbit",
            status.capacity.map(|capacity| f64::from(capacity.mbit)),
        ),
        (
            "gradmesh_capacity_measured_mbit",
            status.capacity.and_then(|capacity| capacity.measured_mbit),
        ),
        ("gradmesh_decided_round", status.decided.map(|r| r as f64)),
        ("gradmesh_applied_round", status.applied.map(|r| r as f64)),
        ("gradmesh_bits_per_param", status.bits_per_param),
        ("gradmesh_sync_share", status.sync_share),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            gauge!(name).set(value);
        }
    }
    if let Some(round) = status.history.back() {
        gauge!("gradmesh_round_members").set(f64::from(round.members));
        gauge!("gradmesh_round_frame_bytes").set(round.frame_bytes as f64);
        gauge!("gradmesh_round_tokens").set(round.tokens as f64);
        if let (Some(first), Some(last)) = (round.loss_first, round.loss_last) {
            gauge!("gradmesh_loss_first_nats").set(first);
            gauge!("gradmesh_loss_last_nats").set(last);
        }
    }
    if let Some(seconds) = status.history.iter().rev().find_map(|r| r.seconds) {
        for (part, value) in [
            ("train", seconds.train),
            ("encode", seconds.encode),
            ("exchange", seconds.exchange),
            ("decide", seconds.decide),
            ("apply", seconds.apply),
            ("hidden", seconds.hidden),
        ] {
            gauge!("gradmesh_round_seconds", "part" => part).set(value);
        }
    }
    let concentration = status.chain.as_ref().and_then(|chain| chain.concentration);
    for (name, of) in concentration.iter().flat_map(SubnetConcentration::named) {
        gauge!("gradmesh_subnet_holders", "of" => name).set(of.holders as f64);
        gauge!("gradmesh_subnet_majority_holders", "of" => name).set(of.nakamoto as f64);
        for (first, ppm) in [
            ("1", of.top_1_ppm),
            ("5", of.top_5_ppm),
            ("10", of.top_10_ppm),
        ] {
            gauge!("gradmesh_subnet_top_share", "of" => name, "first" => first)
                .set(f64::from(ppm) / 1e6);
        }
    }
    for (plane, direction, bytes) in [
        ("control", "in", status.traffic.control_in),
        ("control", "out", status.traffic.control_out),
        ("bulk", "in", status.traffic.bulk_in),
        ("bulk", "out", status.traffic.bulk_out),
    ] {
        counter!("gradmesh_traffic_bytes", "plane" => plane, "direction" => direction)
            .absolute(bytes);
    }
}
