#!/bin/bash
# SPDX-License-Identifier: MIT
# A bare Debian 12 in a folder, in which docs/packaging.md's commands are run as they stand there. As root.
#   tests/package/chroot.sh              install what the page says, build, install, and take it in each way without a package manager
#   tests/package/chroot.sh --configure  install what the page says and configure
#   tests/package/chroot.sh --readme     all of the first, then README's two commands
set -euo pipefail
cd "$(dirname "$0")/../.."
. cmake/debian.sh
what=${1:---all}
case $what in --all | --configure | --readme) ;; *) sed -n '3,6p' "$0"; exit 2 ;; esac
need_packages debootstrap
root=$(mktemp -d)
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] *\)\?\([^ ]*\) bookworm main.*/\2/p' /etc/apt/sources.list.d/debian.sources \
  /etc/apt/sources.list 2>/dev/null | head -n 1) || true
mirror=${mirror:-http://deb.debian.org/debian}
debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 || { tail -20 "$root.log"; rm -f "$root.log"; exit 1; }
rm -f "$root.log"
cp /etc/resolv.conf "$root/etc/" 2>/dev/null || true
for file in /etc/apt/apt.conf.d/*; do  # a proxy that this machine needs; nothing else
  if grep -qi '^ *acquire' "$file" 2>/dev/null; then cp "$file" "$root/etc/apt/apt.conf.d/"; fi
done
mount -t proc proc "$root/proc"
# The checkout as git has it, and the page's engine.cpp.
mkdir "$root/flashmemory"
git ls-files -z | tar -c --null -T - | tar -x -C "$root/flashmemory"
cp tests/package/consumer/main.cpp "$root/flashmemory/engine.cpp"

# page HEADING: the commands of the first block below it. There is no sudo in a bare Debian, and no need.
page() {
  awk -v heading="$1" '$0 == heading { on = 1; next } on && /^```sh/ { inside = 1; next } inside && /^```/ { exit } inside' \
    docs/packaging.md | sed 's/^sudo //; s/apt-get install /apt-get install -qy /'
}
inside() {  # commands of a page, each of which must succeed
  local commands
  commands=$(cat)
  [ -n "$commands" ] || { echo "docs/packaging.md has no commands there"; exit 1; }
  echo "$commands" | sed 's/^/  + /'
  chroot "$root" /usr/bin/env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    bash -ec "cd /flashmemory; $commands" >"$root/log" 2>&1 || { tail -40 "$root/log"; exit 1; }
}

page '# Taking flashmemory in' | inside
page '## Install' | { [ "$what" = --configure ] && grep -v -e '--build' -e '--install' || cat; } | inside
[ "$what" = --configure ] && { echo "a bare Debian 12 configures it"; exit 0; }

inside <<'C'
mkdir -p consumer && cp tests/package/consumer/* consumer/
cmake -S consumer -B consumer/build -G Ninja -DCMAKE_PREFIX_PATH=/opt/flashmemory
cmake --build consumer/build && consumer/build/consumer
C
inside <<<"apt-get install -qy --no-install-recommends pkg-config"
page '## pkg-config' | grep -v '# shared' | inside
inside <<<"./engine"
page '## No build system' | inside
inside <<<"./engine"
[ "$what" = --readme ] && inside <<<"apt-get install -qy --no-install-recommends git && git init -q && git add -A && examples/run_demo.sh && tests/run.sh"
echo "a bare Debian 12 runs the page's commands"
