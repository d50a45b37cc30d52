use std::fs;

use super::*;

/// Loads `text` as a run file in a directory with one data file.
fn load(text: &str) -> Result<LoadedRunFile, RunFileError> {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("text")).unwrap();
    fs::write(temp.path().join("text/a.txt"), "words").unwrap();
    let path = temp.path().join("run.toml");
    fs::write(&path, text).unwrap();
    LoadedRunFile::load(&path)
}

fn faults(text: &str) -> Vec<(String, String)> {
    match load(text) {
        Err(RunFileError::Faults { faults, .. }) => {
            faults.into_iter().map(|f| (f.key, f.problem)).collect()
        }
        other => panic!("expected faults, got {other:?}"),
    }
}

const SMALLEST: &str = "
name = \"small\"
model.config = \"demo-1m\"
data.dir = \"text\"
schedule.rounds = 5
";

fn facts() -> DataFacts {
    DataFacts {
        root: Hash::of_content(b"data"),
        bytes: 5,
        files: 1,
    }
}

#[test]
fn the_smallest_run_file_gives_a_sound_manifest_with_the_defaults() {
    let manifest = load(SMALLEST).unwrap().manifest(
        PeerKey([1; 32]),
        Link::alone(&PeerKey([1; 32])),
        Hash::of_content(b"seed"),
        &facts(),
        manifest::Chain::None,
    );
    assert_eq!(manifest.validate(), []);
    assert_eq!(manifest.inner.learning_rate_ppm, 400);
    assert_eq!(manifest.inner.beta2_ppm, 950_000);
    assert_eq!(manifest.outer.rate_ppm, 2_000_000);
    assert_eq!(manifest.outer.momentum_ppm, 0);
    assert_eq!(manifest.codec.kind, CodecKind::Sparse);
    assert_eq!(manifest.trust.mode, TrustMode::Byzantine);
    assert_eq!(manifest.seed, Hash::of_content(b"seed"));
    assert_eq!(manifest.data.root, facts().root);
}

#[test]
fn nesterov_brings_its_own_rate_and_momentum() {
    let text = format!("{SMALLEST}\nouter.rule = \"nesterov\"");
    let manifest = load(&text).unwrap().manifest(
        PeerKey([1; 32]),
        Link::alone(&PeerKey([1; 32])),
        Hash::ZERO,
        &facts(),
        manifest::Chain::None,
    );
    assert_eq!(manifest.outer.rate_ppm, 700_000);
    assert_eq!(manifest.outer.momentum_ppm, 900_000);
}

#[test]
fn a_named_seed_wins_over_the_drawn_one() {
    let seed = Hash::of_content(b"named");
    let text = format!("seed = \"{seed}\"\n{SMALLEST}");
    let manifest = load(&text).unwrap().manifest(
        PeerKey([1; 32]),
        Link::alone(&PeerKey([1; 32])),
        Hash::ZERO,
        &facts(),
        manifest::Chain::None,
    );
    assert_eq!(manifest.seed, seed);
}

