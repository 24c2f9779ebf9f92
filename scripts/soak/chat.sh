#!/usr/bin/env bash
# A crowd in the chat: 100 clients say 1,000 messages each (or CLIENTSxMESSAGES, the first argument), while the primary is killed
# (-9) and started again, over and over. Each client is shown every message once, all in one order; replicas end alike.
# Exit: 0 all of it held, otherwise not. Needs cargo; takes some minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

QUORATE_CROWD=${1:-100x1000} cargo test --release --locked --test chat a_crowd -- --nocapture
