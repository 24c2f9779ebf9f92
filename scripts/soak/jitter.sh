#!/usr/bin/env bash
# Lets everything stall, below the detectors' time-out, for 30 minutes (or as many as the first argument says) while clients
# add, and records the run in docs/soak/jitter.md: a server, a detector or the manager is paused for 50 to 700 ms, again and
# again, two of them at a time. The membership may not change; how often stalls added up to a death in the view is recorded.
# Exit: 0 nobody was removed and nothing was lost, 1 otherwise.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/demo.sh
source scripts/lib/demo.sh

MINUTES=${1:-30}
RECORD=docs/soak/jitter.md
# As it is when the binary is taken: a run is long.
COMMIT=$(git rev-parse --short=12 HEAD)

membership() { http_get "http://$RM/v1/rm" | json_field membership; }
# Each change of the view is a line; one that begins a death counts.
deaths() { grep '^data:' "$DIR/view" | awk '{ now = gsub(/"state":"dead"/, ""); if (now > before) n += now - before; before = now } END { print n + 0 }'; }

# stall NAME: for a while.
stall() {
    signal STOP "$(pid_file "$1")"
    sleep "0.$(printf '%03d' $((50 + RANDOM % 650)))"
    signal CONT "$(pid_file "$1")"
    say x >>"$DIR/stalls-$1"
}

# stalls NAME...: one of them after the other, until it is over.
stalls() {
    local list=("$@")
    trap 'exit 0' TERM
    while [[ -e $DIR/work ]]; do
        stall "${list[RANDOM % ${#list[@]}]}"
        sleep "0.$(printf '%03d' $((RANDOM % 900)))"
    done
}

step "1. Three servers, the witness, the detectors and the manager"
set_the_stage ''
wait_until 60 settled || die "not settled: $("$BIN" rm explain)"
refresh_pids
before=$(membership)
curl -sN --noproxy '*' "http://$GFD/v1/view/watch" >"$DIR/view" &
BACKGROUND+=($!)
WATCH=$!

step "2. $WORKERS workers, and $MINUTES minutes of stalls"
touch "$DIR/work"
for ((number = 1; number <= WORKERS; number++)); do
    work "$number" &
    BACKGROUND+=($!)
done
stalls S1 S2 S3 W &
BACKGROUND+=($!)
stalls LFD1 LFD2 LFD3 LFDW GFD RM &
BACKGROUND+=($!)
for ((minute = 1; minute <= MINUTES; minute++)); do
    sleep 60
    # Whoever is paused at this moment does not answer.
    wait_until 5 membership >/dev/null || die "the manager does not answer"
    [[ $(membership || say "$before") == "$before" ]] || die "the membership was changed: $("$BIN" rm explain)"
    ((minute % 5)) || ok "$minute minutes, $(cat "$DIR"/stalls-* | wc -l) stalls, $(count acked) adds"
done

step "3. Was anybody removed, or anything lost?"
rm "$DIR/work"
kill "$WATCH"
wait "${BACKGROUND[@]}" || true
BACKGROUND=()
wait_until 60 settled || die "not settled: $("$BIN" rm explain)"
[[ $(membership) == "$before" ]] || die "the membership was changed from $before to $(membership)"
ok "the membership is $before, as it was"
check_counter 0
mkdir -p docs/soak
if [[ ! -f $RECORD ]]; then
    say '# Jitter below the time-out: recorded runs' '' \
        'Servers, detectors and manager stall for 50 to 700 ms, again and again; scripts/soak/jitter.sh says how.' '' >"$RECORD"
fi
say "## $(date -u +%Y-%m-%d): $MINUTES minutes, nobody removed" "" \
    "- commit: \`$COMMIT\`" \
    "- command: \`scripts/soak/jitter.sh $MINUTES\`" \
    "- date: $(date -u +%Y-%m-%dT%H:%M:%SZ), $((($(now_ms) - BEGUN) / 1000)) s" \
    "- machine: $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)" \
    "- stalls: $(cat "$DIR"/stalls-S? "$DIR"/stalls-W | wc -l) of servers, $(cat "$DIR"/stalls-LFD? "$DIR"/stalls-GFD "$DIR"/stalls-RM | wc -l) of detectors and manager" \
    "- the membership stayed $before; stalls added up to a death in the view $(deaths) times" \
    "- adds: $(count acked) acknowledged, each of them in the counter once; $(count unknown) unknown, $(count refused) refused" "" >>"$RECORD"
the_end
