#!/usr/bin/env bash
# How long a loss takes to be seen and repaired, 20 times each (or as often as the first argument says), with the defaults of
# detectors and manager: the primary is killed (-9), then paused. Prints median and worst of the times from the blow
# to the view that has it dead, to the next acknowledged add of a client that adds all the time, and until the cluster has
# settled again: the killed one back, the paused one replaced by the witness. Exit: 0 done, 1 failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/stage.sh
source scripts/lib/stage.sh

ROUNDS=${1:-20}

# Puts the time in milliseconds before each line.
stamp() { while IFS= read -r line; do say "$(now_ms) $line"; done; }

# first_after FILE MS PATTERN: the time of the first line since then that has the pattern.
first_after() {
    awk -v since="$2" -v pattern="$3" '$1 > since && $0 ~ pattern { print $1; exit }' "$1"
}
seen() { [[ -n $(first_after "$@") ]]; }

# has_run_for SECONDS NAME
has_run_for() { (($(http_get "$(url "$2")/v1/status" | json_field uptime_secs) >= $1)); }

# is_whole NAME: the killed one serves again. The manager may not have looked since the blow, so it is not asked alone.
is_whole() { is_ready "$1" && voters_are S1 S2 S3; }

# blow KIND: one round; prints "VIEW ADD SETTLED" in milliseconds.
blow() {
    local kind=$1 victim others=() name at view add
    victim=$(primary)
    # One that is killed again and again at its start is launched later and later.
    wait_until 60 has_run_for 15 "$victim" || die "$victim does not stay up"
    for name in S1 S2 S3; do [[ $name == "$victim" ]] || others+=("$name"); done
    refresh_pids
    at=$(now_ms)
    if [[ $kind == kill ]]; then kill_now "$(pid_file "$victim")"; else signal STOP "$(pid_file "$victim")"; fi
    wait_until 20 seen "$DIR/view" "$at" "\"name\":\"$victim\"[^}]*\"state\":\"dead\"" || die "$victim is not dead in the view"
    view=$(first_after "$DIR/view" "$at" "\"name\":\"$victim\"[^}]*\"state\":\"dead\"")
    # An answer may have been on its way; no election is over within 50 ms.
    wait_until 30 seen "$DIR/adds" $((at + 50)) . || die "no add is acknowledged"
    add=$(first_after "$DIR/adds" $((at + 50)) .)
    if [[ $kind == kill ]]; then wait_until 60 is_whole "$victim"; else wait_until 60 voters_are "${others[@]}" W; fi ||
        die "not settled: $("$BIN" rm explain)"
    say "$((view - at)) $((add - at)) $(($(now_ms) - at))"
    if [[ $kind == pause ]]; then
        signal CONT "$(pid_file "$victim")"
        wait_until 60 voters_are S1 S2 S3 || die "not settled after the pause: $("$BIN" rm explain)"
    fi
}

# summary FILE COLUMN: median and worst.
summary() { awk -v c="$2" '{ print $c }' "$1" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] " / " v[NR] }'; }

step "Three servers, the witness, the detectors and the manager"
set_the_stage ''
"$BIN" cluster set stabilization 5s --servers "$SERVERS" >/dev/null
curl -sN --noproxy '*' "http://$GFD/v1/view/watch" > >(stamp >"$DIR/view") &
BACKGROUND+=($!)
"$BIN" client --servers "$SERVERS" --timeout 30s loop --every 10ms > >(stamp >"$DIR/adds") 2>"$DIR/adds.err" &
BACKGROUND+=($!)
wait_until 10 seen "$DIR/adds" 0 . || die "no add is acknowledged"
for kind in kill pause; do
    step "$ROUNDS times $kind"
    for ((round = 1; round <= ROUNDS; round++)); do
        blow "$kind" | tee -a "$DIR/times-$kind"
    done
    ok "$kind: ms to the view $(summary "$DIR/times-$kind" 1), to the next add $(summary "$DIR/times-$kind" 2), settled $(summary "$DIR/times-$kind" 3) (median / worst of $ROUNDS)"
done
the_end
