#!/usr/bin/env bash
# Lets the manager replace servers 100 times (or as often as the first argument says) while clients add, and records the run
# in docs/soak/replacements.md. Four servers, three of which vote: each time one of the voters is killed and kept down until
# the spare has its place, or killed and wiped, and then brought back. Exit: 0 nothing was lost, 1 otherwise.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/demo.sh
source scripts/lib/demo.sh

TOTAL=${1:-100}
RECORD=docs/soak/replacements.md

replaced() { grep -c 'done what="replace' "$DIR/RM/log" || true; }
replaced_beyond() { (($(replaced) > $1)); }
voters() { cluster_field voters | tr -d '"' | tr ',' ' '; }
node_ids() { grep -ho 'joined name=S[0-9]* node_id=[0-9]*' "$DIR"/LFD*/log | sed 's/.*=//' | sort -n; }

step "1. Four servers, three of which are to vote"
set_the_stage '' 4
"$BIN" cluster set target-size 3 --servers "$SERVERS" >/dev/null
three_vote() { [[ $(voters | wc -w) == 3 ]] && settled; }
wait_until 60 three_vote || die "not three voters: $(voters)"

step "2. $WORKERS workers, and $TOTAL replacements"
touch "$DIR/work"
for ((number = 1; number <= WORKERS; number++)); do
    work "$number" &
    BACKGROUND+=($!)
done
while (($(replaced) < TOTAL)); do
    before=$(replaced)
    read -ra list <<<"$(voters)"
    victim=${list[RANDOM % ${#list[@]}]}
    [[ $victim == S* ]] || continue
    lose "$victim"
    # Each third one loses its disk, too.
    ((before % 3)) || rm -rf "${DIR:?}/$victim/data"
    wait_until 60 replaced_beyond "$before" || die "$victim was not replaced within 60 s: $("$BIN" rm explain)"
    tell "$victim" launch || die "$(lfd_of "$victim") does not answer"
    wait_until 60 is_ready "$victim" || die "$victim is not ready after 60 s"
    wait_until 60 three_vote || die "not settled within 60 s: $("$BIN" rm explain)"
    ((before % 10 != 9)) || ok "$((before + 1)) replacements, $(count acked) adds"
done

step "3. Was anything lost, or done twice?"
rm "$DIR/work"
wait "${BACKGROUND[@]}"
BACKGROUND=()
check_counter 0
[[ -z $(node_ids | uniq -d) ]] || die "a node id was given out twice: $(node_ids | uniq -d)"
ok "$(node_ids | wc -l) node ids were given out, each once; $(grep -c 'WARN.*not done' "$DIR/RM/log" || true) changes were refused and decided anew"
mkdir -p docs/soak
if [[ ! -f $RECORD ]]; then
    say '# Automatic replacements: recorded runs' '' \
        'The manager replaces voters that were killed, a third of them wiped, while clients add; scripts/soak/replacements.sh' \
        'says how.' '' >"$RECORD"
fi
say "## $(date -u +%Y-%m-%d): $(replaced) replacements, nothing lost" "" \
    "- commit: \`$(git rev-parse --short=12 HEAD)\`" \
    "- command: \`scripts/soak/replacements.sh $TOTAL\`" \
    "- date: $(date -u +%Y-%m-%dT%H:%M:%SZ), $((($(now_ms) - BEGUN) / 1000)) s" \
    "- machine: $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)" \
    "- adds: $(count acked) acknowledged, each of them in the counter once; $(count unknown) unknown, $(count refused) refused" \
    "- node ids given out: $(node_ids | wc -l), each once" "" >>"$RECORD"
the_end
