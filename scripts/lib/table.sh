# shellcheck shell=bash
# What compare.sh prints: where it was measured, and one table. Sourced by compare.sh, not run.

print_header() {
    local commit cpu
    commit=$(git -C "$ROOT" rev-parse --short=12 HEAD 2>/dev/null || say unknown)
    [[ -z $(git -C "$ROOT" status --porcelain 2>/dev/null) ]] || commit+=", with uncommitted changes"
    cpu=$(sed -n 's/^model name[^:]*: //p;T;q' /proc/cpuinfo)
    say "Quorate (commit $commit) and $("$ETCD" --version | head -n 1), three members each, durable." \
        "Closed loop, 1,000 uniform keys; median of $ROUNDS round(s) of $SECS s, warm-up excluded." \
        "$(date -u +%Y-%m-%d); $(nproc) cores (${cpu:-unknown}), Linux $(uname -r)," \
        "$(df --output=fstype "$DIR" | tail -n 1) on $(df --output=source "$DIR" | tail -n 1)," \
        "load average at the end $(cut -d' ' -f1-3 /proc/loadavg)." ""
}

# print_table RUNS: medians, ratios and the load generators' CPU, as markdown.
print_table() {
    awk -F '\t' -v clients="$CLIENTS" '
        function median(list, count, parts) {
            count = split(list, parts, " ")
            sort_numbers(parts, count)
            return count % 2 ? parts[(count + 1) / 2] : (parts[count / 2] + parts[count / 2 + 1]) / 2
        }
        function sort_numbers(parts, count, i, j, kept) {
            for (i = 2; i <= count; i++) {
                kept = parts[i] + 0
                for (j = i - 1; j >= 1 && parts[j] + 0 > kept; j--) parts[j + 1] = parts[j]
                parts[j + 1] = kept
            }
        }
        function thousands(number, text, out) {
            text = sprintf("%d", number + 0.5)
            while (length(text) > 3) {
                out = "," substr(text, length(text) - 2) out
                text = substr(text, 1, length(text) - 3)
            }
            return text out
        }
        # better(CELL): the variant with the best median throughput.
        function better(cell, variants, count, i, best, rate, top) {
            count = split(seen[cell], variants, " ")
            for (i = 1; i <= count; i++) {
                rate = median(value[cell, variants[i], 5])
                if (best == "" || rate > top) { best = variants[i]; top = rate }
            }
            return best
        }
        function side(cell, variant) {
            return sprintf("%s | %s | %s | %.2f", thousands(median(value[cell, variant, 5])),
                thousands(median(value[cell, variant, 6])), thousands(median(value[cell, variant, 7])),
                median(value[cell, variant, 9]))
        }
        function row(title, etcd_op, op, number, theirs, ours, variant) {
            theirs = "etcd " etcd_op " " number
            ours = "quorate " op " " number
            variant = better(theirs)
            printf "| %s | %d | %s | %s | **%.2fx** |\n", title, number, side(theirs, variant), side(ours, "own"),
                median(value[ours, "own", 5]) / median(value[theirs, variant, 5])
        }
        function alone(title, op) {
            printf "| %s | 64 | – | – | – | – | %s | – |\n", title, side("quorate " op " 64", "own")
        }
        {
            cell = $1 " " $2 " " $3
            if (!((cell, $4) in known)) { known[cell, $4] = 1; seen[cell] = seen[cell] " " $4 }
            for (i = 5; i <= 9; i++) value[cell, $4, i] = value[cell, $4, i] " " $i
            errors[$1] += $8
        }
        END {
            print "| operation | clients | etcd ops/s | p50 us | p99 us | load, cores | Quorate ops/s | p50 us | p99 us | load, cores | ratio |"
            print "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
            count = split(clients, numbers, " ")
            for (n = 1; n <= count; n++) row("put / add", "put", "add", numbers[n])
            for (n = 1; n <= count; n++) row("linearizable get", "get", "get", numbers[n])
            alone("adds in batches of 1,000", "batch")
            alone("orders of the exchange", "order")
            alone("messages of the chat", "say")
            adds = median(value["quorate add 64", "own", 5])
            if (adds) printf "\nOf the adds at 64 clients: orders %.2fx, messages %.2fx.\n",
                median(value["quorate order 64", "own", 5]) / adds, median(value["quorate say 64", "own", 5]) / adds
            printf "\nFailed operations: etcd %d, Quorate %d.\n", errors["etcd"], errors["quorate"]
        }' "$1"
}
