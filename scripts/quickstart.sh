#!/usr/bin/env bash
# From a fresh Debian 12 or Ubuntu machine to a served model: installs packages, builds, and serves the demo
# model on 127.0.0.1:8080 in the foreground. Arguments are handed to `sluice serve`, for example:
#   scripts/quickstart.sh --port 9000 --model /path/to/model
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/install_packages.sh
if [ ! -f build/build.ninja ]; then
  cmake --preset release -DSLUICE_TESTS=OFF >build.log 2>&1 || { cat build.log; exit 1; }
  rm -f build.log
fi
echo "Building build/sluice ..."
cmake --build build --target sluice

arguments=("$@")
case " $* " in *" --model "*|*" --config "*) ;; *) arguments+=(--model deploy/demo-model) ;; esac

# The server replaces this shell, so signals reach it; the reader only adds a line to try after the ready line.
exec build/sluice serve "${arguments[@]}" > >(
  trap '' INT TERM
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
      "ready on "*)
        printf '\nTry it from another terminal:\n  curl %s/v1/chat/completions -H "Content-Type: application/json" -d '\''{"messages": [{"role": "user", "content": "Sort: 7 3 9 1"}], "max_tokens": 32}'\''\n\n' "${line#ready on }" ;;
    esac
  done)
