#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Changes the library in one place at a time and reports which changes no test notices.

    tests/mutate.py [--count 50] [--seed 1] [--pieces store,select,attend,indexer,session] [--minutes 600]

Works on a copy of the checkout in build/mutants, which is configured once, so that a change rebuilds one file, the
library and the test programs of its piece. They run one after the other until one fails, crashes or does not end in
time. A change that does not compile is drawn anew. The last lines say how many were caught and name the others; some of
those change nothing that can be seen, which only a reader can tell.
"""
import argparse
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "mutants"
BUILD = TREE / "build" / "cpu"

# Quick ones first: most changes are caught by the first program.
TESTS = {
    "store": ["flashmemory_store_unit", "flashmemory_store_late", "flashmemory_store_fault",
              "flashmemory_selector_fault", "flashmemory_store_property"],
    "select": ["flashmemory_selector_fault", "flashmemory_policy_unit", "flashmemory_selector_unit"],
    "attend": ["flashmemory_attend_unit", "flashmemory_deepseek_v4_unit", "flashmemory_attend_property"],
    "indexer": ["flashmemory_query_unit", "flashmemory_indexer_unit", "flashmemory_controls_unit",
                "flashmemory_selector_unit"],
    "session": ["flashmemory_session_unit", "flashmemory_session_fault"],
}

SWAPS = [(" < ", " <= "), (" > ", " >= "), (" <= ", " < "), (" >= ", " > "), (" == ", " != "), (" != ", " == "),
         (" && ", " || "), (" || ", " && "), (" + 1", ""), (" - 1", ""), (" += ", " = "), (" -= ", " += "),
         ("std::min(", "std::max("), ("std::max(", "std::min("), ("return true;", "return false;"),
         ("return false;", "return true;"), ("++", "--"), ("continue;", "break;")]
STATEMENT = re.compile(r"^\s+(?:\+\+|--)?[\w.>\[\]()*-]+(?: [+-]?= [^=].*|\(.*\));$")
DECLARATION = re.compile(r"^\s+(?:const |constexpr |static |auto |using |return\b|std::|detail::|fault |status )")


def places(path):
    """All (line number, new line) of a file."""
    out = []
    for number, line in enumerate(path.read_text().split("\n")):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "*", "template", "using", "static_assert")):
            continue
        for old, new in SWAPS:
            for at in (m.start() for m in re.finditer(re.escape(old), code)):
                if old in ("++", "--") and "operator" in code:
                    continue
                out.append((number, line[:at] + new + line[at + len(old):]))
        if STATEMENT.match(code) and not DECLARATION.match(code):
            out.append((number, re.match(r"\s*", line).group() + ";"))
    return out


def run(command, limit):
    """Exit status, or None if it did not end in time."""
    with subprocess.Popen(command, cwd=BUILD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return None


def prepare(targets):
    shutil.rmtree(TREE / "src", ignore_errors=True)
    TREE.mkdir(parents=True, exist_ok=True)
    for name in ("CMakeLists.txt", "CMakePresets.json", "cmake", "include", "src", "tests", "examples", "docs",
                 "LICENSE", "README.md"):
        source, to = ROOT / name, TREE / name
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True)
        else:
            shutil.copy2(source, to)
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    subprocess.run(["cmake", "--preset", "cpu", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1 -DNDEBUG",
                    "-DFLASHMEMORY_TRAIN=OFF", "-DFLASHMEMORY_EXAMPLES=OFF", *launcher],
                   cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    known = subprocess.run(["ninja", "-t", "targets", "all"], cwd=BUILD, check=True, capture_output=True,
                           text=True).stdout
    programs = {}
    for target in targets:
        found = re.search(rf"^(tests/\S*/{target}): ", known, re.M)
        if found:
            programs[target] = found.group(1)
    subprocess.run(["ninja", *programs.values()], cwd=BUILD, check=True, stdout=subprocess.DEVNULL)
    # None may fail before anything has changed, and what each takes says when it does not end.
    limits = {}
    for target, program in programs.items():
        start = time.time()
        if run([program], 900) != 0:
            sys.exit(f"{target} fails on the unchanged library")
        limits[target] = 20 + 8 * (time.time() - start)
    return programs, limits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pieces", default=",".join(TESTS))
    parser.add_argument("--minutes", type=float, default=1e9, help="stops then, whatever --count says")
    options = parser.parse_args()
    pieces = options.pieces.split(",")
    programs, limits = prepare([t for p in pieces for t in TESTS[p]])
    end = time.time() + 60 * options.minutes
    draw = random.Random(options.seed)
    pools = {}
    for piece in pieces:
        files = [f for f in sorted((TREE / "src" / piece).rglob("*")) if f.suffix in (".cpp", ".hpp")]
        pools[piece] = [(f, *place) for f in files if f.suffix == ".cpp" for place in places(f)]
        draw.shuffle(pools[piece])
    caught, survived = 0, []
    while caught + len(survived) < options.count and time.time() < end:
        piece = pieces[(caught + len(survived)) % len(pieces)]
        path, number, new = pools[piece].pop()
        original = path.read_text()
        lines = original.split("\n")
        old = lines[number]
        lines[number] = new
        name = f"{path.relative_to(TREE)}:{number + 1}: {old.strip()}  ->  {new.strip()}"
        tests = [t for t in TESTS[piece] if t in programs]
        try:
            path.write_text("\n".join(lines))
            if run(["ninja", *(programs[t] for t in tests)], 900) != 0:
                continue  # does not compile
            by = next((t for t in tests if run([programs[t]], limits[t]) != 0), None)
        finally:
            path.write_text(original)
        if by:
            caught += 1
        else:
            survived.append(name)
        print(f"{'caught by ' + by if by else 'SURVIVED':<45} {name}", flush=True)
    total = caught + len(survived)
    print(f"{caught} of {total} caught ({100 * caught / max(total, 1):.0f} %), seed {options.seed}")
    for name in survived:
        print(f"survived: {name}")


if __name__ == "__main__":
    main()
