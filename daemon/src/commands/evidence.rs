//! `gradmesh evidence list` and `gradmesh evidence replay FILE`
//!
//! A replay is a process of its own: it knows the evidence, the contents beside it, the manifest of the run and its text, and
//! nothing of the daemon that wrote them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bytes::Bytes;
use gradmesh_protocol::audit::evidence::{EVIDENCE_BYTES_MAX, Evidence, NeedKind, SignedEvidence};
use gradmesh_protocol::audit::judgement::judge;
use gradmesh_protocol::audit::segment::{SegmentList, data_hash};
use gradmesh_protocol::audit::standing::Finding;
use gradmesh_protocol::audit::verdict::{Check, Outcome};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::manifest::Manifest;
use gradmesh_trainer::Trainer;
use gradmesh_trainer::audit::{TileInputs, check_tile};
use gradmesh_trainer::data::{Corpus, DataManifest};
use gradmesh_trainer::optimizer::f32_values;
use gradmesh_trainer::replica::Shape;
use gradmesh_trainer::torch::calibrate::device_class;
use gradmesh_trainer::torch::{TorchSettings, device, set_threads, version_check};
use gradmesh_trainer::work::WorkState;
use serde::Serialize;

use super::{existing_dir, print_json};
use crate::cli::{EvidenceCommand, GlobalArgs};
use crate::daemon::audit::chunks_of;
use crate::daemon::audit::files::EvidenceDir;
use crate::run_settings::RunSettings;
use crate::terminal::{say, table};
use crate::worker::{
    CORPUS_BYTES_MAX, Ground, MICRO_BATCH, PublicRoots, SegmentClaim, dtype, flat, local_values,
};

pub(super) async fn run(global: &GlobalArgs, command: EvidenceCommand) -> anyhow::Result<()> {
    match command {
        EvidenceCommand::List(args) => list(global, args.json),
        EvidenceCommand::Replay {
            file,
            data,
            threads,
            device,
            json,
        } => {
            let machine = ReplayMachine {
                data,
                threads: threads.map_or(1, Into::into),
                device: device.unwrap_or_else(|| "auto".to_owned()),
            };
            let replayed = tokio::task::spawn_blocking(move || replay(&file, &machine));
            let replayed = replayed.await.context("the replay was broken off")??;
            match json.json {
                true => print_json(&replayed),
                false => {
                    say(&replayed.text());
                    Ok(())
                }
            }
        }
    }
}

#[derive(Serialize)]
struct Listed {
    path: PathBuf,
    round: u64,
    peer: String,
    finding: String,
}

fn list(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let dir = existing_dir(global)?;
    let files = EvidenceDir::of(dir.path()).list()?;
    let listed = files.into_iter().map(|path| {
        let signed = read(&path)?;
        let verdict = signed.verdict();
        Ok(Listed {
            path,
            round: verdict.round.0,
            peer: verdict.peer.to_string(),
            finding: Finding::of(&verdict).to_string(),
        })
    });
    let listed = listed.collect::<anyhow::Result<Vec<Listed>>>()?;
    if json {
        return print_json(&listed);
    }
    if listed.is_empty() {
        say(&format!("no evidence in {}", dir.path().display()));
        return Ok(());
    }
    let rows: Vec<_> = listed
        .iter()
        .map(|of| {
            let peer = of.peer.get(..8).unwrap_or(&of.peer).to_owned();
            vec![
                of.round.to_string(),
                peer,
                of.finding.clone(),
                of.path.display().to_string(),
            ]
        })
        .collect();
    say(&table(&["round", "peer", "finding", "file"], &rows));
    Ok(())
}

/// Reads a piece of evidence; its name has to be its address.
fn read(path: &Path) -> anyhow::Result<SignedEvidence> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(EVIDENCE_BYTES_MAX as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .with_context(|| format!("{}: check the path", path.display()))?;
    let signed = SignedEvidence::decode(&bytes)
        .with_context(|| format!("{} is no evidence, or a damaged one", path.display()))?;
    Ok(signed)
}

/// How a replay is done here.
struct ReplayMachine {
    data: Option<PathBuf>,
    threads: u16,
    device: String,
}

/// What a replay came to.
#[derive(Debug, Serialize)]
struct Replayed {
    file: PathBuf,
    address: Hash,
    /// What the validator found.
    finding: String,
    /// Whether the verdict stands; absent where nothing can be run again.
    stands: Option<bool>,
    /// What was found here, in words.
    here: String,
    /// The error of the segment here, parts per billion.
    error_ppb: Option<u64>,
    /// What it may be between the peer's machine and this one.
    tolerance_ppb: Option<u64>,
    /// Class of this machine.
    device: String,
}

impl Replayed {
    fn text(&self) -> String {
        let stands = match self.stands {
            Some(true) => "the verdict stands",
            Some(false) => "the verdict does NOT stand",
            None => "nothing to run again",
        };
        format!(
            "evidence  {}\nsays      {}\nhere      {} ({})\nso        {stands}\n",
            self.address, self.finding, self.here, self.device
        )
    }
}

