#!/usr/bin/env python3
"""Checks which crate uses which, and that the pure crates stay pure.

Three checks, each over what is really there rather than what a manifest promises:

1. Directions: a workspace crate depends only on the workspace crates that DIRECTIONS allows it.
2. Trees: no forbidden crate is anywhere in the resolved normal dependencies of the crates in FORBIDDEN. Procedural
   macros are left out: they run in the compiler. What is unavoidable stands in EXEMPT with its reason.
3. Sources: protocol and compression name no socket, thread, clock, file or environment of the standard library
   outside tests.

Prints one line per finding and exits with 1 if there is any. `--self-test` builds a small workspace that violates
every rule and fails unless each violation is found.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent

PROTOCOL = "gradmesh-protocol"
COMPRESSION = "gradmesh-compression"
TRAINER = "gradmesh-trainer"
LIBTORCH = "gradmesh-libtorch"
SIM = "gradmesh-sim"
DAEMON = "gradmesh"
CHAIN = "gradmesh-chain"
DEVCHAIN = "gradmesh-devchain"
TIMELOCK = "gradmesh-timelock"
BENCH = "gradmesh-bench"

# Normal and build dependencies between workspace crates. Development dependencies are free: tests may use anything.
DIRECTIONS = {
    PROTOCOL: set(),
    COMPRESSION: set(),
    LIBTORCH: set(),
    TRAINER: {PROTOCOL, COMPRESSION, LIBTORCH},
    SIM: {PROTOCOL, COMPRESSION, TRAINER},
    TIMELOCK: set(),
    CHAIN: {TIMELOCK},
    # The development chain shares with the client what both must do alike byte for byte, and nothing else.
    DEVCHAIN: {TIMELOCK},
    # Not the development chain: the daemon builds, and its tests pass, without it.
    DAEMON: {PROTOCOL, COMPRESSION, LIBTORCH, TRAINER, CHAIN},
    BENCH: {PROTOCOL, COMPRESSION, TRAINER, SIM, DAEMON, CHAIN},
}

# Forbidden crates by what they bring. A name ending in `*` stands for all that begin so.
TORCH = ("tch", "torch-sys")
SOCKETS = ("socket2", "mio", "polling", "async-io", "quinn*", "libp2p*", "hyper*", "axum*", "reqwest")
RUNTIMES = ("tokio*", "async-std", "async-global-executor", "smol", "futures-executor", "rayon*")
ENTROPY = ("getrandom", "rand")
CLOCKS = ("instant", "web-time", "chrono", "time")
FRAME = ("frame-support", "frame-system", "frame-executive", "pallet-*", "sp-io", "sp-state-machine")
PURE = TORCH + SOCKETS + RUNTIMES + ENTROPY + CLOCKS

FORBIDDEN = {
    PROTOCOL: PURE,
    COMPRESSION: PURE,
    SIM: TORCH,
    LIBTORCH: TORCH,
    TIMELOCK: TORCH + SOCKETS + RUNTIMES + CLOCKS + FRAME,
    CHAIN: TORCH + FRAME,
    DEVCHAIN: TORCH,
    DAEMON: FRAME,
}

# (crate, the crate that brings it, the features it may have, reason).
ENGINE = "arc-malachitebft-core-consensus"
EXEMPT = (
    ("tokio", ENGINE, {"default"}, "declared by the BFT engine, without a feature: no runtime, timer or IO in it"),
    ("futures-executor", "futures", {"std"}, "default feature of futures, which the engine takes; nothing calls it"),
    ("libp2p-identity", "multiaddr", {"peerid"}, "the type PeerId, which the engine's addresses hold; opens nothing"),
)

# Paths of the standard library that the pure crates do not name, each with what it would bring.
PURE_SOURCES = {PROTOCOL: "protocol/src", COMPRESSION: "compression/src"}
IMPURE_PATHS = {
    "std::net": "a socket",
    "std::os": "the operating system",
    "std::thread": "a thread",
    "std::process": "a process",
    "std::fs": "a file",
    "std::env": "the environment",
    "std::time::Instant": "a clock",
    "std::time::SystemTime": "a clock",
    "std::time::UNIX_EPOCH": "a clock",
}


def cargo(root, *arguments):
    # Run in the checkout, so that its toolchain file holds for the workspace of the self-test too.
    command = ["cargo", *arguments, "--manifest-path", str(root / "Cargo.toml")]
    command.append("--locked" if root == CHECKOUT else "--offline")
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(f"dependencies: `{' '.join(command)}` failed:\n{answer.stderr.strip()}")
    return answer.stdout


def workspace_packages(root):
    return json.loads(cargo(root, "metadata", "--no-deps", "--format-version", "1"))["packages"]


def check_directions(packages):
    names = {package["name"] for package in packages}
    for package in sorted(packages, key=lambda package: package["name"]):
        name = package["name"]
        if name not in DIRECTIONS:
            yield f"{name}: not in the table of allowed directions; give it a place in DIRECTIONS"
            continue
        used = {entry["name"] for entry in package["dependencies"] if entry["kind"] != "dev"}
        for other in sorted((used & names) - DIRECTIONS[name]):
            yield f"{name} -> {other}: this direction is not allowed"


def resolved_edges(tree):
    """Yields (path of names from the root to the crate, features) for every edge that `cargo tree` prints."""
    path = []
    for line in tree.splitlines():
        depth, name, features = re.match(r"(\d+)(\S+) [^|]*\|(\S*)", line).groups()
        path[int(depth):] = [name]
        yield tuple(path), set(filter(None, features.split(",")))


def matches(name, patterns):
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)


def check_trees(root, packages, exempt, used_exemptions):
    for name in sorted({package["name"] for package in packages} & FORBIDDEN.keys()):
        tree = cargo(
            root, "tree", "--package", name, "--edges", "normal,no-proc-macro", "--prefix", "depth",
            "--format", "{p}|{f}",
        )
        for path, features in resolved_edges(tree):
            if not matches(path[-1], FORBIDDEN[name]):
                continue
            known = [e for e in exempt if e[:2] == path[-2:][::-1]]
            used_exemptions.update(known)
            chain = " -> ".join(path)
            if not known:
                yield f"{chain}: {path[-1]} is forbidden in {name}"
            elif extra := features - known[0][2]:
                yield f"{chain}: exempt only without the features {', '.join(sorted(extra))}"


# Comments, strings and characters, in which a path means nothing.
OPAQUE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | \bb?r(\#*)".*?"\1 | "(?:\\.|[^"\\])*" | '(?:\\[^'\n]+|\\'|[^'\\\n])'""",
    re.DOTALL | re.VERBOSE,
)
TEST_ITEM = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?(mod\s+(\w+)\s*;)?")
USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"\bstd(?:\s*::\s*\w+)+")


