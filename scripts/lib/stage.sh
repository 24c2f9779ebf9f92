# shellcheck shell=bash
# A cluster for a show: one of its own, with all detectors, gone when the script ends; what the demo and the scenarios have
# in common. Sourced by them, not run.

# shellcheck source=scripts/lib/process.sh
source "$(dirname "${BASH_SOURCE[0]}")/process.sh"
# shellcheck source=scripts/lib/servers.sh
source "$(dirname "${BASH_SOURCE[0]}")/servers.sh"
# shellcheck source=scripts/lib/detectors.sh
source "$(dirname "${BASH_SOURCE[0]}")/detectors.sh"

# Processes of ours that the script waits for at its end. The cluster's are not among them.
BACKGROUND=()

step() { say "" "${BOLD}$*${PLAIN}"; }
ok() { say "  ${GREEN}ok${PLAIN}  $*"; }
SERVERS=http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003
ask() { "$BIN" client --servers "$SERVERS" --timeout 15s "$@"; }

# set_the_stage MODE [SERVERS]: three servers or so many, a witness, the detectors and the manager.
set_the_stage() {
    local number name
    for number in 8101 8102 {80,82,90}0{0,1,2,3}; do
        require_free "$number" "this cluster"
    done
    build_quorate
    BEGUN=$(now_ms)
    mkdir -p "$TARGET"
    DIR=$(mktemp -d "$TARGET/cluster-show.XXXXXX")
    trap strike_the_stage EXIT
    trap 'exit 130' INT TERM
    # Less patient than a real one.
    STABILIZATION=1s bring_up_managed "${2:-3}" "$1"
    for name in "${NAMES[@]}"; do ok "$name on $(url "$name"), process $(own_pid "$(pid_file "$name")")"; done
    ok "all are voters and ready; $(primary) is the primary"
}

strike_the_stage() {
    local status=$? name
    trap - EXIT INT TERM
    rm -f "$DIR/work"
    ((status == 0)) || for name in $(role_names); do
        [[ -f $DIR/$name/log ]] && warn "the end of $name's log:" && tail -n 4 "$DIR/$name/log" >&2
    done
    ((${#BACKGROUND[@]} == 0)) || kill "${BACKGROUND[@]}" 2>/dev/null || true
    ((${#BACKGROUND[@]} == 0)) || wait "${BACKGROUND[@]}" || true
    stop_managed
    rm -rf "${DIR:?}"
    exit "$status"
}

# lose NAME: it is killed, and stays down.
lose() {
    tell "$1" hold || die "$(lfd_of "$1") does not answer"
    refresh_pids
    kill_now "$(pid_file "$1")"
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

# All that was acknowledged is in all replicas alike.
check_replicas() {
    local revision hash
    wait_until 20 replicas_agree || die "the replicas differ: S1 $(replica S1); S2 $(replica S2); S3 $(replica S3)"
    read -r revision hash < <(replica S1)
    ok "all three replicas are at revision $revision with state hash $hash"
}

the_end() { say "" "${GREEN}Done${PLAIN} in $((($(now_ms) - BEGUN) / 1000)) s."; }
