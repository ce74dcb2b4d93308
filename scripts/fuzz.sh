#!/usr/bin/env bash
# Builds the libFuzzer targets with clang and runs each for a while.
#   scripts/fuzz.sh [SECONDS_EACH]          default: 60
# Corpora stay in build-fuzz/corpus; an input that crashes is kept in build-fuzz/crashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
command -v clang++-14 >/dev/null || { echo "fuzz.sh: needs clang-14 and libclang-rt-14-dev" >&2; exit 1; }
cmake --preset fuzz >/dev/null
cmake --build build-fuzz --target fuzzers
mkdir -p build-fuzz/crashes
status=0
for target in build-fuzz/fuzz_*; do
  [ -x "$target" ] || continue
  name=$(basename "$target")
  mkdir -p "build-fuzz/corpus/$name"
  echo "== $name, ${seconds} s"
  "$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/crashes/$name-" "build-fuzz/corpus/$name" 2>&1 |
    grep -E "^(SUMMARY|==|stat::number_of_executed_units|stat::average_exec|artifact_prefix|Test unit)|ERROR" || true
  [ "${PIPESTATUS[0]}" = 0 ] || status=1
done
exit "$status"
