#!/usr/bin/env bash
# Jobs: how long a dead worker's job waits for another worker, and how many jobs are done in a second.
#
# 20 times (or as often as the first argument says) a worker with a lease of 2 s is killed (-9) in the middle of a job, while another
# one is idle; and as often in the middle of a job with a key, whose next owner the ring has to find. Prints median and worst of
# the times from the kill to the job's next claim, as the cluster recorded it, and fails when one is longer than the lease
# and a second. Then 10,000 jobs, each of which runs `cat`; and jobs that do nothing, by 16 workers in one process: fresh
# ones, and those of a queue that is long on the disk. Exit: 0 done, 1 failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/process.sh
source scripts/lib/process.sh

ROUNDS=${1:-20} LEASE_MS=2000 JOBS=10000 WORKERS=8
PIDS=()
# A command that goes on until its worker is gone, however that ended.
# shellcheck disable=SC2016 # for the other shell
STAY=(sh -c 'while kill -0 "$PPID"; do sleep 0.1; done')

clean_up() {
    local status=$? pid
    trap - EXIT INT TERM
    for pid in "${PIDS[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    QUORATE_DIR=$DIR/cluster QUORATE_BIN=$BIN scripts/cluster.sh down --clean >/dev/null || status=1
    rm -rf "$DIR"
    exit "$status"
}

jobs_do() { "$BIN" jobs --timeout 20s "$@"; }
job_field() { jobs_do status "$1" --json | json_field "$2"; }

# work QUEUE NAME COMMAND…
work() {
    "$BIN" jobs work --queue "$1" --name "$2" --lease "${LEASE_MS}ms" --quiet -- "${@:3}" 2>"$DIR/$2.log" &
    PIDS+=($!)
    # Its end is not worth a line.
    disown
}

# has_it JOB WORKER; an idle worker stands in the ring, and has nothing.
has_it() { [[ $(job_field "$1" state) == running && $(job_field "$1" worker) == "$2" ]]; }
is_idle() { jobs_do ring --queue q | grep -Eq "^[A-Z]  $1 .*s  [0-9]+$"; }

# blow ROUND FLAG…: one round with a job that is submitted with these flags; prints the milliseconds.
blow() {
    local id killed victim=V$1 other=O$1
    work q "$victim" "${STAY[@]}"
    id=$(jobs_do submit --queue q --attempts 1000 "${@:2}" x)
    wait_until 20 has_it "$id" "$victim" || die "$victim does not take job $id"
    local victim_pid=${PIDS[-1]}
    work q "$other" "${STAY[@]}"
    wait_until 20 is_idle "$other" || die "$other does not come: $(jobs_do ring --queue q)"
    killed=$(now_ms)
    kill -9 "$victim_pid"
    wait_until 20 has_it "$id" "$other" || die "$other does not take job $id"
    say $(($(job_field "$id" claimed_ms) - killed))
    jobs_do cancel "$id" >/dev/null
    kill -9 "${PIDS[-1]}"
    PIDS=()
}

# many NUMBER PAUSE
many() { "$EXAMPLE" "$1" 16 "$2" || die "the workers of one process have failed"; }

build_quorate
say "cargo build --release --example workers"
cargo build --release --locked --quiet --example workers
EXAMPLE=$TARGET/release/examples/workers
DIR=$(mktemp -d -p "$TARGET" soak-jobs.XXXXXX)
trap clean_up EXIT
trap 'exit 130' INT TERM
QUORATE_DIR=$DIR/cluster QUORATE_BIN=$BIN scripts/cluster.sh up 3 --bare >/dev/null

for kind in "a job" "a job with a key"; do
    flags=()
    [[ $kind == "a job" ]] || flags=(--key k)
    rm -f "$DIR/times"
    for ((round = 1; round <= ROUNDS; round++)); do
        blow "$round" ${flags[@]+"${flags[@]}"} >>"$DIR/times"
        tail -n 1 "$DIR/times"
    done
    sort -n "$DIR/times" | awk -v kind="$kind" -v lease="$LEASE_MS" '
        { times[NR] = $1 }
        END {
            printf "%s, from the kill to the next claim: median %d ms, worst %d ms of %d, with a lease of %d ms\n",
                kind, times[int((NR + 1) / 2)], times[NR], NR, lease
            exit times[NR] > lease + 1000
        }' || die "$kind waited for longer than the lease and a second"
done

seq "$JOBS" | jobs_do submit --queue many --lines >/dev/null
began=$(now_ms)
for ((n = 1; n <= WORKERS; n++)); do work many "W$n" cat; done
are_done() { [[ $(jobs_do queues | awk '$1 == "many" { print $7 }') == "$JOBS" ]]; }
wait_until 600 are_done || die "not done: $(jobs_do queues)"
took=$(($(now_ms) - began))
say "$JOBS jobs by $WORKERS workers in $((took / 1000)).$((took % 1000 / 100)) s: $((JOBS * 1000 / took)) a second"
say "by 16 workers in one process, fresh: $(many 10000 0)"
say "and of 60,000 that are on the disk: $(many 60000 8)"
