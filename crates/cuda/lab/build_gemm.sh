#!/bin/bash
# build_gemm.sh COMPILER OUT: compiles the lab's variants of the products into OUT/NAME.cubin.
# COMPILER is a script: COMPILER FILE --arch ARCH -D... -o CUBIN. Fails if any variant spills.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
compiler=$(realpath "$1") out=$2
mkdir -p "$out"
python3 "$here/gemm_variants.py" --build > "$out/list"
one() {
    read -r name file arch defs <<< "$1"
    report=$(cd "$3/../kernels" && nice python3 "$2" "$file" --arch "$arch" $defs \
        -o "$4/$name.cubin" 2>&1) || { echo "$name: $report"; exit 255; }
    echo "$report" > "$4/$name.log"
    if echo "$report" | grep "bytes stack frame" | grep -qv " 0 bytes stack frame, 0 bytes spill"
    then
        echo "$name spills"
        exit 255
    fi
}
export -f one
xargs -P "${JOBS:-2}" -d '\n' -I{} bash -c 'one "$@"' _ {} "$compiler" "$here" \
    "$(cd "$out" && pwd)" < "$out/list"
echo "$(wc -l < "$out/list") variants, no spills"
