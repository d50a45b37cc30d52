//! `gradmesh-devchain` as a process.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::harness::Rpc;

struct Running {
    child: Child,
    url: String,
    genesis: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already in the tests that end it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradmesh-devchain"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], dir: Option<&Path>) -> Running {
    let mut command = command(&["--listen", "127.0.0.1:0", "--json"]);
    command.args(arguments);
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
        let mut stderr = String::new();
        child
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        panic!("{error}: {line}{stderr}")
    });
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    Running {
        url: text("url"),
        genesis: text("genesis"),
        child,
    }
}

fn ended(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(arguments).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn killed_chain_goes_on_with_every_block_it_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = run(&["--block-ms", "250"], Some(dir.path()));
    let rpc = Rpc::connect(&first.url).await.unwrap();
    let mut heads = rpc
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    let mut told = heads.next().await;
    for _ in 0..4 {
        told = heads.next().await;
    }
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    let second = run(&["--block-ms", "250"], Some(dir.path()));
    assert_eq!(second.genesis, first.genesis);
    let rpc = Rpc::connect(&second.url).await.unwrap();
    let hash = rpc
        .call("chain_getBlockHash", json!([told["number"]]))
        .await;
    assert_eq!(rpc.header(json!([hash])).await, told);
}

#[tokio::test]
async fn signal_ends_it_cleanly() {
    for signal in ["-TERM", "-INT"] {
        let mut running = run(&["--manual"], None);
        let rpc = Rpc::connect(&running.url).await.unwrap();
        rpc.seal().await;
        let killed = Command::new("kill")
            .arg(signal)
            .arg(running.child.id().to_string())
            .status()
            .unwrap();
        assert!(killed.success());
        let status = tokio::task::spawn_blocking(move || running.child.wait().unwrap())
            .await
            .unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
    }
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stderr) = ended(&["--listen", &address]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(
        stderr.contains(&format!("cannot listen on {address}")) && stderr.contains("--listen"),
        "{stderr}"
    );

    let (code, stderr) = ended(&["--listen", "127.0.0.1:0", "--dir", "/proc/nothing"]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("/proc/nothing"), "{stderr}");

    let (code, stderr) = ended(&["--block-ms", "10", "--beacon-period-s", "0"]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(
        stderr.contains("--block-ms 10") && stderr.contains("--beacon-period-s 0"),
        "every fault at once: {stderr}"
    );

    assert_eq!(ended(&["--nonsense"]).0, Some(2));
}

#[test]
fn text_names_url_keys_and_what_to_do_next() {
    let mut child = command(&["--listen", "127.0.0.1:0"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let text: Vec<String> = lines
        .by_ref()
        .take_while(|line| !line.contains("Ctrl-C"))
        .collect();
    let text = text.join("\n");
    child.kill().unwrap();
    child.wait().unwrap();
    for expected in [
        "ws://127.0.0.1:",
        "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
        "gradmesh join --netuid 1",
    ] {
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
    assert!(!text.contains(":0\n"), "the port is the one it got");
}
