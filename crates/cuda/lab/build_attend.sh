#!/bin/bash
# Compiles every attention kernel of variants.attend.txt, and says what each takes:
#   build_attend.sh COMPILER OUT [ARCH]
# COMPILER is a Python script: FILE --arch ARCH -DNAME=VALUE... -o CUBIN; it prints ptxas' log.
# Cubins are named FILE_NAMEVALUE_....cubin; the list itself goes with them, the lab reads it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
compiler=$1 out=$2 arch=${3:-sm_90a}
mkdir -p "$out"
cp "$here/../kernels/variants.attend.txt" "$out/"

one() {
    local file=$1; shift
    local name=$file flag
    for flag in "$@"; do name+=_${flag#-D}; done
    name=${name//=/}
    local log
    log=$(python3 "$compiler" "$here/../kernels/$file.cu" --arch "$arch" "$@" \
        -o "$out/$name.cubin" 2>&1) ||
        { echo "$name FAILED"; echo "$log"; return 1; }
    local spills
    spills=$(grep -cE '[1-9][0-9]* bytes (stack frame|spill)' <<<"$log" || true)
    local used
    used=$(grep -oE 'Used [0-9]+' <<<"$log" | grep -oE '[0-9]+' | tr '\n' ' ')
    echo "$name: registers ${used}spilling $spills"
}
export -f one
export here compiler out arch
awk -v arch="$arch" '$3 == "both" || $3 == arch { $2 = $3 = ""; print }' \
    "$out/variants.attend.txt" | sort -u |
    xargs -P 2 -I{} bash -c 'one {}' | sort >"$out/report.txt"
if grep -v 'spilling 0$' "$out/report.txt"; then exit 1; fi
echo "$(wc -l <"$out/report.txt") cubins without spills"
