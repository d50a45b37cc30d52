//! Evidence of an audit that failed: made from what was fetched and found, and written with all that a replay needs.

use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use gradmesh_protocol::audit::evidence::view::View;
use gradmesh_protocol::audit::evidence::{
    Claim, ClaimedSegment, Evidence, Need, NeedKind, Redone, WrongTile,
};
use gradmesh_protocol::audit::judgement::Machine;
use gradmesh_protocol::audit::segment::SegmentList;
use gradmesh_protocol::audit::verdict::{Check, Verdict};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

use super::chunks_of;
use super::{Auditor, Job};
use crate::worker::{AuditFindings, AuditInputs};

/// Contents by what they are for, in the order in which evidence lists them.
#[derive(Default)]
struct Contents {
    needs: Vec<Need>,
    contents: Vec<(Hash, Bytes)>,
}

impl Contents {
    fn add(&mut self, kind: NeedKind, bytes: Bytes) {
        let content = Hash::of_content(&bytes);
        self.needs.push(Need { kind, content });
        self.contents.push((content, bytes));
    }
}

/// Writes the evidence of `verdict`, and has it name that.
pub(super) fn write(
    auditor: &Auditor,
    job: &Job,
    inputs: Option<&AuditInputs>,
    findings: &AuditFindings,
    verdict: &mut Verdict,
) -> anyhow::Result<PathBuf> {
    let header = &job.header.header;
    let mut contents = Contents::default();
    contents.add(NeedKind::Data, auditor.data.to_bytes().into());
    if let Some(inputs) = inputs {
        contents.add(NeedKind::Segments, inputs.list.encode().into());
    }
    if let (Some(inputs), Some(_)) = (inputs, &findings.redone) {
        let theta = inputs.end_theta.len();
        for (place, chunk) in inputs.start.iter().enumerate() {
            let kind = match place < theta {
                true => NeedKind::ThetaBefore,
                false => NeedKind::InnerBefore,
            };
            contents.add(kind, chunk.clone());
        }
        for chunk in &inputs.end_theta {
            contents.add(NeedKind::ThetaAfter, chunk.clone());
        }
    }
    let tile = match (&findings.tile, inputs) {
        (Some(tile), Some(inputs)) => Some(wrong_tile(auditor, tile, inputs, &mut contents)?),
        _ => None,
    };
    contents.needs.sort_by_key(|need| need.kind);
    let segment = inputs.and_then(|inputs| claimed(&inputs.list, job.pick.segment));
    let redone = findings.redone.as_ref().map(|redone| Redone {
        after: redone.roots,
        loss_micronats: redone.loss_micronats,
        gradient_norm_micro: redone.gradient_norm_micro,
        sketch_seed: job.pick.sketch,
        claimed: redone.sketch_claimed,
        redone: redone.sketch_redone,
    });
    let evidence = Evidence {
        verdict: verdict.clone(),
        decision: job.decision,
        beacon: job.beacon,
        basis: job.basis,
        claim: Claim::of(header),
        segment,
        machine: Machine {
            build: env!("CARGO_PKG_VERSION").into(),
            device: auditor.device.clone(),
        },
        redone: redone.filter(|_| findings.check == Check::Segment),
        tile,
        needs: contents.needs,
    };
    let signed = evidence.sign(&auditor.keypair);
    signed
        .check(&auditor.manifest)
        .context("this validator's own evidence does not hold")?;
    let address = signed.address();
    let json = serde_json::to_string_pretty(&View::from(&signed)).context("evidence as JSON")?;
    auditor.evidence.write_content(&contents.contents)?;
    let path = auditor.evidence.write(&address, &signed.encode(), &json)?;
    verdict.evidence = address;
    Ok(path)
}

/// A segment with its proof.
fn claimed(list: &SegmentList, segment: u32) -> Option<ClaimedSegment> {
    let place = usize::try_from(segment).ok()?;
    Some(ClaimedSegment {
        before: *list.states().get(place)?,
        after: *list.states().get(place + 1)?,
        work: *list.work().get(place)?,
        proof: list.tree().proof(place)?,
    })
}

fn wrong_tile(
    auditor: &Auditor,
    (index, start): &(usize, Bytes),
    inputs: &AuditInputs,
    contents: &mut Contents,
) -> anyhow::Result<WrongTile> {
    let (shape, index) = (&auditor.shape, *index);
    let tiles = shape.layout().tiles();
    let elements = tiles
        .get(index)
        .context("there is no such tile")?
        .elements();
    let audited = inputs.tiles.iter().find(|tile| tile.index == index);
    let audited = audited.context("the tile was not fetched")?;
    let shard = shape
        .shard_of_tile(index)
        .context("the tile is in no shard")?;
    let frame = inputs
        .frames
        .get(shard)
        .context("the frame was not fetched")?;
    let proof = |leaves: &[Hash]| merkle::Tree::from_leaves(leaves.to_vec()).proof(index);
    let proofs = inputs
        .feedback
        .as_ref()
        .context("no error feedback was fetched")?;
    let before_proof = proof(&proofs.0).context("error feedback without the tile")?;
    let after_proof = proof(&proofs.1).context("error feedback without the tile")?;
    contents.add(NeedKind::Feedback, audited.before.clone());
    contents.add(NeedKind::Feedback, audited.after.clone());
    contents.add(NeedKind::Frame, frame.clone());
    let theta = chunks_of(&elements).filter_map(|chunk| inputs.local.get(&chunk));
    let theta: Vec<Bytes> = theta.cloned().collect();
    for chunk in &theta {
        contents.add(NeedKind::ThetaAfter, chunk.clone());
    }
    contents.add(NeedKind::ThetaBefore, start.clone());
    Ok(WrongTile {
        tile: index as u64,
        tiles: tiles.len() as u64,
        before: Hash::of_content(&audited.before),
        before_proof,
        after: Hash::of_content(&audited.after),
        after_proof,
        theta: theta.iter().map(|chunk| Hash::of_content(chunk)).collect(),
        frame: Hash::of_content(frame),
    })
}
