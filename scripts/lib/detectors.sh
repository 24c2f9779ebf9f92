# shellcheck shell=bash
# A cluster that looks after itself: one local detector per server, which launches it, the global one, the manager, and a
# witness. Sourced by cluster.sh, not run.
#
# The servers are their detectors' children: what their pids are, the detectors say.

GFD=127.0.0.1:8101
RM=127.0.0.1:8102

is_managed() { [[ -e $DIR/managed ]]; }
lfd_of() { say "LFD${1#S}"; }
lfd_address() { say "127.0.0.1:$((8200 + $(number "$1")))"; }

# The detectors and the manager of this cluster: those that have a directory.
role_names() {
    local name
    for name in GFD RM LFD{1..9} LFDW; do [[ ! -d $DIR/$name ]] || say "$name"; done
}

# The servers of this cluster, the witness too.
server_names() {
    say "${NAMES[@]}"
    [[ ! -d $DIR/W ]] || say W
}

# tell LFD WHAT: a word to a local detector.
tell() {
    curl -fsS --noproxy '*' --max-time 5 -X POST "http://$(lfd_address "$1")/v1/$2" >/dev/null 2>&1
}

# require_detector SERVER WHY: its detector can be told something. What a paused one is told, it would do later on.
require_detector() {
    local lfd
    lfd=$(lfd_of "$1")
    is_gone "$(pid_file "$lfd")" && die "$lfd does not run, so $2: 'start $lfd' first"
    ! is_paused "$(pid_file "$lfd")" || die "$lfd is paused, so $2: 'resume $lfd' first"
}

# Takes the servers' pids over from their detectors. A pid is believed when the process has our directory.
refresh_pids() {
    local name pid start
    is_managed || return 0
    for name in $(server_names); do
        pid=$(http_get "http://$(lfd_address "$name")/v1/lfd" | json_field pid) || continue
        [[ $pid =~ ^[0-9]+$ ]] || continue
        [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == *" --data $DIR/$name/data "* ]] || continue
        read -r _ start < <(process_stat "$pid") || continue
        say "$pid $start" >"$(pid_file "$name")"
    done
}

start_gfd() {
    require_free 8101 GFD
    mkdir -p "$DIR/GFD"
    launch "$(pid_file GFD)" "$DIR/GFD/log" "$BIN" gfd --listen "$GFD"
}

# start_rm [MODE]
start_rm() {
    require_free 8102 RM
    mkdir -p "$DIR/RM"
    launch "$(pid_file RM)" "$DIR/RM/log" "$BIN" rm --listen "$RM" --gfd "$GFD" ${1:+--mode "$1"}
}

# start_lfd SERVER: its detector, which launches it, or adopts it.
start_lfd() {
    local name=$1 lfd other others=() role=()
    lfd=$(lfd_of "$name")
    require_free "$((8200 + $(number "$name")))" "$lfd"
    if is_gone "$(pid_file "$name")"; then require_server_ports "$name"; fi
    mkdir -p "$DIR/$name" "$DIR/$lfd"
    for other in "${NAMES[@]}"; do [[ $other == "$name" ]] || others+=("$other"); done
    [[ $name != W ]] || role=(--role witness)
    launch "$(pid_file "$lfd")" "$DIR/$lfd/log" "$BIN" lfd --name "$lfd" --listen "$(lfd_address "$name")" --gfd "$GFD" -- \
        server --name "$name" --data "$DIR/$name/data" --listen "127.0.0.1:$((8000 + $(number "$name")))" \
        --peer-listen "$(peer "$name")" "${role[@]}" ${others:+--join "$(join_list peer "${others[@]}")"}
}

start_role() {
    case $1 in
        GFD) start_gfd ;;
        RM) start_rm ;;
        LFDW) start_lfd W ;;
        LFD*) start_lfd "S${1#LFD}" ;;
    esac
}

# all_vote NAME…: all of them are voters and ready, and there is nothing left to do.
all_vote() {
    local name
    for name; do is_voter "$name" && is_ready "$name" || return 1; done
    settled
}

