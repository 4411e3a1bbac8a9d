"""Attention kernels on a GPU: against float64, then beside PyTorch.

    python3 attend.py CUBINS [--only check|time]

CUBINS is the folder that build_attend.sh filled. Every check draws random operands in a layout of
its own, poisons outputs, their surroundings and the workspace with NaN, runs twice and wants equal
bits.
"""

import argparse
import math
import sys
import time

import numpy as np
import torch

from attend_launch import Attention, Driver, Params
from attend_lists import Pattern, PerHead, Shifted, Union
from attend_operands import problem, reference

BTHD = "b0 b1 b2 row column kv group width".split()
BHTD = "b0 b1 b2 kv group column row width".split()
MIXED = "b1 kv b0 group row b2 column width".split()
P = Pattern
# fmt: off
# name, (pattern), batch, (kv, group, columns), (queries, keys), (dq, dv), order, units of a tile,
# pack steps, variant
CASES = [
    ("causal ragged", P("causal"), (1, 2, 1), (2, 1, 1), (333, 333), (128, 128),
     BTHD, 2, None, "mma"),
    ("causal ragged", P("causal"), (1, 2, 1), (2, 1, 1), (333, 333), (64, 64),
     BTHD, 1, None, "mma"),
    ("full, lengths differ", P("full"), (2, 1, 2), (1, 2, 1), (100, 210), (64, 128),
     MIXED, 2, None, "mma"),
    ("full, lengths differ", P("full"), (2, 1, 2), (1, 3, 1), (210, 100), (32, 32),
     BHTD, 2, None, "mma"),
    ("before: empty row", P("before"), (1, 1, 2), (2, 1, 1), (200, 200), (64, 64),
     BTHD, 2, None, "mma"),
    ("local 50", P("local", 50), (1, 1, 2), (2, 2, 1), (300, 300), (64, 128),
     MIXED, 1, None, "mma"),
    ("local 128", P("local", 128), (1, 1, 1), (1, 2, 1), (500, 500), (128, 128),
     BHTD, 2, None, "mma"),
    ("strided 9", P("strided", 9), (1, 1, 1), (2, 1, 1), (190, 190), (32, 32),
     BTHD, 1, None, "mma"),
    ("block 40", P("block", 40), (1, 1, 1), (2, 1, 1), (250, 250), (64, 64),
     BTHD, 2, None, "mma"),
    ("summary 40 3", P("summary", 40, 3), (1, 1, 1), (2, 1, 1), (250, 250), (64, 64),
     BTHD, 2, None, "mma"),
    ("columns 40 8", P("columns", 40, 8), (1, 1, 1), (2, 1, 1), (280, 56), (64, 64),
     BTHD, 2, None, "mma"),
    ("columns strict", P("columns_strict", 40, 8), (1, 1, 1), (1, 2, 1), (280, 56), (128, 128),
     BTHD, 2, None, "mma"),
    ("union", Union(P("local", 30), P("strided", 25)), (1, 1, 1), (2, 1, 1), (300, 300), (64, 64),
     BTHD, 2, None, "mma"),
    ("per head", PerHead(P("local", 30), P("block", 64), P("causal")), (1, 1, 2), (3, 2, 1), 
     (260, 260), (32, 32), MIXED, 2, None, "mma"),
    ("offset 77", Shifted(P("local", 60), 77), (1, 1, 1), (2, 1, 1), (130, 210), (64, 64),
     BTHD, 2, None, "mma"),
    ("interleaved q, k, v", P("causal"), (1, 2, 1), (3, 1, 1), (190, 190), (64, 64),
     "interleaved", 2, None, "mma"),
    ("width 96", P("causal"), (1, 1, 1), (2, 1, 1), (200, 200), (96, 96),
     BTHD, 1, None, "mma"),
    ("packed 2 x 32", P("causal"), (1, 2, 1), (2, 1, 7), (32, 32), (64, 128),
     BTHD, 1, (64, 64), "fused"),
    ("packed 2 x 32, two kernels", P("causal"), (1, 2, 1), (2, 1, 7), (32, 32), (64, 128),
     BTHD, 1, (64, 64), "mma"),
    ("packed 2 x 24", P("causal"), (1, 2, 1), (2, 1, 7), (24, 24), (128, 128),
     BTHD, 1, (48, 48), "fused"),
    ("packed 96, before", P("before"), (1, 2, 1), (2, 1, 5), (96, 96), (32, 32),
     BTHD, 1, (64, 64), "mma"),
    ("packed 4 x 16, group", P("causal"), (2, 1, 1), (2, 2, 9), (16, 16), (64, 64),
     MIXED, 1, (64, 64), "mma"),
    ("packed 16 of 24", P("columns", 3, 2), (1, 1, 1), (2, 1, 5), (16, 24), (32, 64),
     BTHD, 1, (32, 48), "fused"),
    ("band: causal ragged", P("causal"), (1, 2, 1), (2, 1, 1), (333, 333), (64, 64),
     BTHD, 1, None, "band"),
    ("band: full, lengths differ", P("full"), (2, 1, 2), (3, 1, 1), (210, 100), (32, 32),
     BHTD, 1, None, "band"),
    ("band: before: empty row", P("before"), (1, 1, 2), (2, 1, 1), (200, 200), (32, 32),
     MIXED, 1, None, "band"),
    ("band: local 128", P("local", 128), (1, 1, 2), (2, 1, 1), (1100, 1100), (32, 32),
     BHTD, 1, None, "band"),
    ("band: local 50", P("local", 50), (1, 1, 2), (2, 1, 1), (700, 700), (64, 128),
     BTHD, 1, None, "band"),
    ("band: per head", PerHead(P("local", 30), P("block", 64), P("causal")), (1, 1, 2), (3, 1, 1),
     (260, 260), (32, 32), MIXED, 1, None, "band"),
    ("band: offset 77", Shifted(P("local", 60), 77), (1, 1, 1), (2, 1, 1), (130, 210), (64, 64),
     BTHD, 1, None, "band"),
    ("plain f32", Union(P("local", 30), P("strided", 25)), (1, 1, 2), (2, 2, 1), (150, 150),
     (20, 44), MIXED, 1, None, "f32"),
    ("plain f32 packed", P("before"), (1, 1, 1), (2, 1, 5), (24, 24), (16, 16),
     BTHD, 1, (48, 48), "f32"),
    ("plain bf16", P("causal"), (1, 1, 1), (2, 1, 1), (70, 130), (24, 8),
     BTHD, 1, None, "bf16"),
]
# fmt: on
# The same on Hopper's own kernels.
CASES += [
    (*case[:9], "hopper")
    for case in CASES
    if case[9] == "mma" and case[5] in ((64, 64), (64, 128), (128, 128)) and case[8] is None
]
RESULTS = ["o", "lse", "dq", "dk", "dv"]


