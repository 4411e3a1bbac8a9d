"""Losses of a small GPT on real text: aerogel beside PyTorch, from the same weights, on the same
batches.

    cargo build --release
    pip install torch numpy safetensors blake3
    python3 bench/loss_vs_pytorch.py [--steps 200] [--seeds 1 2 3] [--dtype f32 bf16]

The model is that of bench/small-gpt.toml; the text is the bytes of this repository's own sources.
aerogel writes its first weights as a checkpoint of a run that learns nothing, and PyTorch starts
from them; the order of the sequences is computed here as crates/data/src/sampler.rs has it. One
JSON line for each seed and dtype, then a table: the mean loss of the last 20 steps in bits a byte,
and by how much aerogel's is above PyTorch's.
"""

import argparse
import json
import math
import statistics
import struct
import tempfile

import peers

CONTEXT, BATCH, VOCAB, LAST = 256, 4, 4096, 20
WORD = (1 << 64) - 1


def sources():
    """The repository's sources, each byte a token of 16 bits, as a file of tokens."""
    root = peers.HERE.parent
    files = sorted(root.glob("crates/*/src/**/*.rs"))
    text = b"".join(path.read_bytes() for path in files)
    path = peers.HERE / "data" / "sources.bin"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack(f"<{len(text)}H", *text))
    recipe = peers.HERE / "data" / "small-gpt-text.toml"
    small = (peers.HERE / "small-gpt.toml").read_text()
    recipe.write_text(small.replace('"data/random.bin"', f'"{path}"'))
    return recipe


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def order(length, seed, epoch):
    """The permutation of an epoch: a Feistel network, walked until the value is inside."""
    import blake3

    context = "aerogel-data sequence order v1"
    key = struct.pack("<QQ", seed, epoch)
    digest = blake3.blake3(key, derive_key_context=context).digest(length=64)
    keys = struct.unpack("<8Q", digest)
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1

    def encrypt(value):
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ mix(right ^ key) & mask
        return left << half | right

    def place(value):
        value = encrypt(value)
        while value >= length:
            value = encrypt(value)
        return value

    return place


def batches(recipe, seed, steps):
    """What aerogel reads in these steps: steps, batch, context + 1."""
    import numpy

    tokens = peers.tokens(recipe.stem, "train")
    length = (len(tokens) - 1) // CONTEXT
    epochs, rows = {}, []
    for position in range(steps * BATCH):
        epoch, within = divmod(position, length)
        if epoch not in epochs:
            epochs[epoch] = order(length, seed, epoch)
        first = epochs[epoch](within) * CONTEXT
        rows.append(tokens[first : first + CONTEXT + 1])
    return numpy.stack(rows).reshape(steps, BATCH, CONTEXT + 1)


def bits(losses):
    return statistics.mean(losses[-LAST:]) / math.log(2)


def one_seed(args, recipe, seed, dtype, threads):
    import numpy

    with tempfile.TemporaryDirectory(dir=peers.HERE / "data") as folder:
        changes = [f"train.seed={seed}", f"parallel.threads={threads}"]
        still = [*changes, "optimizer.learning_rate=1e-30", "optimizer.weight_decay=0"]
        first, _ = peers.train(args.aerogel, recipe, 1, still, folder + "/first")
        weights = f"{folder}/first/{recipe.stem}/checkpoints/step-00000001/tensors-00000.safetensors"
        numpy.save(f"{folder}/batches.npy", batches(recipe, seed, args.steps))
        theirs = peers.pytorch(
            args.python, "pytorch_gpt.py", "--threads", threads, "--dtype", dtype, "--steps",
            args.steps, "--context", CONTEXT, "--batch", BATCH, "--vocab", VOCAB,
            "--weights", weights, "--batches", f"{folder}/batches.npy",
        )
        changes.append(f"precision.compute={dtype}")
        events, _ = peers.train(args.aerogel, recipe, args.steps, changes, folder + "/run")
    ours = [e["loss_bits"] * math.log(2) for e in events]
    start = abs(first[0]["loss_bits"] * math.log(2) - theirs["losses"][0])
    if start > 0.02:
        raise SystemExit(f"the first losses differ by {start}: not the same weights and batch")
    return {
        "seed": seed, "dtype": dtype, "steps": args.steps, "pytorch": theirs["version"],
        "first_losses_differ_by_nats": round(start, 6),
        "pytorch_bits": round(bits(theirs["losses"]), 5),
        "aerogel_bits": round(bits(ours), 5),
        "aerogel_above": round(bits(ours) / bits(theirs["losses"]) - 1, 6),
        "largest_difference_of_a_step": round(
            max(abs(a / b - 1) for a, b in zip(ours, theirs["losses"])), 6
        ),
    }


def main():
    parser = argparse.ArgumentParser()
    peers.arguments(parser, rounds=1, steps=200)
    parser.set_defaults(threads=[2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    recipe = sources()
    peers.prepare(args.aerogel, recipe)
    rows = []
    for dtype in args.dtype:
        for seed in args.seeds:
            found = one_seed(args, recipe, seed, dtype, args.threads[0])
            print(json.dumps(found), flush=True)
            rows.append([
                f"{dtype}, seed {seed}", f"{found['pytorch_bits']:.4f}",
                f"{found['aerogel_bits']:.4f}", f"{100 * found['aerogel_above']:+.3f} %",
            ])
    print(peers.table(["", "PyTorch, bits a byte", "aerogel", "difference"], rows))


if __name__ == "__main__":
    main()
