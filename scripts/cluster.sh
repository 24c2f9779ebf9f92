#!/usr/bin/env bash
# A Quorate cluster on this machine.
#
#   up [N] [--mode active|passive]
#                        start N servers (default: those there are, or 3) as voters, a local fault detector for each, the
#                        global one, the manager and a witness; resumes what is there
#   up [N] --bare        servers only: nothing restarts by itself
#   down [--clean]       end them all; the data stays, unless --clean
#   status               what runs, the view, the cluster, and what the manager would do
#   kill NAME [--stay]   SIGKILL; a server comes back by itself, unless --stay or --bare
#   pause NAME           SIGSTOP; 'resume NAME' lets it go on
#   start NAME           start it again; with an empty disk it joins, in place of its old node id
#   wipe NAME            kill it and delete its data; it stays down until 'start'
#   logs NAME            its log; on a terminal: follow it
#   demo                 a cluster, work, killed servers down to the last one: is anything lost or done twice?
#
# NAME is S1, S2, …, the witness W, their detectors LFD1, LFD2, … and LFDW, GFD, or RM. On 127.0.0.1, Sn listens on
# 800n and for its peers on 900n, W on 8000 and 9000, GFD on 8101, RM on 8102, LFDn on 820n, LFDW on 8200.
#
# State is under target/cluster/, or QUORATE_DIR:  S1/data  its disk   LFD1/log  its log and its detector's (with --bare:
# S1/log)   S1/pid  its process
# QUORATE_BIN names a binary to use as it is; otherwise 'up' and 'demo' have cargo build one.
# Exit: 0 done, 1 failed, 2 usage. Needs Linux, bash, coreutils, curl, and cargo to build.
set -euo pipefail

# shellcheck source=scripts/lib/demo.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/demo.sh"

DIR=${QUORATE_DIR:-$TARGET/cluster}
# The servers' environment is read by `quorate` as well: what is meant for this script stays here.
export -n QUORATE_DIR QUORATE_BIN 2>/dev/null || true

cmd_up() {
    local count='' bare='' mode='' name
    while (($#)); do
        case $1 in
            --bare) bare=yes ;;
            --mode)
                [[ ${2:-} == active || ${2:-} == passive ]] || usage "--mode is active or passive"
                mode=$2
                shift
                ;;
            [1-9]) [[ -z $count ]] || usage "up takes one number" && count=$1 ;;
            *) usage "up takes a number of servers, 1 to 9, --mode and --bare; not '$1'" ;;
        esac
        shift
    done
    [[ -z $bare || -z $mode ]] || usage "--mode is said to the manager, and --bare has none: 'quorate cluster set mode $mode'"
    build_quorate
    if [[ -n $bare ]]; then
        # Each of them: 'down' ends a managed cluster's only while it is known to be one.
        for name in $(role_names); do
            is_running "$(pid_file "$name")" && die "this cluster has its detectors, and $name runs: 'down' first, then 'up --bare'"
        done
        rm -f "$DIR/managed"
        bring_up "${count:-0}"
    else
        bring_up_managed "${count:-0}" "$mode"
    fi
    say "${GREEN}Up:${PLAIN} ${NAMES[*]} are voters and ready; the primary is ${BOLD}$(primary)${PLAIN}."
    # The client's default addresses are those of S1 to S3.
    local client="${BIN#"$PWD"/} client" here=${0#"$PWD"/}
    say "" "Next, for example:" "  $client add 5" "  $client get" "  $client console" "  $here status" \
        "  $here kill $(primary)" "  $here down"
}

