//! Runs whose training costs next to nothing: their updates are noise, and a round is a pause and an exchange.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::mesh::Mesh;
use super::network::Place;
use super::{CodecName, Plan};

/// Tiles of a shard, unless that makes more shards than [`SHARDS_MAX`]: what run files have by default, but named, since
/// predictions of the same exchange count on it.
const TILES_PER_SHARD: u64 = 64;
const SHARDS_MAX: u64 = 512;
const TILE_ELEMENTS: u64 = 4096;
/// More than are measured, so that no epoch ends and no checkpoint is written meanwhile.
const ROUNDS: u32 = 1_000_000;
/// How long a peer may be behind the others before a round goes on without it: what is measured are whole rounds.
const DEADLINE_MS: u32 = 60_000;
/// Of the run's data, which nobody reads; a run has to have some.
const TEXT: &str = include_str!("../../../LICENSE-APACHE");

/// What a mesh exchanges, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    /// Of each tensor.
    pub(crate) elements: Vec<u64>,
    pub(crate) codec: CodecName,
    pub(crate) plan: Plan,
    pub(crate) peers: u32,
    /// How long the daemons sleep between two exchanges.
    pub(crate) pause: Duration,
    /// Whether the next round's pause goes on while a round is exchanged.
    pub(crate) overlap: bool,
}

/// Tiles of a shard of a synthetic model with so many in all.
pub(crate) fn tiles_per_shard(tiles: u64) -> u64 {
    TILES_PER_SHARD.max(tiles.div_ceil(SHARDS_MAX))
}

impl Run {
    /// The run file, which names `config.json` and the directory `text` beside it.
    fn to_toml(&self) -> String {
        let tiles: u64 = self
            .elements
            .iter()
            .map(|count| count.div_ceil(TILE_ELEMENTS))
            .sum();
        let tiles_per_shard = tiles_per_shard(tiles);
        let Run {
            codec,
            plan,
            peers,
            overlap,
            ..
        } = self;
        let overlap = u8::from(*overlap);
        format!(
            "name = \"exchange\"\n\
             [model]\nconfig = \"config.json\"\n\
             [data]\ndir = \"text\"\nsequence_tokens = 32\n\
             [inner]\nbatch_sequences = 1\n\
             [outer]\nrule = \"plain\"\nrate = 1.0\n\
             [codec]\ntiles_per_shard = {tiles_per_shard}\n{}\
             [exchange]\noverlap = {overlap}\n{}\
             [schedule]\nsteps_per_round = 1\nrounds = {ROUNDS}\nrounds_per_epoch = {ROUNDS}\n\
             [trust]\npeers_min = {peers}\n\
             [timing]\ndeadline_floor_ms = {DEADLINE_MS}\n",
            codec.to_toml(),
            plan.to_toml(),
        )
    }

    fn model(&self) -> String {
        let step_ms = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX);
        json!({"model_type": "gradmesh-synthetic", "elements": self.elements, "step_ms": step_ms})
            .to_string()
    }
}

impl Mesh {
    /// Writes the run below `home` and starts a daemon at each place.
    pub(crate) async fn start_synthetic(
        run: &Run,
        gradmesh: &Path,
        places: &[Place],
        home: &Path,
    ) -> anyhow::Result<Mesh> {
        let run_file = home.join("run.toml");
        fs::create_dir(home.join("text"))?;
        fs::write(home.join("text/licence.txt"), TEXT)?;
        fs::write(home.join("config.json"), run.model())?;
        fs::write(&run_file, run.to_toml())?;
        Mesh::launch(&run_file, gradmesh, places, home, &[]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_file_asks_for_codec_plan_and_few_enough_shards() {
        let run = Run {
            elements: vec![1 << 31],
            codec: "sparse-2bit".parse().unwrap(),
            plan: Plan::Reduce,
            peers: 4,
            pause: Duration::from_millis(250),
            overlap: true,
        };
        let text = run.to_toml();
        for part in [
            "value_bits = 2\n",
            "[exchange]\noverlap = 1\nplan = \"reduce\"\n",
            "tiles_per_shard = 1024\n",
            "peers_min = 4\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(run.model().contains("\"step_ms\":250"));
    }
}
