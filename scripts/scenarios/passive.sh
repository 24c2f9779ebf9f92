#!/usr/bin/env bash
# The exercise in passive mode: the primary alone serves. It is killed, and the clients find the new one; the old one comes
# back as a backup and is killed again, then the second backup: the last one works.
# Exit: 0 all of it held, 1 not. Needs what cluster.sh needs, and its ports.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/scenario.sh
source scripts/lib/scenario.sh

step "1. The manager, the global detector, and the local ones, which launch three servers"
set_the_stage passive
[[ $(cluster_field mode) == passive ]] || die "the mode is $(cluster_field mode)"

step "2. Three clients"
start_clients

first=$(primary)
step "3. The primary, $first, is killed"
lose "$first"
wait_until 20 other_primary "$first" || die "no other server has become the primary"
second=$(primary)
go_on "the clients have found the new primary, $second"

step "4. $first comes back, as a backup"
tell "$first" launch || die "$(lfd_of "$first") does not answer"
comes_back "$first"
[[ $(primary) == "$second" ]] || die "the primary is $(primary) now"
status=$(curl -s -o /dev/null -w '%{http_code}' --noproxy '*' "$(url "$first")/v1/counter/get")
[[ $status == 421 ]] || die "$first answers a client with $status, not with 421 and the primary's address"
ok "$first sends its clients to $second (421)"

step "5. $first is killed again, and stays down"
lose "$first"
for third in S1 S2 S3; do [[ $third == "$first" || $third == "$second" ]] || break; done
mapfile -t left < <(printf '%s\n' "$second" "$third" | sort)
wait_until 30 voters_are "${left[@]}" W || die "the manager has not repaired it within 30 s"
go_on "the voters are ${left[*]} W"

step "6. The second backup, $third, is killed"
lose "$third"
wait_until 30 voters_are "$second" W || die "the manager has not repaired it within 30 s"
go_on "the last one works, $second, with the witness's vote"

step "7. Both come back"
for name in "$first" "$third"; do tell "$name" launch || die "$(lfd_of "$name") does not answer"; done
wait_until 30 voters_are S1 S2 S3 || die "not all three vote again within 30 s"
go_on 'S1 S2 S3 vote again'

step "8. Was anything lost, or done twice?"
check_clients
check_replicas
the_end
