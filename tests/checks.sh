#!/bin/bash
# SPDX-License-Identifier: MIT
# What no compiler looks at: format, which files there are, and that the API reference is complete and fits the code.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
complain() {
  echo "$*"
  failed=1
}

allowed='CMakeLists.txt CMakePresets.json LICENSE README.md bench cmake cuda docs examples include src tests'
for entry in $(git ls-files | cut -d/ -f1 | sort -u); do
  case " $allowed " in *" $entry "*) continue ;; esac
  case $entry in .*) continue ;; esac
  complain "$entry: not among what the top folder holds"
done

mapfile -t code < <(git ls-files '*.hpp' '*.cpp' '*.cu' '*.cuh')
mapfile -t scripts < <(git ls-files '*.cmake' '*CMakeLists.txt' '*.sh' '*.py')
clang-format --dry-run -Werror "${code[@]}" || failed=1
for file in "${code[@]}" "${scripts[@]}"; do
  head -n 2 "$file" | grep -q 'SPDX-License-Identifier: MIT' || complain "$file: no SPDX line"
  LC_ALL=C grep -nP '[^\x00-\x7F]' "$file" && complain "$file: not ASCII"
done
for file in "${code[@]}"; do
  [ "$(wc -l <"$file")" -le 500 ] || complain "$file: more than 500 lines"
done

# The README shows the minimal example's own lines.
lines='/\[embed\]/ { inside = !inside; next } inside && !/^```/'
diff <(awk "$lines" examples/minimal/main.cpp | sed 's/^  //') <(awk "$lines" README.md) ||
  complain "README.md: differs from examples/minimal/main.cpp"

# docs/cuda.md shows a test's own lines.
step='/(\/\/|<!--) \[step\]/ { inside = !inside; next } inside && !/^```/'
diff <(awk "$step" tests/cuda/step_example.cpp | sed 's/^  //') <(awk "$step" docs/cuda.md) ||
  complain "docs/cuda.md: differs from tests/cuda/step_example.cpp"

# doxygen sees stale and misspelt names itself. Undocumented functions and types are ours to find: fields may speak for
# themselves, and what overrides or inherits a documented function is documented there. So are the members of a kernel's
# policies: their file says what each kind has.
mkdir -p build
doxygen docs/Doxyfile || failed=1
undocumented=$({ cat docs/Doxyfile; echo 'WARN_IF_UNDOCUMENTED=YES'; echo 'WARN_AS_ERROR=NO'; echo 'GENERATE_HTML=NO'
  echo 'GENERATE_XML=YES'; } | doxygen - 2>&1 | grep 'is not documented' |
  grep -vE '\((variable|macro definition|friend)\)|enumvalue|(override|final)? ?\(function\).*override' |
  grep -vE 'operator=|&&\) noexcept' |
  grep -vE '(cuh|-inl\.hpp):.*\((function|typedef)\) of struct' | sed "s#$PWD/##" | sort -u)
[ -z "$undocumented" ] || complain "$undocumented"
exit $failed
