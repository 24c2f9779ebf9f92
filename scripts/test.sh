#!/usr/bin/env bash
# Everything that must hold before a change is taken: format, lints, docs, shell scripts, all tests.
#
# Takes no arguments. The build is the debug one, in target/ (or CARGO_TARGET_DIR); from empty it takes most of the
# time. Tests that cut the power of a disk or fill one need root, loop devices and mkfs.ext4; without them they say
# that they are skipped. The last lines are cargo's own summary.
#
# Needs cargo, rustfmt and clippy; uses shellcheck if it is there. Exit: 0 all is well, otherwise not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

(($# == 0)) || { echo "test.sh takes no arguments; for one test: cargo test --workspace NAME" >&2 && exit 2; }

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

step "cargo doc"
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

step "shellcheck"
scripts=(.ci/run)
while IFS= read -r script; do scripts+=("$script"); done < <(find scripts -name '*.sh' | sort)
if command -v shellcheck >/dev/null; then
    shellcheck -x "${scripts[@]}"
else
    echo "SKIPPED: shellcheck is not on the PATH; ${#scripts[@]} scripts were not checked."
fi

step "cargo test"
cargo test --workspace --locked
