#!/usr/bin/env bash
# The exercise in active mode: any server serves. One is killed and recovers, is killed again, then a second one:
# the last one works.
# Exit: 0 all of it held, 1 not. Needs what cluster.sh needs, and its ports.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/scenario.sh
source scripts/lib/scenario.sh

step "1. The manager, the global detector, and the local ones, which launch three servers"
set_the_stage active

step "2. Three clients"
start_clients

step "3. S2 is killed"
refresh_pids
kill_now "$(pid_file S2)"
go_on 'the clients notice nothing'
comes_back S2

step "4. The recovered one is killed, and stays down"
lose S2
wait_until 30 voters_are S1 S3 W || die "the manager has not repaired it within 30 s"
go_on "the voters are S1 S3 W"

step "5. A second one is killed: S3"
lose S3
wait_until 30 voters_are S1 W || die "the manager has not repaired it within 30 s"
go_on "the last one works, S1, with the witness's vote"

step "6. Both come back"
for name in S2 S3; do tell "$name" launch || die "$(lfd_of "$name") does not answer"; done
wait_until 30 voters_are S1 S2 S3 || die "not all three vote again within 30 s"
go_on 'S1 S2 S3 vote again'

step "7. Was anything lost, or done twice?"
check_clients
check_replicas
the_end
