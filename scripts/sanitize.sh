#!/usr/bin/env bash
# Builds the unit tests under AddressSanitizer with UBSan, then under ThreadSanitizer, and runs them, whole.
#   scripts/sanitize.sh [asan|tsan]...      default: both
# Every report fails its test. Two cores take 20 to 40 minutes for each and 3 GB of disk; with ccache, a second time is
# a matter of minutes (asan 3, tsan 15). With SLUICE_SANITIZE_INTEGRATION set, the server is built, too, and those
# integration tests run that neither measure memory nor evaluate much text; scripts/test.sh must have made build/venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${SLUICE_SANITIZE_INTEGRATION:-}" ] && [ ! -x build/venv/bin/pytest ]; then
  echo "sanitize.sh: there is no build/venv; run scripts/test.sh first, or unset SLUICE_SANITIZE_INTEGRATION" >&2
  exit 1
fi
scripts/install_packages.sh --tests
presets=("$@")
[ "${#presets[@]}" -gt 0 ] || presets=(asan tsan)
launcher=()
! command -v ccache >/dev/null || launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
export ASAN_OPTIONS="detect_leaks=1:exitcode=99" UBSAN_OPTIONS="print_stacktrace=1"
export TSAN_OPTIONS="exitcode=66:second_deadlock_stack=1"

integration() {
  local reports="$PWD/build-$1/reports" status=0
  rm -rf "$reports" && mkdir "$reports"
  # A server's report is a file of its own, so that none is lost among what tests expect on stderr.
  ASAN_OPTIONS+=":quarantine_size_mb=16:log_path=$reports/report" UBSAN_OPTIONS+=":log_path=$reports/report" \
    TSAN_OPTIONS+=":log_path=$reports/report" SLUICE_BINARY="$PWD/build-$1/sluice" \
    build/venv/bin/pytest -q -p no:cacheprovider -k "not leave_nothing_behind" \
    tests/integration/test_{wire,openai_client,state_dir,prefix_cache,admin_memory,speculation,fairness,soak}.py || status=$?
  if compgen -G "$reports/*" >/dev/null; then
    cat "$reports"/*
    status=1
  fi
  return "$status"
}

for preset in "${presets[@]}"; do
  cmake --preset "$preset" -DSLUICE_TESTS=ON "${launcher[@]}" >/dev/null
  cmake --build "build-$preset" --target unit_tests
  ctest --test-dir "build-$preset" --output-on-failure -E '^(integration|layers)$'
  if [ -n "${SLUICE_SANITIZE_INTEGRATION:-}" ]; then
    cmake --build "build-$preset" --target sluice
    integration "$preset"
  fi
done
