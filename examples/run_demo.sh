#!/bin/bash
# SPDX-License-Identifier: MIT
# Builds the tinylm example and lets it answer questions over a long document. Installs the Debian packages it needs.
# Arguments are passed on, e.g. examples/run_demo.sh --tokens 8192; --help lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
. cmake/debian.sh
need_packages "${library_packages[@]}" "${train_packages[@]}" "${example_packages[@]}"

build=build/demo
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "building in $build"
if ! { cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFLASHMEMORY_TESTS=OFF -DFLASHMEMORY_INSTALL=OFF &&
  cmake --build $build --target tinylm; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
$build/examples/tinylm/tinylm ask "$@"
