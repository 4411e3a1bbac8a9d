"""Attention kernels on a GPU: against float64, then beside PyTorch.

    python3 attend.py CUBINS [--only check|time]

CUBINS is the folder that build_attend.sh filled. Every check draws random operands in a layout of its
own, poisons outputs, their surroundings and the workspace with NaN, runs twice and wants equal bits.
"""

import argparse
import ctypes
import math
import sys
import time

import numpy as np
import torch

from attend_lists import EMPTY, FULL, UNIT, Masks, Packed, Pattern, PerHead, Shifted, Union, lists, units
from attend_operands import problem, reference


class Operand(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("batch", ctypes.c_int64 * 3)] + [
        (n, ctypes.c_int64) for n in "kv group column row width".split()]


OPERANDS = "q k v o lse dout dlse dq dk dv".split()


class Params(ctypes.Structure):
    _fields_ = ([(n, Operand) for n in OPERANDS]
                + [(n, ctypes.c_uint64) for n in "stats first entries order masks position".split()]
                + [("batch", ctypes.c_uint32 * 3)]
                + [(n, ctypes.c_uint32) for n in (
                    "kv group queries keys query_length key_length query_magic key_magic query_step "
                    "key_step query_units tiles kinds section key_width value_width").split()]
                + [("scale", ctypes.c_float), ("scale_log2", ctypes.c_float)])


def read_variants(path):
    """The lines of variants.attend.txt as (file, options)."""
    lines = [line.split() for line in open(path) if not line.startswith("#")]
    return [(w[0], {n: int(v) for n, v in (d[2:].split("=") for d in w[3:])}) for w in lines]


class Driver:
    """Kernels of the cubins, through the driver API and torch's context."""

    device = "cuda"

    def __init__(self, folder):
        self.folder, self.cuda, self.functions = folder, ctypes.CDLL("libcuda.so.1"), {}
        self.variants = read_variants(f"{folder}/variants.attend.txt")
        torch.zeros(1, device="cuda")

    def check(self, status, what):
        if status:
            raise SystemExit(f"{what}: CUDA error {status}")

    def function(self, file, entry, options, shared):
        name = "_".join([file, *(f"{k}{v}" for k, v in options.items())])
        if (name, entry) not in self.functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            with open(f"{self.folder}/{name}.cubin", "rb") as f:
                image = f.read()
            self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), image), name)
            self.check(self.cuda.cuModuleGetFunction(ctypes.byref(function), module, entry.encode()), entry)
            # Dynamic shared memory, and all of L1 for it, so that as many blocks fit as were meant to.
            self.check(self.cuda.cuFuncSetAttribute(function, 8, max(shared, 48 << 10)), f"{name}: {shared} bytes")
            self.check(self.cuda.cuFuncSetAttribute(function, 9, 100), f"{name}: carve-out")
            self.functions[name, entry] = function
        return self.functions[name, entry]

    def launch(self, file, entry, options, params, grid, threads, shared):
        function = self.function(file, entry, options, shared)
        args = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(self.cuda.cuLaunchKernel(function, *grid, 1, threads, 1, 1, shared, stream, args, None),
                   f"{entry} {options} {grid}")