def check_case(driver, case, seed):
    name, pattern, batch, heads, lengths, (dq, dv), order, tile, pack, kind = case
    if kind == "hopper":
        name, tile = f"hopper: {name}", 2
    dtype = torch.float32 if kind == "f32" else torch.bfloat16
    arena, views = problem(
        driver.device, seed, batch, *heads, *lengths, dq, dv, order, dtype, dlse=seed % 2 == 0
    )
    x = Attention(
        driver,
        views,
        pattern,
        tile,
        pack,
        kind == "fused",
        kind in ("f32", "bf16"),
        section=1 + seed % 3,
        band_units=3 if kind == "band" else 0,
        hopper=kind == "hopper",
    )
    runs = []
    for _ in range(2):
        for flat, _ in arena.guarded:
            flat.fill_(math.nan)
        x.stats_rows.fill_(math.nan)
        x.forward()
        x.backward()
        runs.append({n: views[n].clone() for n in RESULTS})
    wrong = arena.check()
    if not all(torch.equal(runs[0][n].nan_to_num(), runs[1][n].nan_to_num()) for n in RESULTS):
        wrong = wrong or "two runs differ"
    want, errors = reference(views, pattern), []
    for n in RESULTS:
        got, ref = views[n].double(), want[n]
        if n == "lse":
            if not torch.equal(got == -math.inf, ref == -math.inf):
                wrong = wrong or "lse is -inf elsewhere"
            got, ref = got.clamp(min=-1e9), ref.clamp(min=-1e9)
            errors.append(((got - ref).abs().max()).item())
        else:
            errors.append(((got - ref).norm() / ref.norm()).item())
    limits = [1e-5] * 5 if kind == "f32" else [5e-3, 1e-4, 8e-3, 8e-3, 6e-3]
    bad = [n for n, e, limit in zip(RESULTS, errors, limits) if not e < limit]
    verdict = wrong or ("wrong: " + " ".join(bad) if bad else "ok")
    shown = " ".join(f"{n} {e:.1e}" for n, e in zip(RESULTS, errors))
    print(f"{name:28s} {dq:3d} {dv:3d} {verdict:24s} {shown}", flush=True)
    return verdict == "ok"


TERMS = "full causal before local strided block summary columns columns_strict".split()


def terms_of(pattern):
    """A pattern as lists of terms, one for each kind of head."""
    if isinstance(pattern, PerHead):
        return [terms_of(part)[0] for part in pattern.parts]
    if isinstance(pattern, Union):
        return [sum((terms_of(part)[0] for part in pattern.parts), [])]
    return [[(TERMS.index(pattern.name), *pattern.numbers, *(0,) * (3 - len(pattern.numbers)))]]


