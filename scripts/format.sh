#!/usr/bin/env bash
# Formats the C++ sources in place; with --check, fails when a file would change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tool=$(command -v clang-format-14 || command -v clang-format) || { echo "format.sh: needs clang-format" >&2; exit 1; }
mode=(-i)
[ "${1:-}" = "--check" ] && mode=(--dry-run --Werror)
git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs -r "$tool" "${mode[@]}"