def blank(text):
    return re.sub(r"[^\n]", " ", text)


def without_tests(text):
    """Blanks comments, strings and `#[cfg(test)]` items; returns the rest and the names of test modules in files."""
    text = OPAQUE.sub(lambda match: blank(match.group()), text)
    modules = []
    start = 0
    while match := TEST_ITEM.search(text, start):
        if match.group(2):
            modules.append(match.group(2))
            end = match.end()
        else:
            end = item_end(text, match.end())
        text = text[:match.start()] + blank(text[match.start():end]) + text[end:]
        start = end
    return text, modules


def item_end(text, start):
    """The end of the item at `start`: its closing brace, or a semicolon before any brace."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0 and text[position] in "};":
            return position + 1
    return len(text)


def use_paths(tree):
    """The full paths of a `use` tree: `std::{fs, time::Instant as I}` gives std::fs and std::time::Instant."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        yield re.sub(r"\s+", "", re.sub(r"\s+as\s+\w+$", "", tree)).removeprefix("::")
        return
    prefix, parts, depth, part = tree[:brace].replace(" ", "").removeprefix("::"), [], 0, ""
    for character in tree[brace + 1:tree.rindex("}")]:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    for part in filter(str.strip, [*parts, part]):
        for below in use_paths(part):
            yield prefix.removesuffix("::") if below == "self" else prefix + below


