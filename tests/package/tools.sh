#!/bin/bash
# SPDX-License-Identifier: MIT
# Installs what the package tests take from PyPI into build/tools: Conan, and the headers of the newest fmt.
set -euo pipefail
cd "$(dirname "$0")/../.."
. cmake/debian.sh
need_packages python3-venv
tools=build/tools
conan=2.34.0 fmt=12.2.0
[ -x $tools/bin/python ] || python3 -m venv $tools
$tools/bin/python - $conan <<'P' || $tools/bin/pip install -q --disable-pip-version-check "conan==$conan"
import importlib.metadata, sys
try:
    sys.exit(importlib.metadata.version("conan") != sys.argv[1])
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
P
if [ ! -f $tools/fmt-$fmt/include/fmt/ranges.h ]; then
  $tools/bin/pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d $tools/wheels "cmeel-fmt==$fmt"
  rm -rf $tools/fmt-$fmt $tools/unpacked
  $tools/bin/python -m zipfile -e $tools/wheels/cmeel_fmt-$fmt-*.whl $tools/unpacked
  mkdir -p $tools/fmt-$fmt
  mv "$(find $tools/unpacked -type d -path '*/include' | head -n 1)" $tools/fmt-$fmt/include
  rm -rf $tools/unpacked
fi
echo "conan $conan, fmt $fmt in $tools"
