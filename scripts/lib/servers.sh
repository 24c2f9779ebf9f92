# shellcheck shell=bash
# The servers of one cluster: names, addresses, starting, joining. Sourced by cluster.sh, not run.
# Uses DIR (the state's directory) and BIN; `list_names` and `bring_up` set NAMES.

NAMES=()

# The witness is number 0; a detector has its server's.
number() {
    local number=${1#LFD}
    number=${number#S}
    say "${number/#W/0}"
}
url() { say "http://127.0.0.1:$((8000 + $(number "$1")))"; }
peer() { say "127.0.0.1:$((9000 + $(number "$1")))"; }
pid_file() { say "$DIR/$1/pid"; }
has_identity() { [[ -f $DIR/$1/data/identity.json ]]; }

# Sets NAMES to the servers that have a directory.
list_names() {
    local path
    NAMES=()
    for path in "$DIR"/S[1-9]; do [[ -d $path ]] && NAMES+=("${path##*/}"); done
    return 0
}

require_name() {
    case $1 in
        S[1-9]) ;;
        W | LFD[1-9] | LFDW | GFD | RM) is_managed || die "there is no $1: this cluster has servers only (--bare)" ;;
        *) usage "'$1' is no name: they are S1, S2, …, W, LFD1, LFD2, …, GFD and RM" ;;
    esac
    [[ -d $DIR/$1 ]] || die "there is no $1 in $DIR: '${0##*/} up N' makes a cluster of N servers, or adds to one"
}

require_server_ports() {
    require_free "$((8000 + $(number "$1")))" "$1"
    require_free "$((9000 + $(number "$1")))" "$1's peers"
}

require_running() {
    require_name "$1"
    is_running "$(pid_file "$1")" || die "$1 does not run"
}

any_running() {
    local name
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$name")" && return; done
    return 1
}

# join_list COMMAND WORD…: what COMMAND prints for each word, with commas between.
join_list() {
    local command=$1 word list=''
    shift
    for word; do list+=${list:+,}$("$command" "$word"); done
    say "$list"
}

running_urls() {
    local name running=()
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$name")" && running+=("$name"); done
    join_list url "${running[@]}"
}

# cluster_field FIELD: of the first server that answers and knows a primary.
cluster_field() {
    local name json
    for name in "${NAMES[@]}"; do
        is_paused "$(pid_file "$name")" && continue
        json=$(http_get "$(url "$name")/v1/cluster") || continue
        [[ $(json_field primary <<<"$json") == S* ]] || continue
        json_field "$1" <<<"$json"
        return
    done
    return 1
}
primary() { cluster_field primary; }
any_primary() { primary >/dev/null; }

is_ready() { http_get "$(url "$1")/readyz" >/dev/null; }

# is_voter NAME: by its own word (a wiped server's old node id may still be one) and by the cluster's.
is_voter() {
    local role
    role=$(http_get "$(url "$1")/v1/status" | json_field role) || return 1
    [[ $role == primary || $role == backup ]] && [[ ,$(cluster_field voters), == *"\"$1\""* ]]
}

# check_alive NAME: a server that has ended says why in its log.
check_alive() {
    is_running "$(pid_file "$1")" && return
    warn "$1 has ended. The end of its log, $DIR/$1/log:"
    tail -n 8 "$DIR/$1/log" >&2
    exit 1
}

start_server() {
    local name=$1 other others=() join=()
    require_server_ports "$name"
    mkdir -p "$DIR/$name"
    if ! has_identity "$name"; then
        for other in "${NAMES[@]}"; do
            [[ $other != "$name" ]] && has_identity "$other" && others+=("$other")
        done
        ((${#others[@]})) || die "$name's disk is empty and there is no other server to join: 'up' makes a new cluster"
        join=(--join "$(join_list peer "${others[@]}")")
    fi
    launch "$(pid_file "$name")" "$DIR/$name/log" "$BIN" server --name "$name" --data "$DIR/$name/data" \
        --listen "127.0.0.1:$((8000 + $(number "$name")))" --peer-listen "$(peer "$name")" "${join[@]}"
}

# settle NAME: waits until it is a voter and ready, and promotes it if it has joined as a learner, or was removed.
# Without a primary for 10 s there is nothing to wait for: a server that hears no more of the primary may name it still
# for a moment.
settle() {
    local name=$1 end=$((SECONDS + 60)) missed='' message='' role
    until is_voter "$name" && is_ready "$name"; do
        check_alive "$name"
        ((SECONDS < end)) || die "$name is no ready voter after 60 s${message:+, the last refusal being: $message}; its log is $DIR/$name/log"
        if any_primary; then missed=''; else missed=${missed:-$SECONDS}; fi
        [[ -z $missed ]] || ((SECONDS - missed < 10)) || die "$name runs, but the cluster has no primary: it takes a majority of the voters, each with its own data." \
            "'scripts/cluster.sh status' shows who is missing"
        role=$(http_get "$(url "$name")/v1/status" | json_field role) || role=''
        if [[ $role == learner || $role == removed ]]; then
            # It may not have caught up yet, so a refusal here is no failure until the time is over.
            message=$("$BIN" cluster promote "$name" --servers "$(running_urls)" 2>&1) && message='' && continue
        fi
        sleep 0.1
    done
}

# The only bootstrap: when no server here has ever been part of a cluster.
init_once() {
    local name
    for name in "${NAMES[@]}"; do has_identity "$name" && return; done
    mkdir -p "$DIR/S1"
    "$BIN" cluster init --name S1 --data "$DIR/S1/data" --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001 \
        >>"$DIR/S1/log" 2>&1 || {
        tail -n 5 "$DIR/S1/log" >&2
        die "quorate cluster init failed, see above"
    }
}

# bring_up COUNT: at least that many servers (0: those there are, or 3), started, voters and ready. Sets NAMES.
bring_up() {
    local count=$1 number name
    list_names
    ((count)) || count=$((${#NAMES[@]} ? ${#NAMES[@]} : 3))
    for ((number = 1; number <= count; number++)); do [[ -d $DIR/S$number ]] || NAMES+=("S$number"); done
    for name in "${NAMES[@]}"; do
        is_running "$(pid_file "$name")" || require_server_ports "$name"
    done
    init_once
    for name in "${NAMES[@]}"; do
        has_identity "$name" && is_gone "$(pid_file "$name")" && start_server "$name"
        is_paused "$(pid_file "$name")" && signal CONT "$(pid_file "$name")"
    done
    if ! wait_until 30 any_primary; then
        for name in "${NAMES[@]}"; do ! has_identity "$name" || check_alive "$name"; done
        die "no primary after 30 s. It takes a majority of the voters, each with its own data: 'scripts/cluster.sh status'" \
            "shows who is missing, the logs in $DIR/S*/log say why, 'scripts/cluster.sh down --clean' gives all of it up"
    fi
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$name")" || start_server "$name"; done
    for name in "${NAMES[@]}"; do settle "$name"; done
}

# Deletes the state, and only what this script has made.
clean_up() {
    local name
    ((${#NAMES[@]})) || return 0
    for name in $(server_names) $(role_names); do rm -rf "${DIR:?}/$name"; done
    rm -f "$DIR/managed"
    rmdir "$DIR" 2>/dev/null || true
    say "Deleted the cluster's state in $DIR."
}
