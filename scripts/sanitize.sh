#!/usr/bin/env bash
# Builds and runs the tests under AddressSanitizer with UBSan, then under ThreadSanitizer.
#   scripts/sanitize.sh [asan|tsan]...      default: both
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/install_packages.sh --tests
presets=("$@")
[ "${#presets[@]}" -gt 0 ] || presets=(asan tsan)
for preset in "${presets[@]}"; do
  cmake --preset "$preset" >/dev/null
  cmake --build "build-$preset"
  ctest --test-dir "build-$preset" --output-on-failure
done
