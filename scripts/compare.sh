#!/usr/bin/env bash
# Quorate beside etcd: three members each, on this machine and this filesystem, one system after the other.
#
#   --secs S          measured seconds of each run, default 5 (warm-up comes before them)
#   --rounds R        rounds, default 3; each starts both systems afresh, the first to go alternates
#   --clients "N …"   closed-loop clients, default "1 16 64 256"
#   --etcd PATH       etcd, default: the one on the PATH
#   --dir DIR         where both keep their data, default target/compare; no tmpfs
#
# Put against add and linearizable get against linearizable get, on 1,000 uniform keys; one operation is one
# request. Both are durable: etcd runs with its defaults, fsync included. Adds in JSON batches of 1,000, over 64
# connections, have no counterpart, nor have orders of the exchange and messages of the chat, 64 clients each, which are
# put beside the adds of the same run. The table on stdout holds medians of the rounds; every run is kept in DIR/runs.tsv.
#
# etcd gets its better side: its load goes to the leader (through followers it was slower in most runs), and is
# measured both over one connection that all clients share and over eight; the table has the better median.
# CPU is user + system time of the load generator's whole process over its run, in cores.
#
# Needs what cluster.sh needs, awk, etcd, and protoc to build benches/etcd-load.
# Exit: 0 done, 1 failed, 2 usage.
set -euo pipefail

# shellcheck source=scripts/lib/process.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/process.sh"
# shellcheck source=scripts/lib/table.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/table.sh"

SECS=5 ROUNDS=3 CLIENTS='1 16 64 256' ETCD='' DIR=$TARGET/compare
WARMUP=1
QUORATE_URLS=http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003
ETCD_URLS=http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379
ETCD_FILES=()

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

read_flags() {
    while (($#)); do
        case $1 in
            -h | --help) help && exit 0 ;;
            --secs | --rounds | --clients | --etcd | --dir) (($# > 1)) || usage "$1 needs a value" ;;
            *) usage "unknown flag '$1'" ;;
        esac
        case $1 in
            --secs) SECS=$2 ;;
            --rounds) ROUNDS=$2 ;;
            --clients) CLIENTS=$2 ;;
            --etcd) ETCD=$2 ;;
            --dir) DIR=$2 ;;
        esac
        shift 2
    done
    [[ $SECS =~ ^[1-9][0-9]{0,3}$ ]] || usage "--secs takes whole seconds, not '$SECS'"
    [[ $ROUNDS =~ ^[1-9][0-9]?$ ]] || usage "--rounds takes 1 to 99, not '$ROUNDS'"
    [[ $CLIENTS =~ ^[1-9][0-9]{0,3}(\ [1-9][0-9]{0,3})*$ ]] || usage "--clients takes numbers, not '$CLIENTS'"
}

find_etcd() {
    ETCD=${ETCD:-$(command -v etcd || true)}
    [[ -n $ETCD ]] || die "etcd is not on the PATH: install it (Debian: apt-get install etcd-server;" \
        "otherwise https://github.com/etcd-io/etcd/releases), or give --etcd PATH"
    [[ -x $ETCD ]] || die "--etcd $ETCD is not an executable file"
}

build_load() {
    local crate=$ROOT/benches/etcd-load
    command -v cargo >/dev/null || die "cargo is not on the PATH: the load generator for etcd is built with it"
    [[ -x $TARGET/etcd-load/release/etcd-load ]] || [[ -n ${PROTOC:-} ]] || command -v protoc >/dev/null ||
        die "protoc is not on the PATH: benches/etcd-load is built with it (Debian: apt-get install protobuf-compiler;" \
            "otherwise https://github.com/protocolbuffers/protobuf/releases), or name it with PROTOC=PATH"
    say "Building benches/etcd-load" >&2
    CARGO_TARGET_DIR=$TARGET/etcd-load cargo build --release --locked --quiet --manifest-path "$crate/Cargo.toml" >&2 ||
        die "cargo could not build $crate; its message is above"
    LOAD=$TARGET/etcd-load/release/etcd-load
}

prepare_dir() {
    local type
    mkdir -p "$DIR"
    DIR=$(cd "$DIR" && pwd)
    type=$(stat -f -c %T "$DIR")
    case $type in
        tmpfs | ramfs) die "$DIR is on $type, where a flush costs nothing: name a directory on a disk with --dir" ;;
    esac
    [[ ! -e $DIR/quorate && ! -e $DIR/etcd ]] || clear_dir
    : >"$DIR/runs.tsv"
}

# A run that was cut off may have left servers of ours behind: the pid files know them.
clear_dir() {
    stop_quorate
    list_etcd
    stop_etcd
}

