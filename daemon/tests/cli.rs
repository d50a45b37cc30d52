//! The executable as a person or a script meets it: exit codes, what goes to stdout, and errors that say what to do.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Output};

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::RunId;
use gradmesh_protocol::ticket::Ticket;
use tempfile::TempDir;

/// Runs gradmesh with a home of its own, so that no test meets the user's runs or settings.
fn gradmesh(home: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gradmesh"))
        .args(words)
        .env_clear()
        .env("HOME", home)
        .output()
        .expect("the executable starts, without LD_LIBRARY_PATH too")
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(home: &TempDir, words: &[&str]) -> Said {
    let output = gradmesh(home.path(), words);
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The command fails with exit code 1, nothing on stdout, and all of `parts` in its message.
#[track_caller]
fn fails(home: &TempDir, words: &[&str], parts: &[&str]) {
    let said = said(home, words);
    assert_eq!(said.code, Some(1), "{words:?}: {}", said.err);
    assert_eq!(said.out, "", "{words:?}");
    assert!(said.err.contains("error: "), "{}", said.err);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    for part in parts {
        assert!(
            said.err.contains(part),
            "{part:?} is missing in: {}",
            said.err
        );
    }
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn ticket() -> String {
    let launcher = Keypair::from_seed(&[3; 32]);
    let run = RunId(Hash::of_content(b"run"));
    let addresses = vec!["/ip4/127.0.0.1/udp/9/quic-v1".to_owned()];
    Ticket::sign(run, addresses, &launcher).to_string()
}

fn run_file(home: &TempDir, text: &str) -> String {
    let path = home.path().join("run.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const RUN: &str = "
name = \"test\"
model.config = \"demo-1m\"
data.dir = \"text\"
schedule.rounds = 2
";

#[test]
fn help_and_version_go_to_stdout_and_wrong_usage_exits_with_2() {
    let home = home();
    let help = said(&home, &["--help"]);
    assert_eq!(help.code, Some(0));
    for command in [
        "demo",
        "launch",
        "join",
        "status",
        "leave",
        "checkpoint",
        "doctor",
    ] {
        assert!(help.out.contains(command), "{command}");
    }
    let version = said(&home, &["--version"]);
    assert_eq!(
        version.out,
        format!("gradmesh {}\n", env!("CARGO_PKG_VERSION"))
    );
    for words in [
        &["conquer"][..],
        &["join", "x", "--device", "tpu"],
        &["launch"],
    ] {
        let said = said(&home, words);
        assert_eq!(said.code, Some(2), "{words:?}");
        assert_eq!(said.out, "", "{words:?}");
    }
}

#[test]
fn a_ticket_with_one_changed_character_is_refused_with_the_cure() {
    let home = home();
    let mut changed = ticket();
    let place = changed.len() / 2;
    let other = if changed.as_bytes()[place] == b'x' {
        "y"
    } else {
        "x"
    };
    changed.replace_range(place..=place, other);
    fails(
        &home,
        &["join", &changed],
        &["the ticket was changed or cut off", "copy the whole line"],
    );
    fails(&home, &["join", "hello"], &["this is no ticket"]);
    assert!(
        !home.path().join(".local").exists(),
        "nothing is left behind"
    );
}

#[test]
fn joining_with_data_that_cannot_be_read_is_refused_before_anything_starts() {
    let home = home();
    fails(
        &home,
        &["join", &ticket(), "--data", "/nowhere"],
        &["--data /nowhere", "check the path"],
    );
}

#[test]
fn joining_without_a_ticket_needs_a_run() {
    let home = home();
    fails(
        &home,
        &["join"],
        &["there is no run below", "gradmesh launch"],
    );
    let dir = home.path().join("state");
    let dir = dir.to_str().unwrap();
    fails(&home, &["join", "--dir", dir], &["does not exist", "--dir"]);
    fs::create_dir(dir).unwrap();
    fails(&home, &["join", "--dir", dir], &["holds no run yet"]);
}

#[test]
fn a_run_file_with_unknown_keys_is_refused_with_all_its_faults() {
    let home = home();
    fs::create_dir(home.path().join("text")).unwrap();
    let file = run_file(
        &home,
        &format!("colour = 1\n{RUN}\ncodec.k = 0\ntrust.sort = \"x\"\n"),
    );
    fails(
        &home,
        &["launch", &file],
        &[
            "3 faults",
            "colour: unknown field",
            "codec.k: 0 is not in 1..=1024",
            "trust.sort: unknown",
        ],
    );
    fails(
        &home,
        &["launch", "/nowhere/run.toml"],
        &["run file /nowhere/run.toml"],
    );
}

#[test]
fn data_that_is_missing_or_holds_no_text_is_refused() {
    let home = home();
    let file = run_file(&home, RUN);
    fails(
        &home,
        &["launch", &file],
        &["data.dir", "a directory of text files"],
    );
    fs::create_dir(home.path().join("text")).unwrap();
    fails(
        &home,
        &["launch", &file],
        &["data.dir of the run file", "no usable text"],
    );
    fs::write(home.path().join("text/image.png"), "no text").unwrap();
    fails(&home, &["launch", &file], &["no usable text"]);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_told_by_its_path() {
    let home = home();
    fs::create_dir(home.path().join("text")).unwrap();
    fs::write(home.path().join("text/a.txt"), "some text").unwrap();
    let file = run_file(&home, RUN);
    let blocked = home.path().join("file");
    fs::write(&blocked, "").unwrap();
    let dir = blocked.join("state");
    let dir = dir.to_str().unwrap();
    fails(
        &home,
        &["launch", &file, "--dir", dir],
        &[dir, "check permissions"],
    );
}

#[test]
fn a_store_that_is_damaged_is_told_and_left_alone() {
    let home = home();
    let dir = home.path().join("state");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("store.redb"), "not a database").unwrap();
    let path = dir.to_str().unwrap();
    fails(
        &home,
        &["join", &ticket(), "--dir", path],
        &["is damaged", "node.key"],
    );
    assert_eq!(fs::read(dir.join("store.redb")).unwrap(), b"not a database");
}

#[test]
fn asking_a_daemon_that_is_not_there_says_how_to_start_one() {
    let home = home();
    for command in ["status", "leave"] {
        fails(
            &home,
            &[command],
            &["there is no run below", "gradmesh join"],
        );
    }
    let dir = home.path().join("state");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    fails(
        &home,
        &["status", "--dir", path],
        &["no daemon ever ran in"],
    );
    // What an earlier daemon left: nobody listens on port 9 of this machine.
    fs::write(
        dir.join("status.json"),
        "{\"url\":\"http://127.0.0.1:9\",\"pid\":1}",
    )
    .unwrap();
    fs::write(dir.join("status.token"), "token").unwrap();
    fails(
        &home,
        &["status", "--dir", path],
        &["does not run", "no daemon answers at http://127.0.0.1:9"],
    );
    fails(
        &home,
        &["leave", "--dir", path],
        &["was not asked to leave"],
    );
}

#[test]
fn checkpoints_of_nothing_are_none_and_a_missing_one_is_an_error() {
    let home = home();
    let dir = home.path().join("state");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    let listed = said(&home, &["checkpoint", "list", "--json", "--dir", path]);
    assert_eq!(
        (listed.code, listed.out.as_str()),
        (Some(0), "[]\n"),
        "{}",
        listed.err
    );
    let target = home.path().join("target");
    let target = target.to_str().unwrap();
    fails(
        &home,
        &["checkpoint", "export", target, "--dir", path],
        &["there is no checkpoint in"],
    );
    fails(&home, &["checkpoint", "verify", target], &[target]);
}

#[test]
fn doctor_tells_a_port_that_is_taken_and_the_flag_that_helps() {
    let home = home();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = [
        "--listen",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "--status-listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
        "--json",
    ];
    let check = |bulk: &str| {
        let mut words = vec!["doctor", "--bulk-listen", bulk];
        words.extend(free);
        let said = said(&home, &words);
        let found: serde_json::Value = serde_json::from_str(&said.out).expect("JSON on stdout");
        let verdict = |check: &str| -> (String, String) {
            let of = found
                .as_array()
                .unwrap()
                .iter()
                .find(|f| f["check"] == check);
            let of = of.unwrap_or_else(|| panic!("{check} is missing in {found}"));
            let text = |key: &str| of[key].as_str().unwrap().to_owned();
            (text("verdict"), text("detail"))
        };
        (said.code, verdict("bulk port"), verdict("libtorch"))
    };
    let (code, (verdict, detail), libtorch) = check(&address);
    assert_eq!((code, verdict.as_str()), (Some(1), "fail"));
    assert!(detail.contains("--bulk-listen"), "{detail}");
    assert_eq!(libtorch.0, "ok", "{}", libtorch.1);
    assert!(libtorch.1.starts_with("2.11"), "{}", libtorch.1);
    let (_, (verdict, _), _) = check("127.0.0.1:0");
    assert_eq!(verdict, "ok");
}

#[test]
fn the_demo_needs_text_and_an_empty_directory() {
    let home = home();
    let out = home.path().join("out");
    let path = out.to_str().unwrap();
    fails(
        &home,
        &["demo", "--out", path, "--json", "-"],
        &["no crates of a cargo registry", "--data DIR"],
    );
    fs::write(out.join("mine.txt"), "precious").unwrap();
    fails(&home, &["demo", "--out", path], &["is not empty", "--out"]);
    assert_eq!(
        fs::read_to_string(out.join("mine.txt")).unwrap(),
        "precious"
    );
}

#[test]
fn settings_are_strict_and_a_named_file_must_be_there() {
    let home = home();
    fails(
        &home,
        &["status", "--config", "/nowhere/c.toml"],
        &["/nowhere/c.toml"],
    );
    let file = home.path().join("c.toml");
    fs::write(&file, "colour = 1\n").unwrap();
    fails(
        &home,
        &["status", "--config", file.to_str().unwrap()],
        &["c.toml", "unknown field `colour`"],
    );
    fails(&home, &["status", "--log", "gradmesh=loud"], &["--log"]);
}

/// The whole way: processes, sockets, libtorch, agreement, checkpoint. Half a minute on two cores.
#[test]
fn a_small_demo_ends_with_equal_roots_a_lower_loss_and_a_checkpoint_that_verifies() {
    let home = home();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (data, out, json) = (path("data"), path("out"), path("demo.json"));
    fs::create_dir(&data).unwrap();
    let text = include_str!("cli.rs");
    fs::write(home.path().join("data/text.txt"), text.repeat(8)).unwrap();
    let mut words = vec!["demo", "--peers", "2", "--rounds", "2", "--cheat", "none"];
    words.extend(["--out", &out, "--data", &data, "--json", &json]);
    let demo = said(&home, &words);
    assert_eq!(demo.code, Some(0), "{}\n{}", demo.out, demo.err);
    for round in ["round  1/2: loss", "round  2/2: loss"] {
        assert!(demo.out.contains(round), "{}", demo.out);
    }

    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let number = |key: &str| {
        summary[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} in {summary}"))
    };
    assert_eq!((number("peers"), number("rounds")), (2.0, 2.0));
    assert_eq!(summary["roots_equal"], true);
    // An untrained model of 256 tokens starts at ln 256 = 5.5 nats; 36 steps at this rate learn which bytes are common: a nat
    // and more. On a busy machine an update is late and counts for less; one that learns nothing does not fall by half a nat.
    assert!(
        number("loss_last") < number("loss_first") - 0.5,
        "{summary}"
    );
    // Sparse with k = 64 of 4096 is far below one bit per parameter, and above zero.
    assert!((0.05..1.0).contains(&number("bits_per_param")), "{summary}");
    assert!((0.0..=1.0).contains(&number("sync_share")), "{summary}");
    assert!(
        number("bytes_wan_per_peer") < number("bytes_dense_f32"),
        "{summary}"
    );

    assert_eq!(summary["cheats"], serde_json::json!([]));
    // Two rounds of two peers; a validator that comes when the first one has begun does not audit that.
    let done = summary["audits"]["done"].as_u64();
    assert!(
        done.is_some_and(|done| (1..=4).contains(&done)),
        "{summary}"
    );
    assert_eq!(summary["audits"]["failed"], 0, "{summary}");

    let checkpoint = summary["checkpoint"]["path"].as_str().unwrap();
    let verified = said(&home, &["checkpoint", "verify", checkpoint, "--json"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    let verified: serde_json::Value = serde_json::from_str(&verified.out).unwrap();
    assert_eq!(verified["state_root"], summary["checkpoint"]["root"]);
    for peer in 0..2 {
        let dir = format!("{out}/peer-{peer}");
        let listed = said(&home, &["checkpoint", "list", "--dir", &dir]);
        assert!(listed.out.contains("round-000002"), "{}", listed.out);
    }
}
