"""Training speed of a GPT on the CPU: aerogel beside PyTorch, interleaved, medians.

    cargo build --release
    pip install torch numpy
    python3 bench/cpu_vs_pytorch.py [--model small|wide] [--rounds 9] [--threads 2 1] [--dtype f32 bf16]

`small` is 4 layers of width 256 on 4 sequences of 256 tokens, `wide` 8 layers of width 512 on
`--batch` sequences of 1,024; both have a vocabulary of 4,096. Each round runs PyTorch, then
aerogel, and takes the median step of each without the first ones; the figure is the median over
the rounds, and the ratio is taken round by round. A step is forward, backward and AdamW without
clipping. Memory is the most that the process had resident, the smallest of all rounds; `import` is what
PyTorch has before it has made anything. One JSON
line for each number of threads and dtype, then a table.
"""

import argparse
import json
import random
import statistics
import struct

import peers

# Name: recipe, steps a round, sequences, and what PyTorch is told.
MODELS = {
    "small": ("small-gpt.toml", 30, 4, {"layers": 4, "heads": 4, "width": 256, "context": 256}),
    "wide": ("wide-gpt.toml", 7, 1, {"layers": 8, "heads": 8, "width": 512, "context": 1024}),
}
VOCAB, TOKENS = 4096, 200_000


def random_tokens():
    path = peers.HERE / "data" / "random.bin"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draw = random.Random(1)
        path.write_bytes(b"".join(struct.pack("<H", draw.randrange(VOCAB)) for _ in range(TOKENS)))


def measure(args, recipe, shape, steps, batch, threads, dtype):
    tokens, warmup = batch * shape["context"], min(5, steps // 3)
    changes = [f"train.batch={batch}", f"parallel.threads={threads}", f"precision.compute={dtype}"]
    facts = {**shape, "batch": batch, "vocab": VOCAB, "threads": threads, "steps": steps}
    flags = [part for name, value in facts.items() for part in (f"--{name}", value)]
    rates, peaks = {"pytorch": [], "aerogel": []}, {"pytorch": [], "aerogel": []}
    for _ in range(args.rounds):
        theirs = peers.pytorch(args.python, "pytorch_gpt.py", "--dtype", dtype, *flags)
        rates["pytorch"].append(tokens / peers.median_after(theirs["seconds"], warmup))
        peaks["pytorch"].append(theirs["peak_bytes"])
        events, peak = peers.train(args.aerogel, recipe, steps, changes)
        seconds = peers.median_after([e["seconds"] for e in events], warmup)
        rates["aerogel"].append(tokens / seconds)
        peaks["aerogel"].append(peak)
    return {
        "model": args.model, "dtype": dtype, "threads": threads, "rounds": args.rounds,
        "steps": steps, "batch": batch, "pytorch": theirs["version"],
        "pytorch_tokens_per_second": round(statistics.median(rates["pytorch"])),
        "aerogel_tokens_per_second": round(statistics.median(rates["aerogel"])),
        **peers.compare(rates["aerogel"], rates["pytorch"]),
        "pytorch_import_bytes": theirs["import_bytes"],
        "pytorch_peak_bytes": min(peaks["pytorch"]),
        "aerogel_peak_bytes": min(peaks["aerogel"]),
    }


def main():
    parser = argparse.ArgumentParser()
    peers.arguments(parser, rounds=9, steps=None)
    parser.add_argument("--model", default="small", choices=MODELS)
    parser.add_argument("--batch", type=int)
    args = parser.parse_args()
    name, steps, batch, shape = MODELS[args.model]
    steps, batch = args.steps or steps, args.batch or batch
    recipe = peers.HERE / name
    random_tokens()
    peers.prepare(args.aerogel, recipe)
    rows = []
    for threads in args.threads:
        for dtype in args.dtype:
            found = measure(args, recipe, shape, steps, batch, threads, dtype)
            print(json.dumps(found), flush=True)
            rows.append([
                f"{args.model}, {dtype}, {threads} thread{'s' * (threads > 1)}",
                f"{found['pytorch_tokens_per_second']:,}",
                f"{found['aerogel_tokens_per_second']:,}",
                f"**{found['ratio_median']:.2f}** ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})",
                round(found["pytorch_peak_bytes"] / peers.MIB),
                round(found["aerogel_peak_bytes"] / peers.MIB),
            ])
    head = ["", "PyTorch, tokens/s", "aerogel, tokens/s", "ratio, median (lowest to highest round)",
            "PyTorch, MiB", "aerogel, MiB"]
    print(peers.table(head, rows))


if __name__ == "__main__":
    main()
