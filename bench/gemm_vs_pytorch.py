"""Products of 1024³ on the CPU: aerogel beside PyTorch, interleaved, medians.

    cargo build --release
    pip install torch numpy
    python3 bench/gemm_vs_pytorch.py [--rounds 9] [--threads 2 1]

Each round runs torch.mm (f32, then bf16), then `aerogel bench cpu --only gemm`, which takes both
operands as they lie, and takes the median of 25 products of each. One JSON line for each number of
threads and dtype, then a table.
"""

import argparse
import json
import statistics
import sys

import peers

SIZE, REPEATS = 1024, 25


def child(threads):
    """What PyTorch reaches, FLOP/s by dtype."""
    import time

    import torch

    torch.set_num_threads(threads)
    rates = {}
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        a, b = (torch.rand(SIZE, SIZE).sub(0.5).to(dtype) for _ in range(2))
        out = torch.empty(SIZE, SIZE, dtype=dtype)
        seconds = []
        for _ in range(REPEATS + 3):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        rates[name] = 2 * SIZE**3 / statistics.median(seconds[3:])
    print(json.dumps({"version": torch.__version__, "rates": rates}))


def aerogel(args, threads):
    command = [args.aerogel, "bench", "cpu", "--only", "gemm", "--threads", threads, "--json", "-", "-q"]
    text, _ = peers.run(command)
    return {p["dtype"]: p["flops_per_second"] for p in json.loads(text)["products"] if p["size"] == SIZE}


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        return child(int(sys.argv[2]))
    parser = argparse.ArgumentParser()
    peers.arguments(parser, rounds=9, steps=None)
    args = parser.parse_args()
    rows = []
    for threads in args.threads:
        theirs, ours, version = {}, {}, ""
        for _ in range(args.rounds):
            found = peers.pytorch(args.python, "gemm_vs_pytorch.py", "--child", threads)
            own, version = aerogel(args, threads), found["version"]
            for dtype in args.dtype:
                theirs.setdefault(dtype, []).append(found["rates"][dtype])
                ours.setdefault(dtype, []).append(own[dtype])
        for dtype in args.dtype:
            figures = {
                "dtype": dtype, "threads": threads, "rounds": args.rounds, "size": SIZE,
                "pytorch": version,
                "pytorch_gflops": round(1e-9 * statistics.median(theirs[dtype]), 1),
                "aerogel_gflops": round(1e-9 * statistics.median(ours[dtype]), 1),
                **peers.compare(ours[dtype], theirs[dtype]),
            }
            print(json.dumps(figures), flush=True)
            ratio = [figures[f"ratio_{which}"] for which in ("median", "min", "max")]
            rows.append([
                f"{dtype}, {threads} thread{'s' * (threads > 1)}", figures["pytorch_gflops"],
                figures["aerogel_gflops"], "**{:.2f}** ({:.2f} to {:.2f})".format(*ratio),
            ])
    print(peers.table(["", "PyTorch, GFLOP/s", "aerogel, GFLOP/s", "ratio, median (lowest to highest round)"], rows))


if __name__ == "__main__":
    main()
