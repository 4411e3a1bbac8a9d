"""Correctness and speed of the matrix products: gemm.py CUBINS (what build_gemm.sh made).

Correctness is against float64, with operands inside buffers of NaN, outputs inside canaries and
filled with NaN, every case run twice for equal bits. Timings are medians of graph replays over
rotating buffers, beside torch. A section that hangs or faults leaves the others to run.
"""

import subprocess
import sys
import threading
import time

SECTIONS = ["general", "ring", "sums", "resident", "cluster"]
SECTIONS += ["times_flagship", "times_sums", "times_gpt2", "times_gpt2_xl", "times_square"]
MOST_SECONDS = 60


def parent(folder):
    start = time.time()
    failed = []
    remaining = SECTIONS[:]
    while remaining:
        at = time.time()
        child = subprocess.Popen([sys.executable, "-u", __file__, folder, *remaining],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        current = [remaining[0], time.time()]

        def watch():
            while child.poll() is None:
                time.sleep(0.2)
                if time.time() - current[1] > MOST_SECONDS:
                    print(f"HANG in {current[0]}", flush=True)
                    child.kill()
        threading.Thread(target=watch, daemon=True).start()
        done = []
        for line in child.stdout:
            line = line.rstrip()
            if line.startswith("BEGIN "):
                current[:] = [line[6:], time.time()]
            elif line.startswith("END "):
                done.append(line[4:])
            else:
                print(line, flush=True)
        child.wait()
        if len(done) < len(remaining):
            failed.append(current[0])
        remaining = remaining[remaining.index(current[0]) + 1:]
        print(f"-- {time.time() - at:.1f} s", flush=True)
    print(f"total {time.time() - start:.1f} s; sections that ended early: {failed or 'none'}")


def child(folder, sections):
    import gemm_cases
    import gemm_times
    for section in sections:
        print(f"BEGIN {section}")
        start = time.time()
        if section.startswith("times"):
            getattr(gemm_times, section)(folder)
        else:
            getattr(gemm_cases, section)(folder)
        print(f"   ({section}: {time.time() - start:.1f} s)")
        print(f"END {section}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        child(sys.argv[1], sys.argv[2:])
    else:
        parent(sys.argv[1])
