# shellcheck shell=bash
# The demo: a cluster of its own, work, a killed primary, and the proof that nothing was lost or done twice.
# Sourced by cluster.sh, not run.

WORKERS=4

step() { say "" "${BOLD}$*${PLAIN}"; }
ok() { say "  ${GREEN}ok${PLAIN}  $*"; }
ask() { "$BIN" client --servers http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003 --timeout 10s "$@"; }

# expect VALUE COMMAND…: the client command must print that value.
expect() {
    local wanted=$1 got
    shift
    got=$(ask "$@") || die "'quorate client $*' failed, its message is above"
    [[ $got == "$wanted" ]] || die "'quorate client $*' printed $got, and $wanted is right"
    ok "quorate client $* -> $got"
}

# work NUMBER: adds 1 again and again while $DIR/work is there, and keeps a line for each outcome.
work() {
    local value status
    while [[ -e $DIR/work ]]; do
        status=0
        value=$(ask add 1 2>>"$DIR/errors-$1") || status=$?
        case $status in
            0) say "$value" >>"$DIR/acked-$1" ;;
            3) say "$status" >>"$DIR/unknown-$1" && sleep 0.1 ;;
            *) say "$status" >>"$DIR/refused-$1" && sleep 0.1 ;;
        esac
    done
}

# count KIND: lines of all workers' files of that kind.
count() { { cat "$DIR/$1"-* 2>/dev/null || true; } | wc -l; }
acked_above() { (($(count acked) > $1)); }
# other_primary NAME: some server knows a primary, and it is not NAME.
other_primary() {
    local now
    now=$(primary) && [[ $now != "$1" ]]
}

# replica NAME: prints "REVISION HASH", which the server reads as one atomic pair.
replica() {
    local json
    json=$(http_get "$(url "$1")/v1/status") || return 1
    say "$(json_field revision <<<"$json") $(json_field state_hash <<<"$json")"
}
replicas_agree() {
    local first
    first=$(replica S1) && [[ $first == *' '?* && $(replica S2) == "$first" && $(replica S3) == "$first" ]]
}

demo_clean_up() {
    local status=$? name files=()
    trap - EXIT INT TERM
    rm -f "$DIR/work"
    ((status == 0)) || for name in "${NAMES[@]}"; do
        [[ -f $DIR/$name/log ]] && warn "the end of $name's log:" && tail -n 4 "$DIR/$name/log" >&2
    done
    wait
    for name in "${NAMES[@]}"; do [[ -f $(pid_file "$name") ]] && files+=("$(pid_file "$name")"); done
    ((${#files[@]} == 0)) || stop_all 10 "${files[@]}"
    rm -rf "${DIR:?}"
    exit "$status"
}

demo_kill() {
    local victim acked killed
    victim=$(primary) || die "the cluster has no primary"
    step "3. kill -9 of the primary, $victim, in mid-work"
    acked=$(count acked)
    killed=$(now_ms)
    kill_now "$(pid_file "$victim")"
    wait_until 20 other_primary "$victim" || die "no new primary within 20 s"
    ok "$(primary) is the new primary, $(($(now_ms) - killed)) ms after the kill"
    wait_until 20 acked_above $((acked + WORKERS)) || die "the workers got nothing done after the kill"
    wait_until 20 acked_above $((acked + 50)) || die "the workers are slow: $(count acked) adds so far"
    ok "the work goes on with two of three: $(count acked) adds, $acked before the kill"

    step "4. $victim comes back"
    start_server "$victim"
    settle "$victim"
    acked=$(count acked)
    wait_until 20 acked_above $((acked + 20)) || die "the workers got nothing done after $victim's return"
    ok "$victim has caught up and is ready; $(count acked) adds"
}

# check_counter BASE: every acknowledged add is in the counter exactly once.
check_counter() {
    local base=$1 acked unknown refused distinct value
    acked=$(count acked) unknown=$(count unknown) refused=$(count refused)
    value=$(ask get) || die "'quorate client get' failed"
    distinct=$(sort -un "$DIR"/acked-* | wc -l)
    say "  adds acknowledged: $acked   outcome unknown: $unknown   refused: $refused"
    ((value >= base + acked)) || die "the counter is $value: $((base + acked - value)) acknowledged adds are lost"
    ((value <= base + acked + unknown)) || die "the counter is $value: $((value - base - acked - unknown)) adds too many"
    ((distinct == acked)) || die "$acked acknowledged adds were told only $distinct different values"
    if ((unknown)); then
        ok "the counter is $value: at least $base + $acked, and no more than the $unknown unknown ones above it"
    else
        ok "the counter is $value = $base + $acked: each acknowledged add is in it exactly once"
    fi
    ok "and each was told a value of its own"
}

demo() {
    local begun number name
    (($# == 0)) || usage "demo takes nothing"
    for number in 1 2 3; do
        require_free $((8000 + number)) "the demo's S$number"
        require_free $((9000 + number)) "the peers of the demo's S$number"
    done
    build_quorate
    begun=$(now_ms)
    mkdir -p "$TARGET"
    DIR=$(mktemp -d "$TARGET/cluster-demo.XXXXXX")
    trap demo_clean_up EXIT
    trap 'exit 130' INT TERM

    step "1. Three servers"
    bring_up 3
    for name in "${NAMES[@]}"; do ok "$name on $(url "$name"), process $(own_pid "$(pid_file "$name")")"; done
    ok "all are voters and ready; $(primary) is the primary"

    step "2. Work: a few commands, then $WORKERS workers which add 1 again and again"
    expect 5 add 5
    expect 8 add 3
    expect 6 minus 2
    touch "$DIR/work"
    for ((number = 1; number <= WORKERS; number++)); do work "$number" & done
    wait_until 20 acked_above 50 || die "the workers are slow: $(count acked) adds so far"
    ok "$(count acked) adds acknowledged so far"

    demo_kill

    step "5. Was anything lost, or done twice?"
    rm "$DIR/work"
    wait
    check_counter 6
    wait_until 20 replicas_agree || die "the replicas differ: S1 $(replica S1); S2 $(replica S2); S3 $(replica S3)"
    read -r number name < <(replica S1)
    ok "all three replicas are at revision $number with state hash $name"
    say "" "${GREEN}Done${PLAIN} in $((($(now_ms) - begun) / 1000)) s."
}