/// Does an audit again.
fn replay(file: &Path, machine: &ReplayMachine) -> anyhow::Result<Replayed> {
    let signed = read(file)?;
    let dir = EvidenceDir::around(file);
    let manifest = dir.manifest()?.manifest;
    signed
        .check(&manifest)
        .context("the evidence contradicts itself: its validator is to blame")?;
    let evidence = &signed.evidence;
    let mut replayed = Replayed {
        file: file.to_owned(),
        address: signed.address(),
        finding: Finding::of(&signed.verdict()).to_string(),
        stands: None,
        here: String::new(),
        error_ppb: None,
        tolerance_ppb: None,
        device: String::new(),
    };
    let contents = Contents {
        dir: &dir,
        evidence,
    };
    match evidence.verdict.check {
        Check::Segment => redo(&contents, &manifest, machine, &mut replayed)?,
        Check::Compression => recompress(&contents, &manifest, &mut replayed)?,
        Check::Start => restart(&contents, &manifest, machine, &mut replayed)?,
        Check::Availability => {
            replayed.here = "what could not be had then can only be asked for again".to_owned();
        }
    }
    Ok(replayed)
}

/// What lies beside the evidence.
struct Contents<'a> {
    dir: &'a EvidenceDir,
    evidence: &'a Evidence,
}

impl Contents<'_> {
    /// All contents of a kind, in order.
    fn of(&self, kind: NeedKind) -> anyhow::Result<Vec<Bytes>> {
        let needs = self.evidence.needs.iter().filter(|need| need.kind == kind);
        let read = needs.map(|need| {
            let content = self.dir.read_content(&need.content);
            content.with_context(|| {
                format!(
                    "{}: missing or changed: get it from the validator",
                    self.dir
                        .path()
                        .join("content")
                        .join(need.content.to_string())
                        .display()
                )
            })
        });
        read.collect()
    }

    /// The one content with this hash.
    fn named(&self, hash: &Hash) -> anyhow::Result<Bytes> {
        self.dir.read_content(hash).with_context(|| {
            format!("content {hash}: missing or changed: get it from the validator")
        })
    }
}

/// The run on this machine.
struct Run {
    settings: RunSettings,
    corpus: Corpus,
    shape: Shape,
    class: String,
}

impl Run {
    fn load(
        contents: &Contents<'_>,
        manifest: &Manifest,
        machine: &ReplayMachine,
    ) -> anyhow::Result<(Run, Box<dyn Trainer>)> {
        version_check()?;
        let choice = device::select(machine.device.parse()?)?;
        set_threads(machine.threads);
        let settings = RunSettings::of(manifest)?;
        let torch = TorchSettings {
            optimizer: settings.inner.clone(),
            precision: settings.precision,
            device: choice.device,
            micro_batch: MICRO_BATCH,
        };
        let class = device_class(&torch, machine.threads);
        let trainer = settings.model.trainer(torch)?;
        let listed = contents.of(NeedKind::Data)?;
        let listed = listed.first().context("the evidence names no data")?;
        let data = DataManifest::from_bytes(listed)?;
        ensure!(
            Hash(data.root()) == manifest.data.root,
            "the evidence names other data than the run has"
        );
        let data_dir = machine.data.clone().or_else(|| contents.dir.data_dir());
        let data_dir =
            data_dir.context("where the run's text lies is not known: name it with --data")?;
        let corpus = Corpus::load(&data_dir, &data, CORPUS_BYTES_MAX).with_context(|| {
            format!(
                "the run's text in {}; or name another directory with --data",
                data_dir.display()
            )
        })?;
        let shape = Shape::new(&settings.model.parameters(), settings.replica)?;
        let run = Run {
            settings,
            corpus,
            shape,
            class,
        };
        Ok((run, trainer))
    }

    fn ground<'a>(
        &'a self,
        manifest: &'a Manifest,
        theta: &'a [f32],
    ) -> anyhow::Result<Ground<'a>> {
        let settings = &self.settings;
        Ok(Ground {
            audit: manifest.audit.as_ref().context("the run has no audits")?,
            dtype: dtype(settings.precision),
            shape: &self.shape,
            windows: self.corpus.windows(settings.sequence_tokens)?,
            batch_sequences: settings.batch_sequences,
            steps_per_round: settings.steps_per_round,
            device: &self.class,
            theta,
            roots: PublicRoots::of(&self.shape, theta),
        })
    }
}

