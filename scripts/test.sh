#!/usr/bin/env bash
# Installs what tests need, builds everything and runs every test: unit tests, layer check, and integration
# tests with real clients against the real binary. Ends with ctest's summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/install_packages.sh --tests
if [ ! -x build/venv/bin/pytest ]; then
  python3 -m venv build/venv
  build/venv/bin/pip install --quiet --disable-pip-version-check -r tests/integration/requirements.txt
fi
cmake --preset release -DSLUICE_TESTS=ON -DSLUICE_INTEGRATION=ON
cmake --build build
ctest --test-dir build --output-on-failure
