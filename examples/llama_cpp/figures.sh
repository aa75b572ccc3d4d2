#!/bin/bash
# SPDX-License-Identifier: MIT
# Every figure of docs/llama_cpp.md in one JSON file, from one run: figures.sh OUT [ROUNDS]. Fetches and builds as run.sh does.
# QUICK=1 takes short prompts: to see that it works.
set -euo pipefail
out=$(realpath -m "${1:?figures.sh OUT [ROUNDS]}") rounds=${2:-8}
cd "$(dirname "$0")/../.."
. cmake/debian.sh
. examples/llama_cpp/fetch.sh
fetch_and_build
threads=${THREADS:-$(nproc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
text=$cache/handbook.txt
if [ -n "${QUICK:-}" ]; then
  depth8=1000 depth32=2000 prompts=2 tokens=16 lengths=27,129 rounds=1
else
  depth8=7936 depth32=32000 prompts=20 tokens=256 lengths=27,64,129,540,1087,2048,4096
fi
shared=(--text "$text" --threads "$threads")

for model in "$smollm2" "$gemma"; do
  wide=$work/wide.gguf
  "$program" widen --model "$cache/$model" --out "$wide"
  "$program" check --model "$wide" "${shared[@]}" --prompts $prompts --tokens $tokens --lengths $lengths --json "$work/check-f32-$model.json"
  rm "$wide"
  "$program" check --model "$cache/$model" "${shared[@]}" --prompts $prompts --tokens $tokens --lengths $lengths --json "$work/check-$model.json"
done
bench() {  # NAME MODEL DEPTH BUDGET ENGINES OPTION...
  local name=$1 model=$2 depth=$3 budget=$4 engines=$5
  shift 5
  "$program" bench --model "$cache/$model" "${shared[@]}" --depth "$depth" --budget "$budget" --engines "$engines" \
    --rounds "$rounds" --json "$work/$name.json" "$@"
}
bench speed-8k "$smollm2" $depth8 0.135 llama.cpp,llama.cpp-nofa,full,lsa,quest,llama.cpp-nofa@64
bench speed-8k-q8_0 "$smollm2" $depth8 0.135 llama.cpp --cache q8_0
bench speed-32k "$gemma" $depth32 0.1 llama.cpp,llama.cpp-nofa,full,lsa,llama.cpp@512,llama.cpp-nofa@512
for engine in llama.cpp full lsa; do bench "memory-8k-$engine" "$smollm2" $depth8 0.135 $engine; done
bench memory-8k-lsa-file "$smollm2" $depth8 0.135 lsa --backing "$work/backing"
for task in 1 2 3; do
  "$program" chat --model "$cache/$smollm2" --document "$text" --tokens $((depth8 - 300)) --needles 8 --seed $task --answer 16 \
    --threads "$threads" --engine flashmemory --policy full >"$work/answers-full-$task.txt"
  "$program" chat --model "$cache/$smollm2" --document "$text" --tokens $((depth8 - 300)) --needles 8 --seed $task --answer 16 \
    --threads "$threads" --engine flashmemory --policy lsa --interval 16 >"$work/answers-lsa-$task.txt"
done
python3 - "$work" "$out" <<'P'
import glob, json, os, re, sys
report = {os.path.basename(p)[:-5]: json.load(open(p)) for p in sorted(glob.glob(sys.argv[1] + "/*.json"))}
for path in sorted(glob.glob(sys.argv[1] + "/answers-*.txt")):
    right, asked = map(int, re.search(r"(\d+) of (\d+) right", open(path).read()).groups())
    report[os.path.basename(path)[:-4]] = {"right": right, "asked": asked}
text = json.dumps(report, indent=1)
open(sys.argv[2], "w").write(text + "\n")
print(text)
P