cmd_down() {
    local clean='' files=() name
    case ${1:-} in
        '') ;;
        --clean) clean=yes ;;
        *) usage "down takes --clean only" ;;
    esac
    list_names
    refresh_pids
    for name in $(server_names); do is_running "$(pid_file "$name")" && files+=("$(pid_file "$name")"); done
    if is_managed; then stop_managed; elif ((${#files[@]})); then stop_all 20 "${files[@]}"; fi
    if ((${#files[@]})); then say "Down: ended ${#files[@]} servers."; else say "No server runs."; fi
    if [[ -n $clean ]]; then
        clean_up
    elif ((${#NAMES[@]})); then
        say "Their data is in $DIR; 'up' resumes it."
    fi
}

# print_process NAME WHERE
print_process() {
    local name=$1 state=down
    if is_paused "$(pid_file "$name")"; then state="paused, process $(own_pid "$(pid_file "$name")")"
    elif is_running "$(pid_file "$name")"; then state="runs, process $(own_pid "$(pid_file "$name")")"
    elif [[ $name == [SW]* ]] && ! has_identity "$name"; then state="down, its disk is empty"; fi
    printf '%-5s %-24s %-28s %s\n' "$name" "$2" "$state" "$DIR/$name"
}

cmd_status() {
    local name
    (($# == 0)) || usage "status takes nothing"
    list_names
    ((${#NAMES[@]})) || { say "No cluster in $DIR: '${0##*/} up' makes one." && return; }
    refresh_pids
    for name in $(server_names); do print_process "$name" "$(url "$name")"; done
    for name in $(role_names); do
        case $name in
            GFD) print_process GFD "http://$GFD" ;;
            RM) print_process RM "http://$RM" ;;
            *) print_process "$name" "http://$(lfd_address "$name")" ;;
        esac
    done
    say ""
    any_running || { say "No server runs: '${0##*/} up' resumes them." && return; }
    find_quorate
    "$BIN" cluster status --servers "$(running_urls)"
    ! is_running "$(pid_file RM)" || { say "" "RM" && "$BIN" rm explain; }
}

cmd_kill() {
    [[ ${2:-} == --stay ]] || (($# == 1)) || usage "kill takes a name, and --stay"
    list_names
    refresh_pids
    require_running "$1"
    local pid back="'${0##*/} start $1' brings it back"
    if is_managed && [[ $1 == [SW]* ]]; then
        if [[ ${2:-} == --stay ]]; then
            require_detector "$1" "$1 cannot be held down"
            tell "$1" hold || die "$(lfd_of "$1") does not answer, so $1 cannot be held down"
        else
            back="it is launched again by itself"
            local name missing=()
            for name in "$(lfd_of "$1")" GFD RM; do
                if is_gone "$(pid_file "$name")" || is_paused "$(pid_file "$name")"; then missing+=("$name"); fi
            done
            ((${#missing[@]} == 0)) || back+=", but only when ${missing[*]} can work again ('start', 'resume')"
        fi
    fi
    pid=$(own_pid "$(pid_file "$1")")
    kill_now "$(pid_file "$1")"
    say "Killed $1 (process $pid); $back."
}

cmd_pause() {
    list_names
    refresh_pids
    require_running "$1"
    signal STOP "$(pid_file "$1")" && say "Paused $1; '${0##*/} resume $1' lets it go on."
}

cmd_resume() {
    list_names
    refresh_pids
    require_running "$1"
    signal CONT "$(pid_file "$1")" && say "Resumed $1."
}

cmd_start() {
    require_name "$1"
    list_names
    refresh_pids
    ! is_running "$(pid_file "$1")" || die "$1 runs already, process $(own_pid "$(pid_file "$1")")"
    find_quorate
    if is_managed; then start_managed "$1" && return; fi
    start_server "$1"
    if ! wait_until 5 any_primary; then
        say "Started $1. The cluster has no primary: '${0##*/} status' shows which servers are down."
        return
    fi
    settle "$1"
    say "Started $1: it is a voter, and ready."
}

# start_managed NAME: a detector, the manager, or a server through its detector.
start_managed() {
    if [[ $1 != [SW]* ]]; then
        start_role "$1"
        say "Started $1."
        return
    fi
    if is_gone "$(pid_file "$(lfd_of "$1")")"; then start_lfd "$1"; else require_server_ports "$1"; fi
    wait_until 5 tell "$1" launch || die "$(lfd_of "$1") does not answer; its log is $DIR/$(lfd_of "$1")/log"
    if ! wait_until 5 any_primary; then
        say "Started $1. The cluster has no primary: '${0##*/} status' shows which servers are down."
        return
    fi
    wait_back "$1"
    say "Started $1: it is ready, and the cluster has settled."
}

cmd_wipe() {
    require_name "$1"
    [[ $1 == [SW]* ]] || usage "wipe takes a server's name: $1 has no data"
    list_names
    refresh_pids
    if is_managed && ! is_gone "$(pid_file "$(lfd_of "$1")")"; then
        require_detector "$1" "it would launch $1 again"
        tell "$1" hold || die "$(lfd_of "$1") does not answer: it would launch $1 again"
    fi
    kill_now "$(pid_file "$1")"
    rm -rf "${DIR:?}/$1/data"
    say "Wiped $1; '${0##*/} start $1' joins it again, under a new node id."
    ! any_running || wait_until 3 any_primary || warn "The others have no majority without $1, and a new $1 cannot join before they have:" \
        "'${0##*/} status' shows which are down. Where a majority's data is gone, so is the cluster: 'down --clean'"
}

cmd_logs() {
    require_name "$1"
    local log=$DIR/$1/log
    # A server writes where its detector does.
    if is_managed && [[ $1 == [SW]* ]]; then log=$DIR/$(lfd_of "$1")/log; fi
    [[ -f $log ]] || die "there is no log of $1 in $DIR"
    if [[ -t 1 ]]; then tail -n 100 -F "$log"; else cat "$log"; fi
}

# one_name COMMAND NAME: refuses all but one name.
one_name() { (($# == 2)) || usage "$1 takes one name, for example '$1 S1'"; }

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

main() {
    local command=${1:-}
    shift || true
    [[ -r /proc/self/stat ]] || die "this script needs Linux (/proc)"
    case $command in
        up | down | status) "cmd_$command" "$@" ;;
        kill) (($#)) || usage "kill takes a name" && cmd_kill "$@" ;;
        pause | resume | start | wipe | logs) one_name "$command" "$@" && "cmd_$command" "$@" ;;
        demo) demo "$@" ;;
        help | --help | -h) help ;;
        '') help >&2 && exit 2 ;;
        *) usage "unknown command '$command'" ;;
    esac
}

main "$@"
