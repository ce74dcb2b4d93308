#!/usr/bin/env bash
# Builds and runs the tests under AddressSanitizer with UBSan, then under ThreadSanitizer.
#   scripts/sanitize.sh [asan|tsan]...      default: both
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/install_packages.sh --tests
for preset in "${@:-asan tsan}"; do
  for name in $preset; do
    cmake --preset "$name" >/dev/null
    cmake --build "build-$name"
    ctest --test-dir "build-$name" --output-on-failure
  done
done
