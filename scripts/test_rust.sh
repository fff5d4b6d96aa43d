#!/usr/bin/env bash
# Runs Rust tests by name, natively: npm run test:rust -- PATTERN. Installs cargo-nextest first if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
logs=$root/.out/logs
mkdir -p "$logs"
source scripts/steps.sh
source scripts/toolchain.sh
need_nextest
exec cargo nextest run --workspace "$@"