fn redo(
    contents: &Contents<'_>,
    manifest: &Manifest,
    machine: &ReplayMachine,
    replayed: &mut Replayed,
) -> anyhow::Result<()> {
    let evidence = contents.evidence;
    let verdict = &evidence.verdict;
    let claimed = evidence
        .segment
        .as_ref()
        .context("the evidence has no segment")?;
    let (run, mut trainer) = Run::load(contents, manifest, machine)?;
    let before = contents.of(NeedKind::ThetaBefore)?;
    let after = flat(&contents.of(NeedKind::ThetaAfter)?);
    let start = [before, contents.of(NeedKind::InnerBefore)?].concat();
    let elements = run.shape.layout().elements();
    let start = WorkState::from_chunks(elements, &start).context("the state before the segment")?;
    ensure!(
        start.leaves()?.roots() == claimed.before,
        "the state before the segment is not the one that the peer committed to"
    );
    ensure!(
        gradmesh_trainer::work::theta_root(&after) == claimed.after.theta,
        "the parameters after the segment are not those that the peer committed to"
    );
    let ground = run.ground(manifest, &start.theta)?;
    let claim = SegmentClaim {
        round: verdict.round,
        peer: verdict.peer,
        seed: evidence.round_seed(),
        segment: verdict.segment,
        start: &start,
        after: claimed.after,
        claimed: &after,
    };
    let (error_ppb, _) = ground.segment_error(trainer.as_mut(), &claim)?;
    let theirs = &evidence.claim.machine.device;
    let tolerance = ground.audit.tolerance_ppb(theirs, &run.class, ground.dtype);
    let outcome = judge(error_ppb, tolerance.into());
    replayed.stands = Some((outcome == Outcome::Failed) == (verdict.outcome == Outcome::Failed));
    replayed.here = format!(
        "segment {} done again: relative error {:.6} where {:.6} is tolerated",
        verdict.segment,
        error_ppb as f64 / 1e9,
        f64::from(tolerance) / 1e9
    );
    replayed.error_ppb = Some(error_ppb);
    replayed.tolerance_ppb = Some(tolerance.into());
    replayed.device = run.class;
    Ok(())
}

/// The compression of a tile again: it needs no data and no trainer, and gives the same bits everywhere.
fn recompress(
    contents: &Contents<'_>,
    manifest: &Manifest,
    replayed: &mut Replayed,
) -> anyhow::Result<()> {
    let tile = contents
        .evidence
        .tile
        .as_ref()
        .context("the evidence has no tile")?;
    let settings = RunSettings::of(manifest)?;
    let shape = Shape::new(&settings.model.parameters(), settings.replica)?;
    let index = usize::try_from(tile.tile)?;
    let elements = shape
        .layout()
        .tiles()
        .get(index)
        .context("the model has no such tile")?;
    let elements = elements.elements();
    let chunks = chunks_of(&elements).zip(&tile.theta);
    let chunks = chunks.map(|(chunk, hash)| Ok((chunk, contents.named(hash)?)));
    let local = local_values(&chunks.collect::<anyhow::Result<_>>()?, elements);
    let local = local.context("the peer's parameters are not all here")?;
    let start = contents.of(NeedKind::ThetaBefore)?;
    let mut frames = vec![Bytes::new(); shape.shard_count()];
    let shard = shape
        .shard_of_tile(index)
        .context("the tile is in no shard")?;
    if let Some(frame) = frames.get_mut(shard) {
        *frame = contents.named(&tile.frame)?;
    }
    let inputs = TileInputs {
        tile: index,
        feedback_before: &f32_values(&contents.named(&tile.before)?),
        start: &flat(&start),
        local: &local,
        feedback_after: &f32_values(&contents.named(&tile.after)?),
    };
    // A frame names its codec itself; a run's updates are encoded at one of two stages.
    let faults =
        [Stage::Update, Stage::Local].map(|stage| check_tile(&shape, stage, &inputs, &frames));
    replayed.stands = Some(faults.iter().all(Result::is_err));
    replayed.here = match faults {
        [Err(fault), Err(_)] => format!("tile {index} compressed again: {fault}"),
        _ => format!("tile {index} compressed again: the same bits"),
    };
    Ok(())
}

/// What can be said again of where a round began: the list of segments and its data. The rest follows from the decisions of the
/// run, which a replay does not have.
fn restart(
    contents: &Contents<'_>,
    manifest: &Manifest,
    machine: &ReplayMachine,
    replayed: &mut Replayed,
) -> anyhow::Result<()> {
    let evidence = contents.evidence;
    let list = contents.of(NeedKind::Segments)?;
    let list = SegmentList::decode(
        list.first()
            .context("the evidence has no list of segments")?,
    )?;
    let (run, _) = Run::load(contents, manifest, machine)?;
    let ground = run.ground(manifest, &[])?;
    let segment = evidence.verdict.segment;
    let assigned = ground.sequences(
        &evidence.round_seed(),
        &evidence.verdict.peer,
        ground.steps(segment),
    );
    let assigned = data_hash(assigned);
    let trained = list.work().get(segment as usize).map(|work| work.data);
    let tokens: u128 = list.work().iter().map(|work| u128::from(work.tokens)).sum();
    let claim = &evidence.claim;
    let faults = [
        (
            list.commitment() != claim.work,
            "the list is not the committed one",
        ),
        (
            trained != Some(assigned),
            "other sequences than it was assigned",
        ),
        (
            tokens != u128::from(claim.tokens),
            "other tokens than its header says",
        ),
    ];
    let fault = faults.iter().find(|(wrong, _)| *wrong);
    replayed.stands = fault.map(|_| true);
    replayed.here = match fault {
        Some((_, fault)) => (*fault).to_owned(),
        None => "list, data and tokens are right; whether the parameters and the optimizer began where they had to follows from \
                 the run's decisions"
            .to_owned(),
    };
    replayed.device = run.class;
    Ok(())
}
