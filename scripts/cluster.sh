#!/usr/bin/env bash
# A Quorate cluster on this machine.
#
#   up [N] [--bare]      start N servers (default: those there are, or 3), as voters; resumes what is there
#   down [--clean]       end them all; the data stays, unless --clean
#   status               what runs, and the cluster's own view
#   kill NAME [--stay]   SIGKILL; it stays down until 'start'
#   pause NAME           SIGSTOP; 'resume NAME' lets it go on
#   start NAME           start it again; with an empty disk it joins, in place of its old node id
#   wipe NAME            kill it and delete its data; it stays down until 'start'
#   logs NAME            its log; on a terminal: follow it
#   demo                 a cluster, work, a killed primary: is anything lost or done twice?
#
# NAME is S1, S2, …: server Sn listens on 127.0.0.1:800n, for its peers on 900n. There are servers only
# (--bare), no detectors yet: nothing restarts by itself.
#
# State is under target/cluster/, or QUORATE_DIR:  S1/data  its disk   S1/log  its log   S1/pid  its process
# QUORATE_BIN names a binary to use as it is; otherwise 'up' and 'demo' have cargo build one.
# Exit: 0 done, 1 failed, 2 usage. Needs Linux, bash, coreutils, curl, and cargo to build.
set -euo pipefail

# shellcheck source=scripts/lib/process.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/process.sh"
# shellcheck source=scripts/lib/servers.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/servers.sh"
# shellcheck source=scripts/lib/demo.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/demo.sh"

DIR=${QUORATE_DIR:-$TARGET/cluster}
# The servers' environment is read by `quorate` as well: what is meant for this script stays here.
export -n QUORATE_DIR QUORATE_BIN 2>/dev/null || true

cmd_up() {
    local count=''
    while (($#)); do
        case $1 in
            --bare) ;;
            [1-9]) [[ -z $count ]] || usage "up takes one number" && count=$1 ;;
            *) usage "up takes a number of servers, 1 to 9, and --bare; not '$1'" ;;
        esac
        shift
    done
    build_quorate
    bring_up "${count:-0}"
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
    for name in "${NAMES[@]}"; do is_running "$(pid_file "$name")" && files+=("$(pid_file "$name")"); done
    if ((${#files[@]})); then
        stop_all 20 "${files[@]}"
        say "Down: ended ${#files[@]} servers."
    else
        say "No server runs."
    fi
    if [[ -n $clean ]]; then
        clean_up
    elif ((${#NAMES[@]})); then
        say "Their data is in $DIR; 'up' resumes it."
    fi
}

cmd_status() {
    local name state
    (($# == 0)) || usage "status takes nothing"
    list_names
    ((${#NAMES[@]})) || { say "No cluster in $DIR: '${0##*/} up' makes one." && return; }
    for name in "${NAMES[@]}"; do
        if is_paused "$(pid_file "$name")"; then state="paused, process $(own_pid "$(pid_file "$name")")"
        elif is_running "$(pid_file "$name")"; then state="runs, process $(own_pid "$(pid_file "$name")")"
        elif has_identity "$name"; then state="down"
        else state="down, its disk is empty"; fi
        printf '%-4s %-24s %-28s %s\n' "$name" "$(url "$name")" "$state" "$DIR/$name"
    done
    say ""
    any_running || { say "No server runs: '${0##*/} up' resumes them." && return; }
    find_quorate
    "$BIN" cluster status --servers "$(running_urls)"
}

cmd_kill() {
    [[ ${2:-} == --stay ]] || (($# == 1)) || usage "kill takes a name, and --stay"
    require_running "$1"
    local pid
    pid=$(own_pid "$(pid_file "$1")")
    kill_now "$(pid_file "$1")"
    say "Killed $1 (process $pid); '${0##*/} start $1' brings it back."
}

cmd_pause() {
    require_running "$1"
    signal STOP "$(pid_file "$1")" && say "Paused $1; '${0##*/} resume $1' lets it go on."
}

cmd_resume() {
    require_running "$1"
    signal CONT "$(pid_file "$1")" && say "Resumed $1."
}

cmd_start() {
    require_name "$1"
    [[ -d $DIR/$1 ]] || die "there is no $1 in $DIR: '${0##*/} up N' makes a cluster of N servers, or adds to one"
    ! is_running "$(pid_file "$1")" || die "$1 runs already, process $(own_pid "$(pid_file "$1")")"
    find_quorate
    list_names
    start_server "$1"
    if ! wait_until 5 any_primary; then
        say "Started $1. The cluster has no primary: '${0##*/} status' shows which servers are down."
        return
    fi
    settle "$1"
    say "Started $1: it is a voter, and ready."
}

cmd_wipe() {
    require_name "$1"
    [[ -d $DIR/$1 ]] || die "there is no $1 in $DIR"
    kill_now "$(pid_file "$1")"
    rm -rf "${DIR:?}/$1/data"
    say "Wiped $1; '${0##*/} start $1' joins it again, under a new node id."
}

cmd_logs() {
    require_name "$1"
    [[ -f $DIR/$1/log ]] || die "there is no log of $1 in $DIR"
    if [[ -t 1 ]]; then tail -n 100 -F "$DIR/$1/log"; else cat "$DIR/$1/log"; fi
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