def check_decode(driver, pattern, position, dtype, seed):
    device, order = driver.device, "b2 kv row group column b0 b1 width".split()
    arena, views = problem(device, seed, (1, 1, 2), 3, 2, 1, 2, 150, 20, 44, order, dtype, False)
    x = Attention(driver, views, Shifted(pattern, position), plain=True)
    of = terms_of(pattern)
    first = torch.tensor(np.cumsum([0] + [len(t) for t in of]), dtype=torch.int32, device=device)
    terms = torch.tensor(sum(of, []), dtype=torch.int32, device=device)
    at = torch.tensor([position], dtype=torch.int32, device=device)
    p = Params.from_buffer_copy(x.params)
    p.first, p.entries, p.position = (t.data_ptr() for t in (first, terms, at))
    driver.launch(
        "attend_decode",
        "attend_decode",
        {"BF16": int(dtype == torch.bfloat16), "PACK": 0},
        p,
        (x.outer * 2 * 2, 1),
        256,
        4 * (20 + 8 * 46),
    )
    want = reference(views, Shifted(pattern, position))
    o, lse = (
        (views[n].double().clamp(min=-1e9) - want[n].clamp(min=-1e9)).abs().max().item()
        for n in ("o", "lse")
    )
    arena.guarded = [
        (flat, view) for flat, view in arena.guarded if view is views["o"] or view is views["lse"]
    ]
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    verdict = arena.check() or ("ok" if o < limit and lse < 1e-4 else "wrong")
    print(
        f"{'decode at ' + str(position):28s}  20  44 {verdict:24s} o {o:.1e} lse {lse:.1e}",
        flush=True,
    )
    return verdict == "ok"


DECODED = [
    (P("causal"), 0),
    (P("before"), 0),
    (Union(P("local", 30), P("strided", 25)), 148),
    (P("full"), 3),
    (PerHead(P("block", 40), P("summary", 40, 3), P("local", 5)), 101),
    (P("columns", 20, 8), 77),
    (P("columns_strict", 20, 8), 77),
]


