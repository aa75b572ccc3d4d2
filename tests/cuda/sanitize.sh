#!/bin/bash
# SPDX-License-Identifier: MIT
# The GPU tests under compute-sanitizer, as far as they end in reasonable time under it. docs/cuda.md, section Sanitizers,
# says what that covers and what it leaves out.
#   tests/cuda/sanitize.sh BUILD_DIR [JOBS]
# Runs JOBS (all cores) at a time; takes a minute on an H100 with 16 cores. One line for each tool, program and filter; fails
# if a tool reports anything or a test fails. "known" are races that section Sanitizers explains; they are shown and do not
# fail. Logs are left in BUILD_DIR/sanitizer. Build with -DCMAKE_CUDA_FLAGS=-lineinfo: known races are told by their place.
set -uo pipefail
build=$(cd "${1:?which build directory?}" && pwd) || exit 2
jobs=${2:-$(nproc)}
tool=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$tool" ] || { echo "compute-sanitizer is not there"; exit 2; }
logs=$build/sanitizer
rm -rf "$logs" && mkdir -p "$logs" || exit 2
export FLASHMEMORY_REDUCED_TESTS=1

# run NUMBER TOOL PROGRAM FILTER [PATTERN of known races]
run() {
  local log=$logs/$1.log start=$SECONDS options=() code verdict=ok
  # As many workers as it likes for each of many runs is more than there are cores.
  [ "$2" = racecheck ] && options=(--racecheck-num-workers 2)
  timeout -s INT -k 5 "${SANITIZE_LIMIT:-200}" "$tool" --tool "$2" "${options[@]}" --error-exitcode 9 \
    "$build/tests/cuda/flashmemory_cuda_$3" "$4" </dev/null >"$log" 2>&1
  code=$?
  if [ $code -ne 0 ]; then
    verdict=FAIL
    # Only where there is nothing else, and no test failed.
    [ -n "$5" ] && grep -aq '^All tests passed' "$log" && grep -aq 'Race reported' "$log" &&
      ! grep -a 'Race reported' "$log" | grep -qvE "$5" && verdict=known
    [ $verdict = FAIL ] && touch "$logs/failed"
  fi
  printf '%-5s %-9s %-13s %s: %s (%d s, %s)\n' $verdict "$2" "$3" "$4" \
    "$(grep -aE '(ERROR|RACECHECK) SUMMARY' "$log" | head -n 1 | sed 's/.*SUMMARY: //')" $((SECONDS - start)) "$1.log"
}

# Long ones first.
number=0
while IFS='|' read -r check program filter known; do
  number=$((number + 1))
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  run "$number" "$check" "$program" "$filter" "$known" &
done <<'RUNS'
racecheck|score|score() leaves out*,a captured score*|outputs\.cuh
initcheck|store|after any calls*,a copy to the device that is refused*,a write-through that is refused*,slots of one block*
memcheck|store|~sixty-four*
memcheck|step|the step of docs*,a decode step leaves*,a fork*,keys that NaN*
initcheck|step|the step of docs*,a decode step leaves*,a fork*,keys that NaN*
racecheck|attend|a single pair*
racecheck|store|after any calls*
memcheck|attend|a captured call*,CUDA attention survives*,a single pair*
initcheck|attend|a captured call*,CUDA attention survives*,a single pair*
memcheck|v4|V4 attention with sinks*,a captured V4*
initcheck|v4|V4 attention with sinks*,a captured V4*
memcheck|score|score() takes*,score() leaves*,score() compacts*,a captured*,select_above*
initcheck|score|score() takes*,score() leaves*,score() compacts*,a captured*,select_above*
racecheck|v4|a captured V4*|deepseek_v4::
racecheck|score|select_top_k() does not mind*,select_above()*,score() propagates*
racecheck|step|keys that NaN*
memcheck|query_encoder|CUDA queries give*
initcheck|query_encoder|CUDA queries give*
racecheck|query_encoder|CUDA queries give*
RUNS
wait
[ ! -e "$logs/failed" ]