# The manager has nothing to do and nothing to wait for.
settled() { [[ $(http_get "http://$RM/v1/rm" | json_field settled) == true ]]; }

# voters_are NAME…: these vote, no others, and nothing is left to do.
voters_are() {
    local name list=''
    for name; do list+=${list:+,}\"$name\"; done
    [[ $(cluster_field voters | tr ',' '\n' | sort | paste -sd,) == "$list" ]] && settled
}

# bring_up_managed COUNT MODE: the whole cluster; at least that many servers (0: those there are, or 3).
bring_up_managed() {
    local count=$1 mode=$2 name size
    list_names
    ((count)) || count=$((${#NAMES[@]} ? ${#NAMES[@]} : 3))
    local number
    for ((number = 1; number <= count; number++)); do [[ -d $DIR/S$number ]] || NAMES+=("S$number"); done
    refresh_pids
    for name in "${NAMES[@]}" W; do is_running "$(pid_file "$name")" || require_server_ports "$name"; done
    init_once
    touch "$DIR/managed"
    is_running "$(pid_file GFD)" || start_gfd
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$(lfd_of "$name")")" || start_lfd "$name"; done
    # Held or paused by a person: that ends here.
    for name in "${NAMES[@]}"; do
        wait_until 5 tell "$name" launch || true
        ! is_paused "$(pid_file "$name")" || signal CONT "$(pid_file "$name")"
    done
    if ! wait_until 30 any_primary; then
        die "no primary after 30 s. It takes a majority of the voters, each with its own data: 'scripts/cluster.sh status'" \
            "shows who is missing, the logs in $DIR/LFD*/log say why, 'scripts/cluster.sh down --clean' gives all of it up"
    fi
    size=$(http_get "$(url "$(primary)")/v1/cluster" | json_field target-size) || size=''
    [[ $size == "${#NAMES[@]}" ]] || "$BIN" cluster set target-size "${#NAMES[@]}" --servers "$(join_list url "${NAMES[@]}")" \
        >/dev/null || die "the target size cannot be set, see above"
    [[ -z ${STABILIZATION:-} ]] || "$BIN" cluster set stabilization "$STABILIZATION" \
        --servers "$(join_list url "${NAMES[@]}")" >/dev/null || die "the stabilization time cannot be set, see above"
    is_running "$(pid_file RM)" || start_rm "$mode"
    is_running "$(pid_file LFDW)" || start_lfd W
    wait_until 60 all_vote "${NAMES[@]}" || {
        "$BIN" rm explain >&2 || true
        die "not all of ${NAMES[*]} are voters and ready after 60 s: what the manager waits for is above"
    }
    refresh_pids
}

is_back() { if [[ $1 == W ]]; then is_ready W && settled; else all_vote "$1"; fi; }

# wait_back NAME: a server that was launched serves again, and the cluster has nothing left to do.
wait_back() {
    wait_until 60 is_ready "$1" || die "$1 is not ready after 60 s; its log is $DIR/$(lfd_of "$1")/log"
    is_gone "$(pid_file RM)" || wait_until 60 is_back "$1" || {
        "$BIN" rm explain >&2 || true
        die "the cluster has not settled after 60 s: what the manager waits for is above"
    }
    refresh_pids
}

# Ends the manager first, so that it repairs nothing; the detectors take their servers down.
stop_managed() {
    local name files=()
    refresh_pids
    is_gone "$(pid_file RM)" || stop_all 5 "$(pid_file RM)"
    # A paused server cannot end.
    for name in $(server_names); do signal CONT "$(pid_file "$name")" || true; done
    for name in $(role_names); do is_gone "$(pid_file "$name")" || files+=("$(pid_file "$name")"); done
    ((${#files[@]} == 0)) || stop_all 25 "${files[@]}"
    files=()
    # Whose detector was killed.
    for name in $(server_names); do is_gone "$(pid_file "$name")" || files+=("$(pid_file "$name")"); done
    ((${#files[@]} == 0)) || stop_all 20 "${files[@]}"
}