#[test]
fn every_fault_is_listed_at_once_with_its_key_and_what_is_allowed() {
    let found = faults(
        "
        name = \"\"
        colour = \"blue\"
        [model]
        config = \"missing.json\"
        dtype = \"f16\"
        [data]
        dir = \"nowhere\"
        sequence_tokens = 1
        [inner]
        learning_rate = -0.1
        beta1 = \"high\"
        beta2 = 0.12345678
        rate = 1
        [codec]
        k = 0
        [schedule]
        steps_per_round = -5
        [trust]
        peers_min = 65
        ",
    );
    let expected = [
        ("colour", "expected one of"),
        ("model.dtype", "`f32` or `bf16`"),
        ("inner.beta1", "expected f64"),
        ("inner.rate", "expected one of"),
        ("schedule.steps_per_round", "expected u32"),
        ("model.config", "demo-1m"),
        ("data.dir", "a directory of text files"),
        ("name", "1 to 64 characters"),
        ("schedule.rounds", "missing"),
        ("inner.learning_rate", "from 0 to"),
        ("inner.beta2", "finer than 0.000001"),
        ("data.sequence_tokens", "2..=1048576"),
        ("codec.k", "1..=1024"),
        ("trust.peers_min", "1..=64"),
    ];
    for (key, says) in expected {
        let problem = found.iter().find(|(found, _)| found == key);
        let (_, problem) = problem.unwrap_or_else(|| panic!("{key} is missing in {found:#?}"));
        assert!(problem.contains(says), "{key}: {problem}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn a_section_of_the_wrong_kind_is_a_fault_of_that_section() {
    let found = faults(
        "name = \"x\"\ncodec = 5\n[model]\nconfig = \"demo-1m\"\n[data]\ndir = \"text\"\n[schedule]\nrounds = 1\n",
    );
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "codec");
}

#[test]
fn a_chain_is_none_or_a_section() {
    let found = faults(&format!("chain = \"finney\"\n{SMALLEST}"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "chain");
    assert!(found[0].1.contains("section [chain]"), "{found:?}");

    let found = faults(&format!(
        "{SMALLEST}[chain]\nnetuid = 70000\npowers = \"votes\"\nsnapshot_blocks = 0\n"
    ));
    let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        ["chain.netuid", "chain.powers", "chain.snapshot_blocks"],
        "{found:?}"
    );

    let found = faults(&format!(
        "{SMALLEST}[chain]\nnetwork = \"carrier pigeon\"\n"
    ));
    assert_eq!(found[0].0, "chain.network", "{found:?}");
}

#[test]
fn a_subnet_of_the_run_file_stands_in_the_manifest() {
    let text = format!("{SMALLEST}[chain]\nnetwork = \"test\"\nnetuid = 7\npowers = \"stake\"\n");
    let loaded = load(&text).unwrap();
    let Chain::Subnet(section) = &loaded.file.chain else {
        panic!("{:?}", loaded.file.chain);
    };
    let genesis = Hash::of_content(b"genesis");
    let expected = manifest::Chain::Subnet(manifest::Subnet {
        genesis,
        netuid: 7,
        powers: Powers::Stake,
        snapshot_blocks: 25,
    });
    assert_eq!(section.on(genesis, section.netuid.unwrap()), expected);

    let written = toml::to_string(&loaded.file).unwrap();
    assert_eq!(toml::from_str::<RunFile>(&written).unwrap(), loaded.file);
}

#[test]
fn a_sequence_longer_than_the_model_reads_is_refused() {
    let found = faults(&format!("{SMALLEST}\ndata.sequence_tokens = 513"));
    assert_eq!(found[0].0, "data.sequence_tokens");
    assert!(found[0].1.contains("max_position_embeddings, 512"));
}

#[test]
fn more_fragments_than_the_model_has_shards_are_refused() {
    // Four shards of up to 64 of its 240 tiles.
    let text = |count: u32| format!("{SMALLEST}\nexchange.fragments = {count}");
    assert!(load(&text(4)).is_ok());
    for count in [0, 5, 65] {
        let found = faults(&text(count));
        assert_eq!(found[0].0, "exchange.fragments", "{count}");
    }
}

#[test]
fn a_large_model_has_larger_shards_unless_their_size_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let config = temp.path().join("config.json");
    let tiles_per_shard = |tiles: u64, named: &str| {
        let elements = tiles * TILE_ELEMENTS as u64;
        let model = format!(r#"{{"model_type": "gradmesh-synthetic", "elements": [{elements}]}}"#);
        fs::write(&config, model).unwrap();
        let text = SMALLEST.replace("demo-1m", config.to_str().unwrap());
        let manifest = load(&format!("{text}{named}")).unwrap().manifest(
            PeerKey([1; 32]),
            Link::alone(&PeerKey([1; 32])),
            Hash::ZERO,
            &facts(),
            manifest::Chain::None,
        );
        assert_eq!(manifest.validate(), []);
        manifest.codec.tiles_per_shard
    };
    assert_eq!(tiles_per_shard(512 * 64, ""), 64);
    assert_eq!(tiles_per_shard(512 * 64 + 1, ""), 65);
    assert_eq!(
        tiles_per_shard(512 * 64 + 1, "codec.tiles_per_shard = 32"),
        32
    );
    // More shards than that rather than larger ones than a manifest allows.
    assert_eq!(tiles_per_shard(1024 * 4096, ""), 4096);
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let error = load("name = \"a\"\nmodel = [").unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn a_run_file_that_is_not_there_is_told_by_its_path() {
    let error = LoadedRunFile::load(Path::new("/nowhere/run.toml")).unwrap_err();
    assert!(
        error.to_string().starts_with("run file /nowhere/run.toml:"),
        "{error}"
    );
}

#[test]
fn the_example_loads_and_shows_every_key_with_its_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("examples/run.toml");
    LoadedRunFile::load(&path).unwrap();

    // Uncommented, every key is there: serialised and read back, nothing is missing and every default is as said.
    let text = fs::read_to_string(&path).unwrap();
    let (text, chain) = text.split_once("# [chain]\n").unwrap();
    let (chain, audit) = chain.split_once("# [audit]\n").unwrap();
    let uncommented = uncommented(text);
    let (full, found) = RunFile::parse(&uncommented).unwrap();
    assert_eq!(found, []);
    let (plain, _) = RunFile::parse(text).unwrap();
    let filled = RunFile {
        seed: full.seed,
        outer: Outer {
            rate: Some(2.0),
            momentum: Some(0.0),
            ..plain.outer.clone()
        },
        codec: Codec {
            tiles_per_shard: Some(64),
            ..plain.codec.clone()
        },
        ..plain
    };
    assert_eq!(full, filled);
    let keys = |table: &toml::Table| -> Vec<String> {
        let mut keys = Vec::new();
        for (name, value) in table {
            match value.as_table() {
                Some(inner) => keys.extend(inner.keys().map(|key| format!("{name}.{key}"))),
                None => keys.push(name.clone()),
            }
        }
        keys
    };
    let all = toml::Table::try_from(&full).unwrap();
    assert_eq!(keys(&uncommented.parse().unwrap()), keys(&all));

    // The section that stands in the place of chain = "none".
    let section: Subnet = toml::from_str(&self::uncommented(chain)).unwrap();
    let example = Subnet {
        netuid: Some(1),
        ..Subnet::default()
    };
    assert_eq!(section, example);
    let all = toml::Table::try_from(&section).unwrap();
    let written: toml::Table = self::uncommented(chain).parse().unwrap();
    assert_eq!(keys(&written), keys(&all));

    // The section that is there or not.
    let section: Audit = toml::from_str(&self::uncommented(audit)).unwrap();
    let example = Audit {
        segments: Some(20),
        suspension_rounds: Some(20),
        tolerances: Some("tolerances.json".into()),
        ..Audit::default()
    };
    assert_eq!(section, example);
    let all = toml::Table::try_from(&section).unwrap();
    let written: toml::Table = self::uncommented(audit).parse().unwrap();
    assert_eq!(keys(&written), keys(&all));
}

#[test]
fn audits_follow_the_steps_and_the_coverage_unless_said_and_need_a_round_of_ones_own() {
    let manifest = |text: &str| {
        let run = format!("schedule.steps_per_round = 20\n{text}");
        let (run, found) = RunFile::parse(&run).unwrap();
        assert_eq!(found, []);
        let data = DataFacts {
            root: Hash::ZERO,
            bytes: 1,
            files: 1,
        };
        let launcher = PeerKey([1; 32]);
        run.to_manifest(
            (launcher, Link::alone(&launcher)),
            Hash::ZERO,
            &data,
            ("{}", 64, &[]),
            manifest::Chain::None,
            &mut Vec::new(),
        )
    };
    assert_eq!(manifest("").audit, None);
    let audit = manifest("[audit]").audit.unwrap();
    assert_eq!((audit.segments, audit.suspension_rounds), (20, 20));
    let audit = manifest("[audit]\ncoverage = 0.3").audit.unwrap();
    assert_eq!((audit.coverage_ppm, audit.suspension_rounds), (300_000, 14));
    let fields = |text: &str| -> Vec<&'static str> {
        let faults = manifest(text).validate().into_iter();
        let of_audits = faults.map(|fault| fault.field);
        of_audits
            .filter(|field| field.starts_with("audit"))
            .collect()
    };
    assert_eq!(fields("[audit]"), [""; 0]);
    assert_eq!(
        fields("exchange.overlap = 1\n[audit]"),
        ["audit needs exchange.overlap"]
    );
    assert_eq!(
        fields("[audit]\nsegments = 21\nsuspension_rounds = 1"),
        ["audit.segments", "audit.suspension_rounds"]
    );
}

