# shellcheck shell=bash
# Messages, the built binary, processes of our own, ports and polling. Sourced by the scripts above it, not run.
#
# A pid file holds "PID START", START being the process' start time in clock ticks (field 22 of /proc/PID/stat).
# Pids are reused: only a process with the same start time is ours, and nothing else is ever signalled.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# shellcheck disable=SC2034 # the scripts that source this one use them
if [[ -t 1 ]]; then BOLD=$'\e[1m' GREEN=$'\e[32m' PLAIN=$'\e[0m'; else BOLD='' GREEN='' PLAIN=''; fi
if [[ -t 2 ]]; then RED=$'\e[31m' END=$'\e[0m'; else RED='' END=''; fi

# Each argument is a line.
say() { printf '%s\n' "$@"; }
warn() { printf '%s%s%s\n' "$RED" "$*" "$END" >&2; }
die() {
    warn "${0##*/}: $*"
    exit 1
}
usage() {
    warn "${0##*/}: $1"
    say "see '${0##*/} --help'" >&2
    exit 2
}

now_ms() { date +%s%3N; }

# wait_until SECONDS COMMAND…: polls until the command succeeds; fails when the time is over.
wait_until() {
    local end=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        (($(now_ms) < end)) || return 1
        sleep 0.1
    done
}

# The binary: QUORATE_BIN as it is, or what cargo builds. Sets BIN.
build_quorate() {
    BIN=${QUORATE_BIN:-$TARGET/release/quorate}
    if [[ -n ${QUORATE_BIN:-} ]]; then
        [[ -x $BIN ]] || die "QUORATE_BIN=$BIN is not an executable file"
    elif command -v cargo >/dev/null; then
        [[ -x $BIN ]] || say "Building $BIN; the first time takes a few minutes." >&2
        cargo build --release --locked --quiet --manifest-path "$ROOT/Cargo.toml" --bin quorate >&2 ||
            die "cargo could not build quorate; its message is above"
    elif [[ -x $BIN ]]; then
        warn "cargo is not on the PATH: using $BIN as it is"
    else
        die "cargo is not on the PATH and $BIN is not built: install Rust (https://rustup.rs)," \
            "or name a binary with QUORATE_BIN=PATH"
    fi
}

# Sets BIN to the binary that is there, without building.
find_quorate() {
    BIN=${QUORATE_BIN:-$TARGET/release/quorate}
    [[ -x $BIN ]] || build_quorate
}

# process_stat PID: prints "STATE START"; fails when there is no such process.
process_stat() {
    local line fields
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name is in brackets and may hold anything; the fields after it are simple.
    read -ra fields <<<"${line##*) }"
    say "${fields[0]} ${fields[19]}"
}

