#!/usr/bin/env bash
# How three servers with default settings recover, measured and recorded in docs/soak/recovery.md:
#
#   failover [N]        kill -9 of the primary, N times (20): from the kill to the next acknowledged add of a client
#                       that is started at the same moment and retries; its own start is part of the time
#   restart             1,000,000 counters made by as many deltas, then kill -9 of a backup, twice: from its start
#                       to ready, and its memory; and once more after an orderly stop
#   saturation [SECS]   SECS (60) of adds by 64 and by 256 clients and of batches: was there an election?
#
# Without a word: all of them, in minutes. The cluster is this script's own, under target/soak/cluster/, on the ports of
# scripts/cluster.sh. It is deleted at the end; after a failure it stays.
set -euo pipefail
# A bench ends well after Ctrl-C, with what it has measured; that is no record.
trap 'exit 130' INT

cd "$(dirname "$0")/../.."
# shellcheck source=scripts/lib/process.sh
source scripts/lib/process.sh
# shellcheck source=scripts/lib/servers.sh
source scripts/lib/servers.sh
# shellcheck source=scripts/lib/detectors.sh
source scripts/lib/detectors.sh

DIR=$TARGET/soak/cluster
RECORD=docs/soak/recovery.md
RESULT=$TARGET/soak/recovery.result
COUNTERS=1000000
URLS=http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003

stop_cluster() {
    local files=() name
    list_names
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$name")" && files+=("$(pid_file "$name")"); done
    ((${#files[@]} == 0)) || stop_all 10 "${files[@]}"
}

new_cluster() {
    stop_cluster
    clean_up >/dev/null
    bring_up 3
}

now_us() { say "${EPOCHREALTIME/[.,]/}"; }
note() { say "$*" | tee -a "$RESULT"; }
status_field() { http_get "$(url "$1")/v1/status" | json_field "$2"; }

failover() {
    local times=$1 name begun took all=()
    new_cluster
    for ((n = 1; n <= times; n++)); do
        name=$(primary)
        begun=$(now_us)
        signal KILL "$(pid_file "$name")"
        "$BIN" client --servers "$URLS" --timeout 20s --counter failover add 1 >/dev/null
        took=$((($(now_us) - begun) / 1000))
        all+=("$took")
        say "failover $n of $times: $name killed, $took ms" >&2
        kill_now "$(pid_file "$name")"
        start_server "$name"
        settle "$name"
    done
    [[ $("$BIN" client --servers "$URLS" --counter failover get) == "$times" ]] || die "an add was lost or done twice"
    mapfile -t all < <(printf '%s\n' "${all[@]}" | sort -n)
    note "failover, ms from kill -9 to the next acknowledged add, of $times: median ${all[times / 2]}, best ${all[0]}," \
        "worst ${all[times - 1]}"
}

# fill FROM: 1,000 counters, as the body of a batch.
fill() {
    seq -f '{"counter":{"set":{"name":"counter-%07.0f","value":7}}}' "$1" $(($1 + 999)) | paste -sd, | sed 's/.*/[&]/'
}

# restarted NAME HOW
restarted() {
    local begun took
    begun=$(now_us)
    start_server "$1"
    until is_ready "$1"; do sleep 0.01; done
    took=$((($(now_us) - begun) / 1000))
    note "restart after $2, $COUNTERS counters and revision $(status_field "$1" revision): ready after $took ms," \
        "peak memory $(awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$(own_pid "$(pid_file "$1")")/status") MiB"
}

restart() {
    local first name=S3
    new_cluster
    for ((first = 0; first < COUNTERS; first += 1000)); do
        fill "$first" | curl -fsS --noproxy '*' --data-binary @- -o /dev/null "$(url "$(primary)")/v1/batch"
    done
    for _ in 1 2; do
        kill_now "$(pid_file "$name")"
        restarted "$name" "kill -9"
    done
    stop_all 30 "$(pid_file "$name")"
    restarted "$name" "an orderly stop"
    [[ $(status_field "$name" state_hash) == "$(status_field S1 state_hash)" ]] || die "the replicas differ"
}

saturation() {
    local before load result
    new_cluster
    before=$(status_field S1 term)
    for load in '--clients 64' '--clients 256' '--clients 16 --batch 1000'; do
        # shellcheck disable=SC2086 # words
        result=$("$BIN" bench --servers "$URLS" $load --secs "$1" --json)
        note "saturation, bench $load, $1 s: $(json_field ops_per_sec <<<"$result") adds/s," \
            "$(json_field errors <<<"$result") errors, elections $(($(status_field S1 term) - before))"
        before=$(status_field S1 term)
    done
}

record() {
    local commit
    commit=$(git rev-parse --short=12 HEAD)
    git diff --quiet HEAD -- storage cluster src Cargo.toml Cargo.lock || commit+=+changes
    [[ -f $RECORD ]] || say "# Recovery: recorded runs" "" \
        "\`scripts/soak/recovery.sh\` says what is measured, and how." "" >"$RECORD"
    {
        say "## $(date -u +%Y-%m-%d)" ""
        say "- commit: \`$commit\`" "- command: \`scripts/soak/recovery.sh $*\`" "- date: $(date -u +%FT%TZ)"
        say "- machine: $(nproc) x $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo), Linux $(uname -r)" ""
        say '```' "$(cat "$RESULT")" '```' ""
    } >>"$RECORD"
    say "recorded in $RECORD"
}

build_quorate
mkdir -p "$TARGET/soak"
: >"$RESULT"
case ${1:-all} in
    failover) failover "${2:-20}" ;;
    restart) restart ;;
    saturation) saturation "${2:-60}" ;;
    all)
        failover 20
        restart
        saturation 60
        ;;
    *) usage "recovery.sh takes failover, restart or saturation, or nothing for all of them; not '$1'" ;;
esac
stop_cluster
clean_up >/dev/null
record "$@"
