# SPDX-License-Identifier: MIT
# Sourced by the scripts that run on a bare Debian 12: need_packages NAME... installs those that are missing.

need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "not root and no sudo; missing packages: ${missing[*]}" >&2; return 1; }
    root=(sudo)
  fi
  echo "installing ${missing[*]}"
  local log
  log=$(mktemp)
  # The lists of another machine's image may be old: update first.
  if ! { "${root[@]}" apt-get update -q &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

library_packages=(g++ cmake ninja-build libfmt-dev libhwy-dev nlohmann-json3-dev libxxhash-dev)
train_packages=(libcli11-dev libeigen3-dev libopenblas-pthread-dev)
example_packages=(libcli11-dev libopenblas-pthread-dev)
test_packages=(catch2 ccache git libbenchmark-dev libdlpack-dev pkg-config python3)