def impurity(path):
    """What a path of the standard library would bring, or None."""
    for impure, brings in IMPURE_PATHS.items():
        if path == impure or path.startswith(impure + "::"):
            return brings
        # `use std::time;`, `use std::time::*;` and `use std as other;` open the way to it unseen.
        opened = path.removesuffix("::*")
        if impure.startswith(opened + "::") and (opened != path or opened in ("std", "std::time")):
            return f"{brings} ({impure})"
    return None


def check_source(text, place):
    text, _ = without_tests(text)
    found = {}
    for match in USE.finditer(text):
        for path in use_paths(match.group(1)):
            found.setdefault((text.count("\n", 0, match.start()) + 1, path))
    for match in PATH.finditer(USE.sub(lambda match: blank(match.group()), text)):
        found.setdefault((text.count("\n", 0, match.start()) + 1, re.sub(r"\s+", "", match.group())))
    for line, path in sorted(found):
        if brings := impurity(path):
            yield f"{place}:{line}: {path} brings {brings}; hand it in from outside"


def check_sources(root):
    for name, folder in PURE_SOURCES.items():
        files = sorted((root / folder).rglob("*.rs"))
        if not files:
            yield f"{name}: no sources in {folder}; correct PURE_SOURCES"
        test_files = set()
        for file in files:
            below = file.parent if file.stem in ("lib", "main", "mod") else file.with_suffix("")
            for module in without_tests(file.read_text())[1]:
                test_files |= {below / f"{module}.rs", *(below / module).rglob("*.rs")}
        for file in files:
            if file not in test_files:
                yield from check_source(file.read_text(), file.relative_to(root))


def check(root, exempt=EXEMPT):
    packages = workspace_packages(root)
    used_exemptions = set()
    hashable = tuple((crate, by, frozenset(features), reason) for crate, by, features, reason in exempt)
    yield from check_directions(packages)
    yield from check_trees(root, packages, hashable, used_exemptions)
    yield from check_sources(root)
    for crate, by, _, _ in sorted(set(hashable) - used_exemptions):
        yield f"the exemption of {crate} through {by} is no longer needed; delete it from EXEMPT"


PLANTED_SOURCE = """\
//! Comments may say std::fs, and so may "strings".
use std::{collections::BTreeMap, time::{Duration, Instant as Now}};
pub fn socket() -> &'static str { let _: Option<std::net::UdpSocket> = None; "std::env" }
#[cfg(test)]
mod tests { use std::fs; fn inner() { std::env::args(); } }
#[cfg(test)]
mod cases;
pub fn spawn() { std :: thread::yield_now() }
"""

CLEAN_SOURCE = "use std::time::Duration;\npub fn f(_: std::collections::BTreeMap<u8, Duration>) {}\n"