def median_ms(run, repeats=15):
    """Of kernels that find nothing in L2, launched while the GPU still clears a buffer."""
    for _ in range(3):
        run()
    other = torch.empty(64 << 20, dtype=torch.float32, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for a, b in events:
        other.zero_()
        a.record()
        run()
        b.record()
    torch.cuda.synchronize()
    return float(np.median([a.elapsed_time(b) for a, b in events]))


# T, D, heads: ms measured of FlashAttention 2, cuDNN, FlexAttention local and by columns (H100)
PEERS = {
    (3072, 128, 32): (1.206, 0.650, 0.918, 1.562),
    (12288, 32, 64): (10.8, 9.40, 0.656, 1.341),
    (16384, 128, 8): (6.27, 3.32, 0.990, 1.362),
    (4096, 64, 64): (2.05, 1.26, 0.977, 1.100),
}


def timed(
    driver,
    label,
    pattern,
    tile,
    shape,
    pack=None,
    fused=False,
    order=BHTD,
    peer="",
    batch=1,
    **more,
):
    kv, columns, rows, dq, dv = shape
    _, views = problem(
        driver.device,
        1,
        (1, 1, batch),
        kv,
        1,
        columns,
        rows,
        rows,
        dq,
        dv,
        order,
        torch.bfloat16,
        False,
        pad=0,
    )
    section = max(1, (24 << 20) // (columns * rows * (dq + dv) * 2))
    x = Attention(driver, views, pattern, tile, pack, fused, section=section, **more)
    fwd, bwd = median_ms(x.forward), median_ms(x.backward)
    each = " ".join(f"{median_ms(part):.3f}" for part in x.parts())
    flops = x.flops()
    moved = batch * kv * columns * rows * 4 * (dq + dv)  # q, k, v, o, once each
    work = (flops[0] / fwd, flops[1] / bwd, sum(flops) / (fwd + bwd))
    rates = " ".join(f"{w / 1e9:5.0f}" for w in work)
    times = f"{fwd:7.3f} {bwd:7.3f} {fwd + bwd:7.3f}"
    print(f"{label:52s} {times} {rates} {moved / fwd / 1e9:5.2f}  {each:20s} {peer}", flush=True)


# Stretches of attend_band and its variants to time, by head width
BANDS = {
    32: [(8, {"BLOCKS": 3}), (16, {"BLOCKS": 3}), (8, {"BLOCKS": 4}), (16, {"BLOCKS": 4})],
    64: [(8, {}), (16, {})],
}


def sdpa(t, d, heads):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (
        torch.randn(1, heads, t, d, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    )
    g, out = torch.randn_like(q), []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def run():
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).backward(g)
            q.grad = k.grad = v.grad = None

        try:
            with sdpa_kernel(backend):
                out.append(f"{median_ms(run, 7):.3f}")
        except RuntimeError as e:
            out.append(type(e).__name__)
    return "measured: flash {}, cudnn {}".format(*out)


def timings(driver):
    print("TF: of the pairs kept, backward 5 products; TB/s: q, k, v, o of the forward, once each")
    columns = "".join(f" {n:>7s}" for n in ("fwd ms", "bwd", "both"))
    rates = "".join(f" {n:>5s}" for n in ("TF", "TF", "TF", "TB/s"))
    kernels = "ms of stats, dkv, dq (or stats, band; hopper: dq, dkv)"
    print(f"{'case':52s}{columns}{rates}  {kernels}; peer, ms")
    causal = P("causal")
    for (t, d, heads), (flash, cudnn, local, strided) in PEERS.items():
        head = f"{t} x {d} x {heads}"
        peer = f"flash {flash} cudnn {cudnn}; " + sdpa(t, d, heads)
        length = 256 if t > 12288 else 128
        for tile in (2, 1):
            rows = f"{64 * tile} rows"
            timed(driver, f"{head} causal, {rows}", causal, tile, (heads, 1, t, d, d), peer=peer)
            for window in dict.fromkeys((length, 256)):
                timed(
                    driver,
                    f"{head} local {window}, {rows}",
                    P("local", window),
                    tile,
                    (heads, 1, t, d, d),
                    peer=f"flex {local}" if window == length else "",
                )
        for window in dict.fromkeys((length, 256)) if d <= 64 else ():
            for units, options in BANDS[d]:
                words = " ".join(f"{n.lower()} {v}" for n, v in options.items())
                timed(
                    driver,
                    f"{head} local {window}, band {units} {words}",
                    P("local", window),
                    1,
                    (heads, 1, t, d, d),
                    band_units=units,
                    options=options,
                )
        for pattern in (causal, P("local", 256)) if d >= 64 else ():
            words = " ".join(map(str, (pattern.name, *pattern.numbers)))
            timed(
                driver,
                f"{head} {words}, hopper",
                pattern,
                2,
                (heads, 1, t, d, d),
                peer=peer if pattern is causal else "",
                hopper=True,
            )
        n = t // length
        step = 64 // n * n if n <= 64 else 64
        timed(
            driver,
            f"{head} columns, stride {length}",
            causal,
            1,
            (heads, length, n, d, d),
            (step, step),
            n <= 64,
            "b0 b1 b2 kv group row column width".split(),
            f"flex {strided}",
        )
    for batch in (16, 64):  # images of two heads
        head = f"flagship {batch} x 3072 x 2 x (64, 128)"
        for tile in (2, 1):
            timed(
                driver,
                f"{head} local 128, {64 * tile} rows",
                P("local", 128),
                tile,
                (2, 1, 3072, 64, 128),
                order=BTHD,
                batch=batch,
            )
        timed(
            driver,
            f"{head} local 128, hopper",
            P("local", 128),
            2,
            (2, 1, 3072, 64, 128),
            order=BTHD,
            batch=batch,
            hopper=True,
        )
        for units in (6, 12):
            timed(
                driver,
                f"{head} local 128, band {units}",
                P("local", 128),
                1,
                (2, 1, 3072, 64, 128),
                order=BTHD,
                batch=batch,
                band_units=units,
            )
        for stride, fused in ((96, True), (96, False), (128, True)):
            n = 3072 // stride
            timed(
                driver,
                f"{head} columns {stride}, {'fused' if fused else '3 kernels'}",
                causal,
                1,
                (2, stride, n, 64, 128),
                (64 // n * n,) * 2,
                fused,
                BTHD,
                batch=batch,
            )


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("cubins")
    a.add_argument("--only", choices=["check", "time"])
    a = a.parse_args()
    driver, start, good = Driver(a.cubins), time.time(), True
    if a.only != "time":
        good = all([check_case(driver, case, seed) for seed, case in enumerate(CASES)])
        for seed, (pattern, position) in enumerate(DECODED):
            good &= check_decode(
                driver, pattern, position, (torch.float32, torch.bfloat16)[seed % 2], seed
            )
        print("all right" if good else "SOMETHING IS WRONG", f"{time.time() - start:.1f} s")
    if a.only != "check":
        timings(driver)
    print(f"{time.time() - start:.1f} s")
    sys.exit(not good)


if __name__ == "__main__":
    main()
