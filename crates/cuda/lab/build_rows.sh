#!/bin/bash
# Compiles what rows.py checks and times: build_rows.sh DIR NVRTC [ARCH], NVRTC being a program that
# compiles one file (FILE --arch ARCH -DNAME=VALUE ... -o CUBIN) and prints its resources.
set -euo pipefail
dir=$1 nvrtc=$2 arch=${3:-sm_90a}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
"$python" "$here/rows.py" emit "$dir"
while read -r name options; do
    # shellcheck disable=SC2086 # options are words
    "$python" "$nvrtc" "$dir/$name.cu" --arch "$arch" $options -o "$dir/$name.cubin" > "$dir/$name.log" ||
        { cat "$dir/$name.log"; exit 1; }
    if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$dir/$name.log"; then
        echo "$name: local memory" >&2
        exit 1
    fi
done < "$dir/builds.txt"
echo "$(wc -l < "$dir/builds.txt") builds"