# Name: (folder, dependencies by name, source).
PLANTED = {
    PROTOCOL: ("protocol", ["middle"], PLANTED_SOURCE),
    COMPRESSION: ("compression", [PROTOCOL], "use std::time;\n"),
    TRAINER: ("trainer", ["tch"], ""),
    SIM: ("protocol/sim", [TRAINER], ""),
    "gradmesh-stray": ("stray", [], ""),
    "middle": ("others/middle", ["tokio", "getrandom"], ""),
    "tokio": ("others/tokio", [], ""),
    "getrandom": ("others/getrandom", [], ""),
    "tch": ("others/tch", [], ""),
}
PLANTED_EXEMPT = (("getrandom", "middle", {"default"}, ""), ("mio", "middle", set(), ""))
PLANTED_FINDINGS = [
    "gradmesh-compression -> gradmesh-protocol: this direction is not allowed",
    "gradmesh-stray: not in the table of allowed directions; give it a place in DIRECTIONS",
    "gradmesh-compression -> gradmesh-protocol -> middle -> tokio: tokio is forbidden in gradmesh-compression",
    "gradmesh-compression -> gradmesh-protocol -> middle -> getrandom: exempt only without the features os",
    "gradmesh-protocol -> middle -> tokio: tokio is forbidden in gradmesh-protocol",
    "gradmesh-protocol -> middle -> getrandom: exempt only without the features os",
    "gradmesh-sim -> gradmesh-trainer -> tch: tch is forbidden in gradmesh-sim",
    "protocol/src/lib.rs:2: std::time::Instant brings a clock; hand it in from outside",
    "protocol/src/lib.rs:3: std::net::UdpSocket brings a socket; hand it in from outside",
    "protocol/src/lib.rs:8: std::thread::yield_now brings a thread; hand it in from outside",
    "compression/src/lib.rs:1: std::time brings a clock (std::time::Instant); hand it in from outside",
    "the exemption of mio through middle is no longer needed; delete it from EXEMPT",
]

CLEAN = {
    PROTOCOL: ("protocol", [], CLEAN_SOURCE),
    COMPRESSION: ("compression", [], CLEAN_SOURCE),
    TRAINER: ("trainer", [PROTOCOL, COMPRESSION], ""),
    SIM: ("protocol/sim", [TRAINER, PROTOCOL, COMPRESSION], ""),
}


def lay_workspace(root, crates):
    members = [folder for folder, _, _ in crates.values() if not folder.startswith("others/")]
    header = f'[workspace]\nresolver = "3"\nmembers = {json.dumps(members)}\nexclude = ["others"]\n'
    (root / "Cargo.toml").write_text(header)
    for name, (folder, dependencies, source) in crates.items():
        manifest = f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2024"\n'
        manifest += '[features]\ndefault = ["os"]\nos = []\n[dependencies]\n'
        manifest += "".join(f'{other} = {{ path = "{root / crates[other][0]}" }}\n' for other in dependencies)
        (root / folder / "src").mkdir(parents=True)
        (root / folder / "Cargo.toml").write_text(manifest)
        (root / folder / "src" / "lib.rs").write_text(source)
    # A test module in a file of its own, named by PLANTED_SOURCE; no rule holds for it.
    (root / "protocol" / "src" / "cases.rs").write_text("use std::fs;\n" if crates is PLANTED else "")


def self_test():
    failed = False
    cases = (("planted", PLANTED, PLANTED_EXEMPT, PLANTED_FINDINGS), ("clean", CLEAN, (), []))
    for name, crates, exempt, expected in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder).resolve()
            lay_workspace(root, crates)
            found = list(check(root, exempt))
        for line in [line for line in expected if line not in found]:
            failed = True
            print(f"self-test, {name}: not found: {line}")
        for line in [line for line in found if line not in expected]:
            failed = True
            print(f"self-test, {name}: found without cause: {line}")
    print("dependencies: self-test " + ("failed" if failed else f"passed ({len(PLANTED_FINDINGS)} planted findings)"))
    return int(failed)


def main():
    parser = argparse.ArgumentParser(description="Checks the dependency directions and the purity of the core.")
    parser.add_argument("--self-test", action="store_true", help="prove that planted violations are found")
    if parser.parse_args().self_test:
        return self_test()
    findings = list(check(CHECKOUT))
    for finding in findings:
        print(finding)
    for crate, by, features, reason in EXEMPT:
        print(f"exempt: {crate} through {by}, features {', '.join(sorted(features)) or 'none'}: {reason}")
    print(f"dependencies: {len(findings) or 'no'} violation{'' if len(findings) == 1 else 's'}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