def magic(length):
    """x // length = x * magic >> 32, for x * length < 2**32."""
    return min(-(-2**32 // length), 2**32 - 1)


class Side:
    """Row or column lists of a launch, on the device."""

    def __init__(self, device, kept, count, other, per_tile, transposed):
        *arrays, self.tiles = lists(kept, count, other, per_tile, transposed)
        self.first, self.entries, self.order = (
            torch.from_numpy(a.view(np.int32)).to(device) for a in arrays)


class Attention:
    """Operands as views [b0, b1, b2, kv, group, column, row, width], and the launches over them.

    `tile` is the units of a tile; `pack` the steps of packed columns, None for one column.
    """

    def __init__(self, driver, views, pattern, tile=1, pack=None, fused=False, plain=False, section=1 << 20):
        self.driver, self.v, self.pattern, self.plain, self.fused = driver, views, pattern, plain, fused
        q, k, v = (views[n] for n in "qkv")
        *batch, kv, group, columns, rows, dq = q.shape
        key_rows, dv = k.shape[6], v.shape[7]
        self.dq, self.dv, self.kv, self.group = dq, dv, kv, group
        self.tile, self.pack = tile, int(pack is not None)
        steps = pack or (UNIT, UNIT)
        inner = Packed(pattern, rows, key_rows) if pack else pattern
        assert (pack or columns == 1) and (tile == 1 or not pack)
        queries, keys = rows * columns, key_rows * columns
        self.outer, self.kinds = math.prod(batch) * kv, pattern.kinds
        query_units, key_units = -(-queries // steps[0]), -(-keys // steps[1])
        masks = Masks()
        kept = [units(inner, h, queries, keys, steps, masks) for h in range(self.kinds)]
        self.kept, device = kept, driver.device
        self.by_row = Side(device, kept, query_units, key_units, tile, False)
        self.by_column = Side(device, kept, key_units, query_units, tile, True)
        if fused:
            assert tile == 1 and group == 1 and all(
                len(of) == query_units == key_units == len({q for q, _ in of}) == len({k for _, k in of})
                for of in kept), "fused: tiles see one another in pairs"
        self.masks = torch.from_numpy(masks.table().view(np.int32)).to(device)
        self.stats_rows = torch.full((self.outer * group * query_units + 1, UNIT, 2), math.nan, device=device)
        p = self.params = Params()
        p.batch[:] = batch
        p.kv, p.group, p.queries, p.keys = kv, group, queries, keys
        p.query_length, p.key_length = rows, key_rows
        p.query_magic, p.key_magic = magic(rows), magic(key_rows)
        assert not pack or max(queries * rows, keys * key_rows) < 1 << 32
        p.query_step, p.key_step = steps
        p.query_units, p.kinds, p.section = query_units, self.kinds, section
        p.key_width, p.value_width = dq, dv
        p.scale = 1 / math.sqrt(dq)
        p.scale_log2 = p.scale * math.log2(math.e)
        p.stats, p.masks = self.stats_rows.data_ptr(), self.masks.data_ptr()
        for name, view in views.items():
            s = view.stride()
            operand = Operand(view.data_ptr(), s[:3], s[3], s[4], s[5], s[6], s[7] if view.dim() == 8 else 0)
            setattr(p, name, operand)

    def start(self, entry, options, grid, threads, shared, side=None):
        p = Params.from_buffer_copy(self.params)
        if side is not None:
            p.first, p.entries, p.order = (x.data_ptr() for x in (side.first, side.entries, side.order))
            p.tiles = side.tiles
            p.section = min(p.section, grid[0] // side.tiles)
        file = "attend_plain" if self.plain else entry
        self.driver.launch(file, entry, options, p, grid, threads, shared)

    def variant(self, file, **more):
        """The first line of the list that fits."""
        wanted = {"DQ": self.dq, "DV": self.dv, "ROW_TILES": self.tile, "PACK": self.pack, **more}
        if self.plain:
            wanted = {"BF16": int(self.v["q"].dtype == torch.bfloat16), "PACK": self.pack}
            file = "attend_plain"
        for name, options in self.driver.variants:
            if name == file and all(wanted.get(n, v) == v for n, v in options.items()):
                return options
        raise SystemExit(f"no variant of {file} for {wanted}")

    def forward(self):
        o, width, heads = self.variant("attend_fwd"), self.dq + self.dv, self.outer * self.group
        if self.plain:
            return self.start("attend_plain_fwd", o, (heads * self.by_row.tiles, 16), 128, 16 * width, self.by_row)
        shared = 2 * (64 * self.tile * self.dq + o["STAGES"] * 64 * width)
        return self.start("attend_fwd", o, (heads * self.by_row.tiles, 1), 128, shared, self.by_row)

    def stats(self):
        o, blocks = self.variant("attend_stats"), self.outer * self.group * self.params.query_units
        if self.plain:
            return self.start("attend_plain_stats", o, (blocks, 16), 128, 0)
        return self.start("attend_stats", o, (blocks, 1), 256, 0)

    def dkv(self):
        o, width = self.variant("attend_dkv", FUSED=int(self.fused)), self.dq + self.dv
        blocks = self.outer * self.by_column.tiles
        if self.plain:
            return self.start("attend_plain_dkv", o, (blocks, 16), 128, 32 * width, self.by_column)
        shared = (2 * (64 * self.tile + o["STAGES"] * 64) * width + 16384 * self.tile + 512 * o["STAGES"]
                  + 8192 * self.fused)
        return self.start("attend_dkv", o, (blocks, 1), 256, shared, self.by_column)

    def grad_q(self):
        o, width = self.variant("attend_dq"), self.dq + self.dv
        blocks = self.outer * self.group * self.by_row.tiles
        if self.plain:
            return self.start("attend_plain_dq", o, (blocks, 16), 128, 16 * (self.dq + width), self.by_row)
        shared = 2 * (64 * self.tile + o["STAGES"] * o["CHUNK"]) * width
        return self.start("attend_dq", o, (blocks, 1), 128, shared, self.by_row)

    def parts(self):
        """The launches of a backward."""
        return [self.dkv] if self.fused else [self.stats, self.dkv, self.grad_q]

    def backward(self):
        for part in self.parts():
            part()

    def flops(self):
        """Of the pairs kept: forward, and backward as it is counted for everybody (5 products)."""
        pairs, unit = 0, np.arange(UNIT)
        for h, kept in enumerate(self.kept):
            pairs += sum(UNIT * UNIT if code == FULL else 0 for code in kept.values())
            words = self.masks[:, :128].cpu().numpy().view(np.uint8)
            bits = np.unpackbits(words, axis=-1).reshape(len(words), -1).sum(-1)
            pairs += sum(int(bits[code]) for code in kept.values() if code not in (FULL, EMPTY))
        pairs = pairs * self.outer * self.group // self.kinds
        return 2 * pairs * (self.dq + self.dv), 2 * pairs * (3 * self.dq + 2 * self.dv)


BTHD = "b0 b1 b2 row column kv group width".split()
BHTD = "b0 b1 b2 kv group column row width".split()
MIXED = "b1 kv b0 group row b2 column width".split()
P = Pattern
# name, pattern, batch, kv, group, columns, queries, keys, dq, dv, order, rows of a tile, pack steps, fused
CASES = [
    ("causal ragged", P("causal"), (1, 2, 1), 2, 1, 1, 333, 333, 128, 128, BTHD, 2, None, 0),
    ("causal ragged", P("causal"), (1, 2, 1), 2, 1, 1, 333, 333, 64, 64, BTHD, 1, None, 0),
    ("full, lengths differ", P("full"), (2, 1, 2), 1, 2, 1, 100, 210, 64, 128, MIXED, 2, None, 0),
    ("full, lengths differ", P("full"), (2, 1, 2), 1, 3, 1, 210, 100, 32, 32, BHTD, 2, None, 0),
    ("before: empty row", P("before"), (1, 1, 2), 2, 1, 1, 200, 200, 64, 64, BTHD, 2, None, 0),
    ("local 50", P("local", 50), (1, 1, 2), 2, 2, 1, 300, 300, 64, 128, MIXED, 1, None, 0),
    ("local 128", P("local", 128), (1, 1, 1), 1, 2, 1, 500, 500, 128, 128, BHTD, 2, None, 0),
    ("strided 9", P("strided", 9), (1, 1, 1), 2, 1, 1, 190, 190, 32, 32, BTHD, 1, None, 0),
    ("block 40", P("block", 40), (1, 1, 1), 2, 1, 1, 250, 250, 64, 64, BTHD, 2, None, 0),
    ("summary 40 3", P("summary", 40, 3), (1, 1, 1), 2, 1, 1, 250, 250, 64, 64, BTHD, 2, None, 0),
    ("columns 40 8", P("columns", 40, 8), (1, 1, 1), 2, 1, 1, 280, 56, 64, 64, BTHD, 2, None, 0),
    ("columns strict", P("columns_strict", 40, 8), (1, 1, 1), 1, 2, 1, 280, 56, 128, 128, BTHD, 2, None, 0),
    ("union", Union(P("local", 30), P("strided", 25)), (1, 1, 1), 2, 1, 1, 300, 300, 64, 64, BTHD, 2, None, 0),
    ("per head", PerHead(P("local", 30), P("block", 64), P("causal")), (1, 1, 2), 3, 2, 1, 260, 260, 32, 32, MIXED, 2, None, 0),
    ("offset 77", Shifted(P("local", 60), 77), (1, 1, 1), 2, 1, 1, 130, 210, 64, 64, BTHD, 2, None, 0),
    ("interleaved q, k, v", P("causal"), (1, 2, 1), 3, 1, 1, 190, 190, 64, 64, "interleaved", 2, None, 0),
    ("width 96", P("causal"), (1, 1, 1), 2, 1, 1, 200, 200, 96, 96, BTHD, 1, None, 0),
    ("packed 2 x 32", P("causal"), (1, 2, 1), 2, 1, 7, 32, 32, 64, 128, BTHD, 1, (64, 64), 1),
    ("packed 2 x 32, two kernels", P("causal"), (1, 2, 1), 2, 1, 7, 32, 32, 64, 128, BTHD, 1, (64, 64), 0),
    ("packed 2 x 24", P("causal"), (1, 2, 1), 2, 1, 7, 24, 24, 128, 128, BTHD, 1, (48, 48), 1),
    ("packed 96, before", P("before"), (1, 2, 1), 2, 1, 5, 96, 96, 32, 32, BTHD, 1, (64, 64), 0),
    ("packed 4 x 16, group", P("causal"), (2, 1, 1), 2, 2, 9, 16, 16, 64, 64, MIXED, 1, (64, 64), 0),
    ("packed 16 of 24", P("columns", 3, 2), (1, 1, 1), 2, 1, 5, 16, 24, 32, 64, BTHD, 1, (32, 48), 1),
    ("plain f32", Union(P("local", 30), P("strided", 25)), (1, 1, 2), 2, 2, 1, 150, 150, 20, 44, MIXED, 1, None, -1),
    ("plain f32 packed", P("before"), (1, 1, 1), 2, 1, 5, 24, 24, 16, 16, BTHD, 1, (48, 48), -1),
    ("plain bf16", P("causal"), (1, 1, 1), 2, 1, 1, 70, 130, 24, 8, BTHD, 1, None, -2),
]
RESULTS = ["o", "lse", "dq", "dk", "dv"]


def check_case(driver, case, seed):
    name, pattern, batch, kv, group, columns, queries, keys, dq, dv, order, rows, pack, fused = case
    dtype = torch.float32 if fused == -1 else torch.bfloat16
    arena, views = problem(driver.device, seed, batch, kv, group, columns, queries, keys, dq, dv, order,
                           dtype, seed % 2 == 0)
    x = Attention(driver, views, pattern, rows, pack, fused == 1, fused < 0, section=1 + seed % 3)
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
    limits = [1e-5, 1e-5, 1e-5, 1e-5, 1e-5] if fused == -1 else [5e-3, 1e-4, 8e-3, 8e-3, 6e-3]
    bad = [n for n, e, limit in zip(RESULTS, errors, limits) if not e < limit]
    verdict = wrong or ("wrong: " + " ".join(bad) if bad else "ok")
    print(f"{name:28s} {dq:3d} {dv:3d} {verdict:24s} " + " ".join(f"{n} {e:.1e}" for n, e in zip(RESULTS, errors)),
          flush=True)
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
    driver.launch("attend_decode", "attend_decode", {"BF16": int(dtype == torch.bfloat16), "PACK": 0}, p,
                  (x.outer * 2 * 2, 1), 256, 4 * (20 + 8 * 46))
    want = reference(views, Shifted(pattern, position))
    o, lse = ((views[n].double().clamp(min=-1e9) - want[n].clamp(min=-1e9)).abs().max().item() for n in ("o", "lse"))
    arena.guarded = [(flat, view) for flat, view in arena.guarded if view is views["o"] or view is views["lse"]]
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    verdict = arena.check() or ("ok" if o < limit and lse < 1e-4 else "wrong")
    print(f"{'decode at ' + str(position):28s}  20  44 {verdict:24s} o {o:.1e} lse {lse:.1e}", flush=True)
    return verdict == "ok"


DECODED = [(P("causal"), 0), (P("before"), 0), (Union(P("local", 30), P("strided", 25)), 148), (P("full"), 3),
           (PerHead(P("block", 40), P("summary", 40, 3), P("local", 5)), 101), (P("columns", 20, 8), 77),
           (P("columns_strict", 20, 8), 77)]


def median_ms(run, repeats=15):
    for _ in range(3):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for a, b in events:
        a.record()
        run()
        b.record()
    torch.cuda.synchronize()
    return float(np.median([a.elapsed_time(b) for a, b in events]))


# T, D, heads, window and stride; then README's figures for other kernels: flash, cudnn, local, strided
PEERS = {(3072, 128, 32): (1.206, 0.650, 0.918, 1.562), (12288, 32, 64): (10.8, 9.40, 0.656, 1.341),
         (16384, 128, 8): (6.27, 3.32, 0.990, 1.362), (4096, 64, 64): (2.05, 1.26, 0.977, 1.100)}


def timed(driver, label, pattern, tile, shape, pack=None, fused=False, order=BHTD, peer="", batch=1):
    kv, columns, rows, dq, dv = shape
    _, views = problem(driver.device, 1, (1, 1, batch), kv, 1, columns, rows, rows, dq, dv, order,
                       torch.bfloat16, False, pad=0)
    section = max(1, (24 << 20) // (columns * rows * (dq + dv) * 2))
    x = Attention(driver, views, pattern, tile, pack, fused, section=section)
    fwd, bwd = median_ms(x.forward), median_ms(x.backward)
    each = " ".join(f"{median_ms(part):.3f}" for part in x.parts())
    flops = x.flops()
    moved = batch * kv * columns * rows * 4 * (dq + dv)  # q, k, v, o, once each
    print(f"{label:52s} {fwd:7.3f} {bwd:7.3f} {fwd + bwd:7.3f} {flops[0] / fwd / 1e9:5.0f} {flops[1] / bwd / 1e9:5.0f} "
          f"{sum(flops) / (fwd + bwd) / 1e9:5.0f} {moved / fwd / 1e9:5.2f}  {each:20s} {peer}", flush=True)


def sdpa(t, d, heads):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q, k, v = (torch.randn(1, heads, t, d, device="cuda", dtype=torch.bfloat16).requires_grad_()
               for _ in range(3))
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
    print("TF: of the pairs kept, backward 5 products; TB/s: q, k, v, o of the forward, once each; parts: stats dkv dq")
    print(f"{'case':52s} {'fwd ms':>7s} {'bwd':>7s} {'both':>7s} {'TF':>5s} {'TF':>5s} {'TF':>5s} {'TB/s':>5s}  parts; peer, ms")
    causal = P("causal")
    for (t, d, heads), (flash, cudnn, local, strided) in PEERS.items():
        head = f"{t} x {d} x {heads}"
        peer = f"flash {flash} cudnn {cudnn}; " + sdpa(t, d, heads)
        length = 256 if t > 12288 else 128
        for tile in (2, 1):
            rows = f"{64 * tile} rows"
            timed(driver, f"{head} causal, {rows}", causal, tile, (heads, 1, t, d, d), peer=peer)
            for window in dict.fromkeys((length, 256)):
                timed(driver, f"{head} local {window}, {rows}", P("local", window), tile, (heads, 1, t, d, d),
                      peer=f"flex {local}" if window == length else "")
        n = t // length
        step = 64 // n * n if n <= 64 else 64
        timed(driver, f"{head} columns, stride {length}", causal, 1, (heads, length, n, d, d), (step, step),
              n <= 64, "b0 b1 b2 kv group row column width".split(), f"flex {strided}")
    for batch in (16, 64):  # images of two heads
        head = f"flagship {batch} x 3072 x 2 x (64, 128)"
        for tile in (2, 1):
            timed(driver, f"{head} local 128, {64 * tile} rows", P("local", 128), tile, (2, 1, 3072, 64, 128),
                  order=BTHD, batch=batch)
        for stride, fused in ((96, True), (96, False), (128, True)):
            n = 3072 // stride
            timed(driver, f"{head} columns {stride}, {'fused' if fused else '3 kernels'}", causal, 1,
                  (2, stride, n, 64, 128), (64 // n * n,) * 2, fused, BTHD, batch=batch)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("cubins")
    a.add_argument("--only", choices=["check", "time"])
    a = a.parse_args()
    driver, start, good = Driver(a.cubins), time.time(), True
    if a.only != "time":
        good = all([check_case(driver, case, seed) for seed, case in enumerate(CASES)])
        for seed, (pattern, position) in enumerate(DECODED):
            good &= check_decode(driver, pattern, position, (torch.float32, torch.bfloat16)[seed % 2], seed)
        print("all right" if good else "SOMETHING IS WRONG", f"{time.time() - start:.1f} s")
    if a.only != "check":
        timings(driver)
    print(f"{time.time() - start:.1f} s")
    sys.exit(not good)


if __name__ == "__main__":
    main()
