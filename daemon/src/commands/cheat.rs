//! `gradmesh cheat KIND (TICKET | --netuid N)`: a member that cheats, to see what validators make of it.
//!
//! The daemon is the honest one, with another trainer in the place of its own. What no trainer can do is done from outside:
//! who withholds the states of its work has them deleted as soon as they are there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::adversary::{Kind, wrap};
use gradmesh_trainer::audit::decode_update;

use super::join::{self, Part};
use crate::cli::{GlobalArgs, JoinArgs};
use crate::daemon::GuiseParts;
use crate::machine::MachineFile;

/// How often the states of one who withholds are looked for: far more often than a round is trained.
const DELETE_EVERY: Duration = Duration::from_millis(20);

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    kind: Kind,
    args: JoinArgs,
) -> anyhow::Result<()> {
    let guise = Box::new(move |trainer, parts: GuiseParts| {
        if kind == Kind::Withhold {
            let work = parts.dir.join("work");
            std::thread::spawn(move || {
                loop {
                    delete_states(&work);
                    std::thread::sleep(DELETE_EVERY);
                }
            });
        }
        let seed = Hash::of_content(&parts.me.0);
        let steps = parts.steps_per_round;
        let others = Box::new(move || update_of_another(&parts));
        wrap(kind, trainer, steps, seed, others)
    });
    join::run(global, settings, args, Part::default().in_guise(guise)).await
}

/// What another peer's newest decided update changes, flat, as far as its frames are on this disk.
fn update_of_another(parts: &GuiseParts) -> Option<Vec<f32>> {
    let last = parts.store.decided().ok()??;
    let record = parts.store.decisions(last, 1).ok()?.pop()?;
    record.headers.iter().find_map(|signed| {
        let header = &signed.header;
        let frames = header.update.frames.iter();
        let frames: Option<Vec<_>> = frames
            .map(|frame| parts.disk.read_frame(header.round, &frame.hash))
            .collect();
        let frames = frames.filter(|_| header.peer != parts.me)?;
        decode_update(&parts.shape, Stage::Update, &frames).ok()
    })
}

fn delete_states(work: &Path) {
    let rounds = fs::read_dir(work).into_iter().flatten().flatten();
    let states =
        rounds.flat_map(|round| fs::read_dir(round.path()).into_iter().flatten().flatten());
    let is_state = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("state-"))
    };
    for path in states.map(|state| state.path()).filter(is_state) {
        // One that is gone already is as good.
        let _ = fs::remove_file(path);
    }
}