# own_pid PIDFILE: prints the pid if the process that we started is still there.
own_pid() {
    local pid start state now tasks
    [[ -f $1 ]] && read -r pid start <"$1" || return 1
    read -r state now < <(process_stat "$pid") || return 1
    [[ $state != X && $now == "$start" ]] || return 1
    # While other threads of a killed process end, it has its ports still.
    tasks=("/proc/$pid/task/"*)
    [[ $state != Z ]] || ((${#tasks[@]} > 1)) || return 1
    say "$pid"
}
is_running() { own_pid "$1" >/dev/null; }
is_gone() { ! is_running "$1"; }

# is_paused PIDFILE: ours, and stopped by SIGSTOP.
is_paused() {
    local pid state
    pid=$(own_pid "$1") && read -r state _ < <(process_stat "$pid") && [[ $state == T ]]
}

# launch PIDFILE LOGFILE COMMAND…: starts it in the background, in a process group of its own so that
# Ctrl-C at the terminal does not reach it.
launch() {
    local pidfile=$1 log=$2 pid state start
    shift 2
    set -m
    nohup "$@" </dev/null >>"$log" 2>&1 &
    pid=$!
    set +m
    # Without this bash would report its end on our terminal.
    disown "$pid"
    read -r state start < <(process_stat "$pid") || true
    say "$pid ${start:-0}" >"$pidfile"
    [[ ${state:-Z} != [ZX] ]] || die "$1 ended at once; its log is $log"
}

# signal SIGNAL PIDFILE: fails when our process is not there.
signal() {
    local pid
    pid=$(own_pid "$2") && kill -s "$1" "$pid" 2>/dev/null
}

# kill_now PIDFILE: SIGKILL, and waits for the end.
kill_now() {
    signal KILL "$1" || true
    wait_until 10 is_gone "$1" || die "process $(own_pid "$1") does not end after SIGKILL: see ps for its state"
    rm -f "$1"
}

# stop_all SECONDS PIDFILE…: SIGTERM to all, SIGKILL to what is left after the time.
stop_all() {
    local seconds=$1 file
    shift
    # A paused process takes its SIGTERM only when it is continued.
    for file; do ! signal TERM "$file" || signal CONT "$file" || true; done
    wait_until "$seconds" all_gone "$@" || true
    for file; do
        if is_running "$file"; then
            warn "process $(own_pid "$file") ($file) did not end within $seconds s of SIGTERM: killing it"
        fi
        kill_now "$file"
    done
}
all_gone() {
    local file
    for file; do is_gone "$file" || return 1; done
}

# is_free PORT: nobody listens on 127.0.0.1:PORT. Trying is much faster than reading the table of sockets.
is_free() {
    local status=0
    timeout 2 "$BASH" -c ": </dev/tcp/127.0.0.1/$1" 2>/dev/null || status=$?
    ((status == 1))
}

# listener_inode PORT: prints the inode of the TCP socket that listens there.
listener_inode() {
    local file hex lines line fields
    printf -v hex '%04X' "$1"
    for file in /proc/net/tcp /proc/net/tcp6; do
        mapfile -t lines < <(cat "$file" 2>/dev/null)
        for line in "${lines[@]}"; do
            # 0A is the state LISTEN; the fields are number, local, remote, state, …, inode the tenth.
            [[ $line == *":$hex "*" 0A "* ]] || continue
            read -ra fields <<<"$line"
            [[ ${fields[3]} == 0A && ${fields[1]##*:} == "$hex" ]] && say "${fields[9]}" && return
        done
    done
    return 1
}

# holder INODE: prints who has the socket open, as far as we may see.
holder() {
    local link pid command
    for link in /proc/[0-9]*/fd/*; do
        [[ $(readlink "$link" 2>/dev/null) == "socket:[$1]" ]] || continue
        pid=${link#/proc/} pid=${pid%%/*}
        command=$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) || true
        say "process $pid (${command% })"
        return
    done
    say "a process of another user (as root, 'ss -ltnp' names it)"
}

# require_free PORT WHAT: refuses, and says who has it.
require_free() {
    local inode who remedy='stop that first'
    ! is_free "$1" || return 0
    inode=$(listener_inode "$1") || inode=unknown
    who=$(holder "$inode")
    [[ $who != *' server --name S'* ]] || remedy="'cluster.sh down' ends a cluster of this script's"
    die "port $1, for $2, is in use by $who: $remedy"
}

# http_get URL: the body of a 2xx answer, or failure.
http_get() { curl -fsS --noproxy '*' --max-time 2 "$1" 2>/dev/null; }

# json_field NAME: the value of the first "NAME" in the compact or pretty JSON on stdin, without quotes.
json_field() {
    local json name=$1 pattern
    json=$(tr -d ' \n')
    pattern="\"$name\":(\"([^\"]*)\"|\[([^]]*)\]|([^],}]+))"
    [[ $json =~ $pattern ]] || return 1
    say "${BASH_REMATCH[2]}${BASH_REMATCH[3]}${BASH_REMATCH[4]}"
}
