#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that building (and, with --tests, testing) Sluice needs.
# Does nothing when all are there. Needs root, or sudo.
set -euo pipefail

with_tests=0
[ "${1:-}" = "--tests" ] && with_tests=1

packages=(build-essential cmake ninja-build pkg-config nlohmann-json3-dev libspdlog-dev
          prometheus-cpp-dev libtomlplusplus-dev libcli11-dev libpcre2-dev libutf8proc-dev
          libsystemd-dev libxxhash-dev liburing-dev)
if [ "$with_tests" = 1 ]; then
  packages+=(catch2 python3 python3-venv prometheus systemd git curl)
fi

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'; }

# Boost 1.81 or newer: Debian 12 names it libboost1.81-dev, later releases have it as libboost-dev.
boost_ok() {
  local header=/usr/include/boost/version.hpp
  [ -r "$header" ] && [ "$(awk '/#define BOOST_VERSION /{print $3}' "$header")" -ge 108100 ]
}

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
need_boost=0
boost_ok || need_boost=1
if [ "${#missing[@]}" = 0 ] && [ "$need_boost" = 0 ]; then
  exit 0
fi

sudo=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || {
    echo "install_packages.sh: these packages are missing and this is neither root nor a machine with sudo: ${missing[*]}" >&2
    exit 1
  }
  sudo=(sudo)
fi
command -v apt-get >/dev/null || {
  echo "install_packages.sh: apt-get not found; install these by hand: ${missing[*]} and Boost 1.81 or newer" >&2
  exit 1
}

"${sudo[@]}" apt-get update -qq
if [ "$need_boost" = 1 ]; then
  boost=
  for candidate in libboost1.81-dev libboost1.83-dev libboost-dev; do
    if apt-cache show "$candidate" >/dev/null 2>&1; then boost=$candidate; break; fi
  done
  [ -n "$boost" ] || { echo "install_packages.sh: no Boost 1.81 or newer among this system's packages" >&2; exit 1; }
  missing+=("$boost")
fi
echo "Installing: ${missing[*]}"
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
boost_ok || { echo "install_packages.sh: Boost 1.81 or newer is needed and this system's is older" >&2; exit 1; }
