#!/bin/bash
# SPDX-License-Identifier: MIT
# Lets the fuzzers of build/fuzz run and keeps what covers something new, for later runs to start from:
#   tests/fuzz/keep_corpus.sh SECONDS [NAME...]
# What is kept is little: inputs of a kilobyte at most, and no more of them than coverage needs.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?usage: tests/fuzz/keep_corpus.sh SECONDS [NAME...]}
shift
names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(basename -a -s .cpp tests/fuzz/fuzz_*.cpp | sed 's/^fuzz_//')
for name in "${names[@]}"; do
  program=build/fuzz/tests/fuzz/flashmemory_fuzz_$name
  corpus=tests/fuzz/corpus/$name
  found=$(mktemp -d) kept=$(mktemp -d)
  mkdir -p "$corpus"
  "$program" -max_total_time="$seconds" -max_len=1024 -artifact_prefix=build/fuzz/ "$found" "$corpus" >"$found.log" 2>&1 ||
    { tail -40 "$found.log"; exit 1; }
  # Inputs with names are documents of their own and stay whatever they cover.
  "$program" -merge=1 -max_len=1024 "$kept" "$corpus" "$found" >"$found.log" 2>&1
  find "$corpus" -regextype egrep -regex '.*/[0-9a-f]{40}' -delete
  cp -n "$kept"/* "$corpus"/
  echo "$name: $(find "$corpus" -type f | wc -l) inputs, $(du -sb "$corpus" | cut -f 1) bytes"
  rm -rf "$found" "$kept" "$found.log"
done
