# shellcheck shell=bash
# The demo: a cluster of its own, work, killed servers down to the last one, and the proof that nothing was lost or done
# twice. Sourced by cluster.sh, not run.

# shellcheck source=scripts/lib/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

WORKERS=4

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

demo_kill() {
    local victim acked killed
    victim=$(primary) || die "the cluster has no primary"
    step "3. kill -9 of the primary, $victim, in mid-work"
    refresh_pids
    acked=$(count acked)
    killed=$(now_ms)
    kill_now "$(pid_file "$victim")"
    # An answer may have been on its way to each of the workers.
    wait_until 20 acked_above $((acked + WORKERS)) || die "the workers got nothing done after the kill"
    ok "adds are acknowledged again $(($(now_ms) - killed)) ms after the kill"
    wait_until 20 acked_above $((acked + 50)) || die "the workers are slow: $(count acked) adds so far"
    wait_back "$victim"
    acked=$(count acked)
    wait_until 20 acked_above $((acked + 20)) || die "the workers got nothing done after $victim's return"
    ok "$victim was launched again, has caught up and is ready; the primary is $(primary); $(count acked) adds"
}

# demo_lose NAME VOTER…: NAME is killed and stays down; then these vote, and the work goes on.
demo_lose() {
    local victim=$1 acked
    shift
    lose "$victim"
    wait_until 30 voters_are "$@" || die "the manager has not repaired it within 30 s"
    acked=$(count acked)
    wait_until 20 acked_above $((acked + 20)) || die "the workers get nothing done without $victim"
    ok "without $victim the voters are $*; the primary is $(primary), and the work goes on: $(count acked) adds"
}

demo_last_one() {
    local name
    step "4. Servers go one after another and stay away, each when the repair of the one before has ended"
    demo_lose S1 S2 S3 W
    demo_lose S2 S3 W
    ok "S3 is the last server; W is a witness, which votes and serves nobody"

    step "5. They come back, with their disks"
    for name in S1 S2; do tell "$name" launch || die "$(lfd_of "$name") does not answer"; done
    wait_until 30 voters_are S1 S2 S3 || die "not all three vote again within 30 s"
    ok "S1 S2 S3 vote again, and the witness has stepped back; $(count acked) adds"
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
    local number
    (($# == 0)) || usage "demo takes nothing"
    step "1. Three servers and a witness, each with its detector; the global detector, and the manager"
    set_the_stage ''

    step "2. Work: a few commands, then $WORKERS workers which add 1 again and again"
    expect 5 add 5
    expect 8 add 3
    expect 6 minus 2
    touch "$DIR/work"
    for ((number = 1; number <= WORKERS; number++)); do
        work "$number" &
        BACKGROUND+=($!)
    done
    wait_until 20 acked_above 50 || die "the workers are slow: $(count acked) adds so far"
    ok "$(count acked) adds acknowledged so far"

    demo_kill
    demo_last_one

    step "6. Was anything lost, or done twice?"
    rm "$DIR/work"
    wait "${BACKGROUND[@]}"
    BACKGROUND=()
    check_counter 6
    check_replicas
    the_end
}