#[test]
fn a_table_of_tolerances_that_is_missing_or_wrong_is_a_fault_of_its_key() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("run.toml");
    let faults = |text: &str| {
        fs::write(&path, format!("[audit]\n{text}")).unwrap();
        let Err(RunFileError::Faults { faults, .. }) = LoadedRunFile::load(&path) else {
            panic!("an empty run was taken");
        };
        let of_table = faults
            .into_iter()
            .filter(|fault| fault.key == "audit.tolerances");
        of_table.map(|fault| fault.problem).collect::<Vec<_>>()
    };
    assert_eq!(faults("").len(), 0);
    assert!(faults("tolerances = \"none.json\"")[0].contains("none.json"));
    fs::write(home.path().join("bad.json"), "{}").unwrap();
    assert!(faults("tolerances = \"bad.json\"")[0].contains("doctor --calibrate"));
    let good = r#"{"pairs": [{"first": "b", "second": "a", "tolerance_ppb": 20000000, "largest_ppb": 5, "segments": 9}]}"#;
    fs::write(home.path().join("good.json"), good).unwrap();
    assert_eq!(faults("tolerances = \"good.json\"").len(), 0);
}

/// `text` with those of its comments that are keys as keys.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.split(" = ").next().is_some_and(is_key) && key.contains(" = ") => key,
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn is_key(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

#[test]
fn a_run_file_survives_being_written_and_read() {
    let (demo, found) = RunFile::parse(include_str!("../../assets/demo.toml")).unwrap();
    assert_eq!(found, []);
    let text = toml::to_string(&demo).unwrap();
    assert_eq!(RunFile::parse(&text).unwrap(), (demo, Vec::new()));
}

#[test]
fn rates_become_parts_per_million_exactly() {
    for (value, ppm) in [
        (0.0, 0),
        (2.0, 2_000_000),
        (3e-3, 3000),
        (0.999_999, 999_999),
        (4294.967295, u32::MAX),
    ] {
        assert_eq!(to_ppm(value), Ok(ppm), "{value}");
    }
    for value in [-1e-6, 4295.0, 1e-7, 0.000_000_5, f64::NAN, f64::INFINITY] {
        assert!(to_ppm(value).is_err(), "{value}");
    }
}