start_quorate() { QUORATE_DIR=$DIR/quorate QUORATE_BIN=$BIN "$ROOT/scripts/cluster.sh" up 3 --bare >&2; }
stop_quorate() { [[ ! -d $DIR/quorate ]] || QUORATE_DIR=$DIR/quorate "$ROOT/scripts/cluster.sh" down --clean >&2; }

list_etcd() {
    local number
    ETCD_FILES=()
    for number in 1 2 3; do [[ -f $DIR/etcd/e$number.pid ]] && ETCD_FILES+=("$DIR/etcd/e$number.pid"); done
    return 0
}

start_etcd() {
    local number at=127.0.0.1 peers=''
    for number in 1 2 3; do
        require_free "${number}2379" "etcd's clients"
        require_free "${number}2380" "etcd's peers"
        peers+=${peers:+,}e$number=http://$at:${number}2380
    done
    mkdir -p "$DIR/etcd"
    for number in 1 2 3; do
        launch "$DIR/etcd/e$number.pid" "$DIR/etcd/e$number.log" env -i "PATH=$PATH" "$ETCD" --name "e$number" \
            --data-dir "$DIR/etcd/e$number" --initial-cluster "$peers" --initial-cluster-state new \
            --listen-client-urls "http://$at:${number}2379" --advertise-client-urls "http://$at:${number}2379" \
            --listen-peer-urls "http://$at:${number}2380" --initial-advertise-peer-urls "http://$at:${number}2380"
        list_etcd
    done
    wait_until 30 etcd_is_healthy || die "etcd is not healthy after 30 s: see $DIR/etcd/*.log"
}
etcd_is_healthy() {
    local number
    for number in 1 2 3; do
        [[ $(http_get "http://127.0.0.1:${number}2379/health") == *true* ]] || return 1
    done
}

stop_etcd() {
    ((${#ETCD_FILES[@]} == 0)) || stop_all 10 "${ETCD_FILES[@]}"
    ETCD_FILES=()
    rm -rf "${DIR:?}/etcd"
}

clean_up() {
    local status=$?
    trap - EXIT INT TERM
    if ((status)) && [[ -d $DIR/etcd ]]; then tail -n 3 "$DIR"/etcd/*.log >&2 || true; fi
    stop_etcd
    stop_quorate
    exit "$status"
}

# measure SYSTEM OP CLIENTS VARIANT COMMAND…: runs the load and adds a line to runs.tsv:
# system, op, clients, variant, ops/s, p50, p99, errors, cores
measure() {
    local TIMEFORMAT='%R %U %S' json=$DIR/last.json spent line
    line="$1 $2 $3 $4"
    shift 4
    { time "$@" >"$json" 2>"$DIR/last.err"; } 2>"$DIR/last.time" || {
        cat "$DIR/last.err" >&2
        die "the load failed: $*"
    }
    spent=$(awk '{ printf "%.2f", ($2 + $3) / $1 }' "$DIR/last.time")
    for field in ops_per_sec p50_us p99_us errors; do
        line+=" $(json_field "$field" <"$json")" || die "no $field in what the load printed: $(cat "$json")"
    done
    say "$line $spent" | tr ' ' '\t' >>"$DIR/runs.tsv"
    say "  $line $spent" >&2
}

run_quorate() {
    local op clients
    start_quorate
    for op in add get; do
        for clients in $CLIENTS; do
            measure quorate "$op" "$clients" own "$BIN" bench --servers "$QUORATE_URLS" --clients "$clients" \
                --secs "$SECS" --op "$op" --json
        done
    done
    measure quorate batch 64 own "$BIN" bench --servers "$QUORATE_URLS" --clients 64 --secs "$SECS" --op add \
        --batch 1000 --json
    for op in order say; do
        measure quorate "$op" 64 own "$BIN" bench --servers "$QUORATE_URLS" --clients 64 --secs "$SECS" --op "$op" --json
    done
    stop_quorate
}

run_etcd() {
    local op clients conns
    start_etcd
    for op in put get; do
        for clients in $CLIENTS; do
            for conns in 1 8; do
                ((clients >= conns)) || continue
                measure etcd "$op" "$clients" "${conns}-conn" "$LOAD" --endpoints "$ETCD_URLS" --target leader \
                    --conns "$conns" --clients "$clients" --warmup "$WARMUP" --secs "$SECS" --op "$op" --keys 1000
            done
        done
    done
    stop_etcd
}

main() {
    local round systems system
    read_flags "$@"
    find_etcd
    prepare_dir
    build_quorate
    build_load
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    for ((round = 1; round <= ROUNDS; round++)); do
        if ((round % 2)); then systems='etcd quorate'; else systems='quorate etcd'; fi
        for system in $systems; do
            say "round $round of $ROUNDS, $system: operation, clients, variant, ops/s, p50 us, p99 us, errors, cores" >&2
            "run_$system"
        done
    done
    print_header
    print_table "$DIR/runs.tsv"
}

main "$@"
