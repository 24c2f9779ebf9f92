#!/usr/bin/env bash
# Cuts the power of a storage node 300 times (or as often as the first argument says) and records the run in
# docs/soak/power-cuts.md. Needs root and loop devices. Works in batches: interrupted, it goes on where it was
# when it is started again at the same commit.
set -euo pipefail

cd "$(dirname "$0")/../.."
total=${1:-300}
batch=50
commit=$(git rev-parse --short=12 HEAD)
if ! git diff --quiet HEAD -- storage Cargo.toml Cargo.lock; then
    commit="$commit+changes"
fi
record=docs/soak/power-cuts.md
progress=target/soak/power-cuts-$commit.log
mkdir -p target/soak docs/soak

if [ "$(id -u)" -ne 0 ]; then
    echo "power-cuts.sh needs root: it mounts a file system and cuts its power" >&2
    exit 2
fi

command="QUORATE_CUTS=$batch cargo test -p quorate-storage --test power_cut -- --nocapture"
cargo test -p quorate-storage --test power_cut --no-run
touch "$progress"

# Each batch that has passed left one line "power cuts: N, …".
cuts_done() {
    awk '/^power cuts: / { gsub(",", "", $3); sum += $3 } END { print sum + 0 }' "$progress"
}

while [ "$(cuts_done)" -lt "$total" ]; do
    echo "power cuts at commit $commit: $(cuts_done) of $total"
    log=target/soak/power-cuts-batch.log
    if ! QUORATE_CUTS=$batch cargo test -p quorate-storage --test power_cut -- --nocapture >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "a batch failed: see $log, and the disk in target/tmp/power-cut-failed" >&2
        exit 1
    fi
    if ! grep '^power cuts: ' "$log" >>"$progress"; then
        grep SKIPPED "$log" >&2 || echo "the batch says nothing of its cuts: see $log" >&2
        exit 2
    fi
done

if [ ! -f "$record" ]; then
    cat >"$record" <<'HEAD'
# Power cuts: recorded runs

Each run cuts the power of a storage node (`storage/tests/power_cut/`: ext4 in a loop-mounted file, `FS_IOC_SHUTDOWN`)
again and again, in the middle of appends, votes, truncations by a new leader, purges, flushes, snapshot installs, and of
recovery itself. After each cut the node must open unaided, with everything that it had acknowledged. The rig models the
page cache and the journal, not a drive's own cache.

HEAD
fi
{
    echo "## $(date -u +%Y-%m-%d): $(cuts_done) cuts, nothing lost"
    echo
    echo "- commit: \`$commit\`"
    echo "- command: \`scripts/soak/power-cuts.sh $total\`, in batches of \`$command\`"
    echo "- date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "- machine: $(nproc) x $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo), Linux $(uname -r)"
    echo
    echo '```'
    cat "$progress"
    echo '```'
    echo
} >>"$record"
echo "recorded in $record"
