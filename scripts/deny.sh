#!/usr/bin/env bash
# Licences, bans and sources of all dependencies, always; known vulnerabilities when their database can be reached.
#
#   scripts/deny.sh             uses cargo-deny if it is installed, else says how to install it and checks nothing
#   scripts/deny.sh --install   installs it first if it is missing, into the user's cache (about a minute on two cores)
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
cargo=${CARGO:-cargo}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/gradmesh/tools
export PATH=$PATH:$tools/bin
# A prompt for a password would wait for ever where nobody watches.
export GIT_TERMINAL_PROMPT=0

if ! command -v cargo-deny >/dev/null; then
  if [[ ${1:-} != --install ]]; then
    echo "deny: NOT CHECKED, cargo-deny is not installed; \`bash scripts/deny.sh --install\` puts $version into $tools"
    exit 0
  fi
  echo "deny: installing cargo-deny $version into $tools"
  started=$SECONDS
  # Unoptimised, because building takes longer than checking. Away from our target directory.
  env -u CARGO_TARGET_DIR "$cargo" install cargo-deny --version "$version" --locked --debug --quiet --root "$tools"
  echo "deny: installed in $((SECONDS - started)) s"
fi

deny() {
  "$cargo" deny --locked --log-level error "$@"
}

# Duplicate versions are warnings; `cargo deny check bans` lists them.
deny check --hide-inclusion-graph --show-stats licenses bans sources

if ! reason=$(deny fetch db 2>&1); then
  echo "deny: advisories NOT CHECKED, their database cannot be fetched:"
  sed 's/^/deny:   /' <<<"$reason"
  exit 0
fi
deny check --disable-fetch --hide-inclusion-graph advisories
