#!/usr/bin/env bash
# What an idle cluster costs: three servers, the witness, the detectors and the manager do nothing for 60 s (or as long as the
# first argument says). Prints the share of a core that each process took, and the most. Exit: 0 done, 1 failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/stage.sh
source scripts/lib/stage.sh

SECS=${1:-60}
TICKS=$(getconf CLK_TCK)

# Prints "NAME TICKS", the time that each process has had on a core.
times() {
    local name pid
    for name in $(role_names) $(server_names); do
        pid=$(own_pid "$(pid_file "$name")") || die "$name does not run"
        # Behind the command's name, which may have blanks in it.
        sed 's/.*) //' "/proc/$pid/stat" | awk -v name="$name" '{ print name, $12 + $13 }'
    done
}

step "Three servers, the witness, the detectors and the manager"
set_the_stage ''
wait_until 60 settled || die "not settled: $("$BIN" rm explain)"
refresh_pids
step "$SECS seconds of nothing"
sleep 5
times >"$DIR/before"
sleep "$SECS"
times >"$DIR/after"
paste -d ' ' "$DIR/before" "$DIR/after" |
    awk -v all="$((SECS * TICKS))" '{ share = ($4 - $2) * 100 / all; printf "  %-5s %.2f %% of a core\n", $1, share
        if (share > most) most = share } END { printf "  the most: %.2f %%\n", most }'
the_end
