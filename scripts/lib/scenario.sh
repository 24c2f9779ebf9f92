# shellcheck shell=bash
# The scenarios' three clients, each of which sends text and count to a register of its own and goes on when the reply has
# come; and the proof that each of their texts was answered once, in order. Sourced by scripts/scenarios/, not run.

# shellcheck source=scripts/lib/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

(($# == 0)) || {
    [[ $1 == -h || $1 == --help ]] || usage "a scenario takes nothing"
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"
    exit
}

CLIENTS=(C1 C2 C3)

lines_of() { { cat "$DIR/$1.out" 2>/dev/null || true; } | wc -l; }

start_clients() {
    local client
    for client in "${CLIENTS[@]}"; do
        # Not by `ask`: the signal that ends it is for the process itself.
        "$BIN" client --servers "$SERVERS" --timeout 15s loop --every 100ms --text "hello_${client}_" --name "$client" \
            >"$DIR/$client.out" 2>"$DIR/$client.err" &
        BACKGROUND+=($!)
    done
    go_on 'the clients work'
}

# all_beyond COUNT…: each client has got further than its count.
all_beyond() {
    local client
    for client in "${CLIENTS[@]}"; do
        (($(lines_of "$client") > $1)) || return 1
        shift
    done
}

# go_on WHAT: each client gets further answers.
go_on() {
    local client counts=()
    for client in "${CLIENTS[@]}"; do counts+=($(($(lines_of "$client") + 5))); done
    wait_until 30 all_beyond "${counts[@]}" || {
        cat "$DIR"/C?.err >&2
        die "not all clients get answers: C1 $(lines_of C1), C2 $(lines_of C2), C3 $(lines_of C3)"
    }
    ok "$1: answers so far C1 $(lines_of C1), C2 $(lines_of C2), C3 $(lines_of C3)"
}

# Ends the clients. Each has counted from 1 without a gap or a double, and its register holds its last text, or the one that
# was under way.
check_clients() {
    local client last value
    kill -s INT "${BACKGROUND[@]}" 2>/dev/null || true
    wait "${BACKGROUND[@]}" || die "a client has ended with an error: $(cat "$DIR"/C?.err)"
    BACKGROUND=()
    for client in "${CLIENTS[@]}"; do
        last=$(lines_of "$client")
        diff -q <(for ((n = 1; n <= last; n++)); do say "hello_${client}_$n"; done) "$DIR/$client.out" >/dev/null ||
            die "the answers to $client are not each of its texts once, in order: $DIR/$client.out"
        value=$(ask register get --name "$client") || die "the register $client cannot be read"
        [[ $value == "hello_${client}_$last" || $value == "hello_${client}_$((last + 1))" ]] ||
            die "the register $client holds $value, and its client has an answer to number $last"
        ok "$client: $last texts, each answered once, in order; its register holds $value"
    done
}

# other_primary NAME: some server knows a primary, and it is not NAME.
other_primary() {
    local now
    now=$(primary) && [[ $now != "$1" ]]
}

# comes_back NAME: a server that was killed is launched again by itself, and serves.
comes_back() {
    wait_back "$1"
    ok "$1 was launched again: it is ready, and the cluster has settled"
}
