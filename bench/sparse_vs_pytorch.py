"""Training speed and memory of a Sparse Transformer on images: aerogel beside PyTorch, interleaved.

    cargo build --release
    pip install torch numpy
    python3 bench/sparse_vs_pytorch.py [--rounds 9] [--threads 2 1] [--dtype f32 bf16] [--data DIR]

12 layers of width 256 on the 3,072 bytes of a CIFAR-10 image, local and strided attention by turns
(bench/sparse-cifar.toml). Bytes are random, or those of the images in DIR/train/CLASS and
DIR/test/CLASS. Each round runs PyTorch with dense attention, PyTorch with its sparse forms (see
bench/pytorch_sparse.py, and `--check` there), then aerogel, and takes the median step of each
without the first; figures are medians over the rounds, ratios are taken round by round. A step is
forward, backward and AdamW without clipping. Memory is the most that the process had resident, the
smallest of all rounds; `import` is what PyTorch has before it has made anything. One JSON line for
each number of threads and dtype, then a table.
"""

import argparse
import json
import pathlib
import random
import statistics

import peers

RECORD, IMAGES = 3073, 64
SEQ = 3072


def random_images():
    """The files of CIFAR-10's binary form, of random bytes."""
    folder = peers.HERE / "data" / "cifar-random"
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        path = folder / name
        if not path.exists():
            path.write_bytes(draw.randbytes(RECORD * IMAGES))


def recipe_of(data):
    """The recipe: as it is, or with its data from a folder of images."""
    path = peers.HERE / "sparse-cifar.toml"
    if data is None:
        random_images()
        return path
    folder = pathlib.Path(data).resolve()
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        raise SystemExit(f"--data {data}: has no folders train and test of class folders")
    text = path.read_text()
    start = text.index("[data]")
    end = text.index("[optimizer]")
    table = f'[data]\nkind = "images"\ntrain = "{folder}/train"\ntest = "{folder}/test"\n'
    own = peers.HERE / "data" / "sparse-images.toml"
    own.parent.mkdir(exist_ok=True)
    own.write_text(text[:start] + table + "image = [32, 32, 3]\nvalidation = 0\n\n" + text[end:])
    return own


def images_of(recipe, count=64):
    """The first images of the prepared training split, for PyTorch."""
    import numpy

    tokens = peers.tokens(recipe.stem, "train", count * SEQ)
    path = peers.HERE / "data" / f"{recipe.stem}.npy"
    numpy.save(path, tokens[: len(tokens) // SEQ * SEQ].reshape(-1, SEQ).astype("uint8"))
    return path


def without_flex(args):
    """Why PyTorch's flex_attention cannot take part; None where it can."""
    try:
        peers.pytorch(args.python, "pytorch_sparse.py", "--form", "flex", "--steps", 1, "--layers", 1)
    except peers.Failed as error:
        return str(error).strip().splitlines()[-1]
    return None


def measure(args, recipe, images, forms, threads, dtype):
    changes = [
        f"train.batch={args.batch}", f"parallel.threads={threads}", f"precision.compute={dtype}"
    ]
    flags = ["--dtype", dtype, "--threads", threads, "--steps", args.steps, "--batch", args.batch]
    rates, peaks = {}, {}

    def note(name, seconds, peak):
        median = peers.median_after(seconds, 1)
        rates.setdefault(name, []).append(args.batch / median)
        peaks.setdefault(name, []).append(peak)

    for _ in range(args.rounds):
        for form in forms:
            theirs = peers.pytorch(
                args.python, "pytorch_sparse.py", "--form", form, *flags, "--images", images
            )
            note(form, theirs["seconds"], theirs["peak_bytes"])
        events, peak = peers.train(args.aerogel, recipe, args.steps, changes)
        note("aerogel", [e["seconds"] for e in events], peak)
    found = {
        "dtype": dtype, "threads": threads, "rounds": args.rounds, "steps": args.steps,
        "batch": args.batch, "pytorch": theirs["version"],
        "pytorch_import_bytes": theirs["import_bytes"], "programs": {},
    }
    for name in rates:
        own = {
            "images_per_second": round(statistics.median(rates[name]), 4),
            "median_step_seconds": round(args.batch / statistics.median(rates[name]), 4),
            "peak_bytes": min(peaks[name]),
        }
        if name != "aerogel":
            own["aerogel_speed"] = peers.compare(rates["aerogel"], rates[name])
            own["aerogel_memory"] = round(min(peaks["aerogel"]) / min(peaks[name]), 3)
        found["programs"][name] = own
    return found


def rows_of(found):
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    for name, own in found["programs"].items():
        ratio = own.get("aerogel_speed")
        words = "" if ratio is None else (
            f"**{ratio['ratio_median']:.2f}** ({ratio['ratio_min']:.2f} to {ratio['ratio_max']:.2f})"
        )
        program = "aerogel" if name == "aerogel" else f"PyTorch, {name}"
        yield [
            f"{program}, {found['dtype']}, {threads}", f"{own['images_per_second']:.3f}",
            f"{own['median_step_seconds']:.3f}", words, round(own["peak_bytes"] / peers.MIB),
            "" if ratio is None else f"{own['aerogel_memory']:.2f}",
        ]


def main():
    parser = argparse.ArgumentParser()
    peers.arguments(parser, rounds=9, steps=4)
    parser.add_argument("--batch", type=int, default=1, help="images a step")
    parser.add_argument("--data", help="a folder of images, train/CLASS and test/CLASS")
    args = parser.parse_args()
    recipe = recipe_of(args.data)
    peers.prepare(args.aerogel, recipe)
    images = images_of(recipe)
    check = peers.pytorch(args.python, "pytorch_sparse.py", "--check")
    reason = without_flex(args)
    forms = ["dense", "blocks"] + ([] if reason else ["flex"])
    first = {
        "blocks_differ_from_the_mask_by": check["largest_difference"],
        "flex_attention": reason or "takes part",
    }
    print(json.dumps(first), flush=True)
    rows = []
    for threads in args.threads:
        for dtype in args.dtype:
            found = measure(args, recipe, images, forms, threads, dtype)
            print(json.dumps(found), flush=True)
            rows += rows_of(found)
    head = ["", "images/s", "median step, s", "aerogel's speed by it (lowest to highest round)",
            "peak, MiB", "aerogel's memory by it"]
    print(peers.table(head, rows))


if __name__ == "__main__":
    main()
