"""The row kernels (map, reduce, norm, gather, scatter, copy, fill, cross entropy) against float64,
then against the copy bandwidth and PyTorch.

  rows.py emit DIR   writes the sources with their programs and builds.txt (see build_rows.sh)
  rows.py run DIR    checks and times the cubins of DIR on a GPU
"""
import sys
import numpy as np
from rows_harness import *

P = Program
U, Z, S = "unit", "zero", "strided"

# ---------------------------------------------------------------- programs
C0, C1 = 0.7978845608, 0.044715
GELU = [("load", 0), ("mul", 0, 0), ("mul", 1, 0), ("const", C1), ("fma", 3, 2, 0), ("const", C0),
        ("mul", 4, 5), ("tanh", 6), ("const", 1.0), ("add", 7, 8), ("const", 0.5), ("mul", 10, 0),
        ("mul", 11, 9)]
# 0.5 (1 + t) + 0.5 x (1 - t^2) c0 (1 + 3 c1 x^2), times dy
GELU_GRAD = GELU[:10] + [("const", 0.5), ("mul", 9, 10), ("mul", 7, 7), ("sub", 8, 12),
                         ("const", 3 * C1), ("fma", 14, 1, 8), ("const", C0), ("mul", 15, 16),
                         ("mul", 13, 17), ("mul", 0, 10), ("fma", 19, 18, 11), ("load", 1),
                         ("mul", 20, 21)]
EVERY = [("load", 0), ("load", 1), ("load", 2), ("load", 3), ("abs", 0), ("const", 0.5), ("add", 4, 5),
         ("ln", 6), ("exp", 0), ("tanh", 8), ("sqrt", 6), ("rsqrt", 6), ("recip", 6), ("sigmoid", 0),
         ("erf", 0), ("sin", 3), ("cos", 2), ("floor", 3), ("not", 3), ("neg", 17), ("round", 0),
         ("pow", 6, 1), ("min", 0, 1), ("max", 0, 3), ("lt", 0, 1), ("le", 1, 0), ("eq", 3, 3),
         ("div", 0, 6), ("coord", 0), ("piece",), ("rand", 1, 0xdeadbeef0123), ("sub", 30, 28),
         ("select", 24, 31, 29), ("add", 7, 8), ("add", 33, 9), ("add", 34, 10), ("add", 35, 11),
         ("add", 36, 12), ("add", 37, 13), ("add", 38, 14), ("add", 39, 15), ("add", 40, 16),
         ("sub", 41, 19), ("add", 42, 18), ("add", 43, 20), ("add", 44, 21), ("add", 45, 22),
         ("add", 46, 23), ("add", 47, 25), ("add", 48, 26), ("add", 49, 27)]
ADD = P([("bf16", U), ("bf16", U)], [("bf16", U)], [("load", 0), ("load", 1), ("add", 0, 1), ("store", 0, 2)])
MAPS = {
    "adamw": None,
    "gelu": P([("bf16", U)], [("bf16", U)], GELU + [("store", 0, 12)]),
    "gelu_grad": P([("bf16", U), ("bf16", U)], [("bf16", U)], GELU_GRAD + [("store", 0, 22)]),
    "add": ADD,
    "cast": P([("f32", U)], [("bf16", U)], [("load", 0), ("store", 0, 0)]),
    "bias": P([("bf16", U), ("f32", U), ("f32", Z)], [("bf16", U)],
              [("load", 0), ("load", 1), ("load", 2), ("add", 0, 1), ("mul", 3, 2), ("store", 0, 4)]),
    "dropout": P([("bf16", U), ("bf16", U)], [("bf16", U)],
                 [("load", 0), ("load", 1), ("rand", 0, 0x9e3779b97f4a7c15), ("const", 0.1),
                  ("lt", 2, 3), ("const", 0.0), ("const", 1 / 0.9), ("mul", 0, 6),
                  ("select", 4, 5, 7), ("add", 8, 1), ("store", 0, 9)], [U]),
    "every": P([("f32", U), ("bf16", S), ("u32", Z), ("f32", S)], [("f32", U), ("bf16", S)],
               EVERY + [("store", 0, 50), ("store", 1, 32)], [S, S]),
}
LOAD = P([("bf16", U)], [], [("load", 0), ("result", 0)])
STORE = P([], [("bf16", U)], [("product",), ("store", 0, 0)])
LOAD32 = P([("f32", U)], [], [("load", 0), ("result", 0)])
STORE32 = P([], [("f32", U)], [("product",), ("store", 0, 0)])
RESIDUAL = {"Prologue": P([("bf16", U), ("bf16", U)], [("bf16", U)],
                          [("load", 0), ("load", 1), ("add", 0, 1), ("round", 2), ("result", 3), ("store", 0, 3)]),
            "Epilogue": STORE}
PLAIN = {"Prologue": LOAD, "Epilogue": STORE}
PLAIN32 = {"Prologue": LOAD32, "Epilogue": STORE32}
GRAD = {"SourceX": LOAD, "SourceDy": LOAD,
        "Epilogue": P([("bf16", U)], [("bf16", U)], [("product",), ("round", 0), ("load", 0), ("add", 1, 2), ("store", 0, 3)])}
GRAD_PLAIN = {"SourceX": LOAD, "SourceDy": LOAD, "Epilogue": STORE}
GRAD32 = {"SourceX": LOAD32, "SourceDy": LOAD32, "Epilogue": STORE32}
SUM, SQUARE = LOAD, P([("f32", U)], [], [("load", 0), ("mul", 0, 0), ("result", 1)])

# name: (file, programs, constants)
BUILDS = {}


def build(name, file, programs=None, **constants):
    BUILDS[name] = (file, programs, constants)


for name, (v, unroll, axes) in {"adamw": (4, 1, 1), "gelu": (8, 2, 1), "gelu_grad": (8, 1, 1), "add": (8, 2, 1),
                                "cast": (8, 2, 1), "bias": (8, 2, 2), "dropout": (8, 1, 1), "every": (2, 2, 4)}.items():
    build("map_" + name, "map.cu", MAPS[name] and {"Program": MAPS[name]}, V=v, UNROLL=unroll, AXES=axes)
build("map_add4", "map.cu", {"Program": ADD}, V=8, UNROLL=4)
build("map_add1", "map.cu", {"Program": ADD}, V=8, UNROLL=1)
build("rows_sum", "reduce.cu", {"Program": SQUARE}, V=4, LANES=32, UNROLL=2)
build("rows_max", "reduce.cu", {"Program": SUM}, V=8, LANES=8, UNROLL=2, OUTER=2, INNER=2, FOLD="Max", OUT="bf16")
build("rows_all", "reduce.cu", {"Program": SQUARE}, V=4, LANES=256, UNROLL=4)
build("columns_sum", "reduce.cu", {"Program": SUM}, V=8, LANES=32, UNROLL=4, COLUMNS=1)
build("columns_max", "reduce.cu", {"Program": LOAD32}, V=4, LANES=8, UNROLL=2, OUTER=2, INNER=2, COLUMNS=1, FOLD="Max", OUT="bf16")
for d, lanes, units, threads in [(64, 8, 1, 256), (256, 32, 1, 256), (768, 32, 3, 256), (1600, 32, 7, 256),
                                 (8192, 256, 4, 256)]:
    for what, programs in [("", PLAIN), ("_residual", RESIDUAL)][: 2 if d == 768 else 1]:
        build(f"norm_{d}{what}", "norm.cu", programs, V=8, LANES=lanes, UNITS=units, THREADS=threads, GAIN="f32",
              BIAS="f32", CENTER=int(d != 8192))
for d, lanes, units, threads in [(64, 8, 1, 256), (256, 32, 1, 256), (768, 32, 3, 256), (1600, 128, 2, 128),
                                 (8192, 256, 4, 256)]:
    build(f"grad_{d}", "norm_grad.cu", GRAD if d == 768 else GRAD_PLAIN, V=8, LANES=lanes, UNITS=units,
          THREADS=threads, GAIN="f32", CENTER=int(d != 8192))
build("norm_f32", "norm.cu", PLAIN32, V=4, LANES=32, UNITS=2, AXES=2, GAIN="f32")
build("grad_f32", "norm_grad.cu", GRAD32, V=4, LANES=32, UNITS=2, AXES=2)
build("gather", "gather.cu", V=8)
build("gather_f32", "gather.cu", T="f32", V=1, AXES=3)
for t, v in [("bf16", 8), ("f32", 4)]:
    for first in (1, 0):
        build(f"scatter_{t}_{first}", "scatter.cu", T=t, V=v, AXES=2 if t == "f32" else 1, FIRST=first)
for t, v in [("bf16", 8), ("u32", 4), ("bf16", 1), ("u32", 1), ("bf16", 2)]:
    build(f"copy_{t}_{v}", "copy.cu", T=t, V=v, AXES=3)
build("fill_f32", "fill.cu", T="f32", V=4)
build("fill_bf16", "fill.cu", T="bf16", V=2, AXES=2)
CE = {"ce_512": dict(LANES=512, THREADS=512, UNITS=4, SHARED=9), "ce_1024": dict(LANES=1024, THREADS=1024, UNITS=4, SHARED=13),
      "ce_walk": dict(LANES=512, THREADS=512, UNITS=0, SHARED=0), "ce_32": dict(LANES=32, THREADS=256, UNITS=4, SHARED=0),
      "ce_256": dict(LANES=256, THREADS=256, UNITS=4, SHARED=4)}
for name, constants in CE.items():
    build(name, "cross_entropy.cu", GRADIENT="bf16", **constants)
build("ce_given", "cross_entropy.cu", GRADIENT="bf16", GIVEN=1, **CE["ce_walk"])
build("ce_lse", "cross_entropy.cu", **CE["ce_walk"])
build("ce_f32", "cross_entropy.cu", LOGITS="f32", GRADIENT="f32", AXES=2, **CE["ce_512"])


def emit(folder):
    os.makedirs(folder, exist_ok=True)
    lib = os.path.join(folder, "lib")
    if not os.path.islink(lib):
        os.symlink(os.path.abspath(os.path.join(KERNELS, "lib")), lib)
    with open(os.path.join(folder, "builds.txt"), "w") as list_of_builds:
        for name, (file, programs, constants) in BUILDS.items():
            open(os.path.join(folder, name + ".cu"), "w").write(with_programs(file, programs))
            print(name, *[f"-D{k}={v}" for k, v in constants.items()], file=list_of_builds)


def constants_of(name):
    return {"THREADS": 256, "UNROLL": 4, "AXES": 1, "OUTER": 1, "INNER": 1, **BUILDS[name][2]}


# ---------------------------------------------------------------- maps
def map_params(buffers, clock, strides, sizes, v):
    """One flat axis may be ragged; `strides` in elements, for operands and then indices."""
    flat = len(sizes) == 1
    units, tail = (sizes[0] // v, sizes[0] % v) if flat else (int(np.prod(sizes)) // v, 0)
    by_unit = [s[:-1] + [s[-1] * v] for s in strides]
    inner = list(sizes[:-1]) + [cdiv(sizes[-1], v)]
    return packed([ptr(b) for b in buffers] + [ptr(clock)] + draws() +
                  space(by_unit, [s[-1] for s in strides], inner) + [("I", units), ("I", tail)]), units


def check_map(dev, name, sizes, orders=None, pads=None):
    c, program = constants_of("map_" + name), MAPS[name]
    operands = program.inputs + program.outputs
    rank, strides, arrays = len(sizes), [], []
    for i, (dtype, mode) in enumerate(operands):
        zero = [rank - 1] if mode == Z else [0] if mode == U and rank == 2 and dtype == "f32" else []
        order = list(range(rank))
        if mode == S:
            order = list(RNG.permutation(rank))
            while order[-1] == rank - 1:
                order = list(RNG.permutation(rank))
        own, count = place(sizes, order, c["V"] * 3 if rank > 1 else 0, zero)
        strides.append(own)
        arrays.append(random(count, dtype) if i < len(program.inputs) else nans(count, dtype))
    whole, _ = place(sizes, range(rank), 0)
    index = [[0] * (rank - 2) + [1, 0] if m == S else whole for m in program.indices]
    if len(index) == 2:
        index[1] = [3 * x for x in whole]
    n = len(program.inputs)
    grid = np.indices(sizes)
    where = [sum(g * s for g, s in zip(grid, own)) for own in index]
    values = [as_float(view(a, sizes, s), d) for a, s, (d, _) in zip(arrays, strides, program.inputs)]
    clock = Buffer(dev, np.array([CLOCK["seed"], CLOCK["step"], CLOCK["micro"], 0], np.uint64))
    wants, _ = program.evaluate(values, CLOCK, where)
    inputs = [Buffer(dev, a) for a in arrays[:n]]

    def run():
        outs = [Buffer(dev, a.copy()) for a in arrays[n:]]
        params, units = map_params(inputs + outs, clock, strides + index, sizes, c["V"])
        dev.launch("map_" + name, "map", params, (max(cdiv(units, c["THREADS"] * c["UNROLL"]), 1),), c["THREADS"])
        return [o.get() for o in outs]
    for i, got in enumerate(twice(run)):
        dtype = program.outputs[i][0]
        want = stored(len(got), sizes, strides[n + i], dtype, wants[i])
        close_stored(f"map_{name} {sizes} output {i}", got, want, dtype, 4)


def check_adamw(dev, n):
    g, p, m = (RNG.standard_normal(n).astype(np.float32) for _ in range(3))
    v = RNG.random(n).astype(np.float32)
    for finite in (1.0, 0.0):
        s = np.array([0.3, 1e-3, 1.1, 1e-4, finite], np.float32)

        def run():
            g_, s_ = Buffer(dev, g), Buffer(dev, s)
            b = [Buffer(dev, x.copy()) for x in (p, m, v)] + [Buffer(dev, nans(n, "bf16"))]
            each = [("Q", s_.ptr + 4 * i) for i in range(5)]
            strides = [4] * 4 + [0] * 5 + [4] * 4
            params = packed([ptr(g_)] + [ptr(x) for x in b[:3]] + each + [ptr(x) for x in b] + [("Q", 0)] + draws() +
                            space([[x] for x in strides], [x // 4 for x in strides], [n // 4]) + [("I", n // 4), ("I", n % 4)])
            dev.launch("map_adamw", "map", params, (max(cdiv(n // 4, 256), 1),), 256)
            return [x.get() for x in b]
        got = twice(run)
        G, M, V = g * 0.3, m.astype(float), v.astype(float)
        if finite:
            M, V = 0.9 * M + 0.1 * G, 0.95 * V + 0.05 * G * G
            want = p - (1e-4 * p + 1e-3 * M / (np.sqrt(V) * 1.1 + 1e-8))
        else:
            want = p
            assert (got[0] == p).all() and (got[1] == m).all() and (got[2] == v).all()
        for x, y, d in zip(got, (want, M, V, want), ("f32", "f32", "f32", "bf16")):
            close("adamw", x, y, d, 4)


# ---------------------------------------------------------------- reductions
def reduce_cut(c, outer, units):
    groups = c["THREADS"] // c["LANES"]
    if c.get("COLUMNS"):
        chunks, length = min(cdiv(1024, cdiv(units, c["LANES"])), cdiv(outer, 8 * groups)), outer
    else:
        chunks, length = min(cdiv(1024, max(outer, 1)), max(1, units // (c["LANES"] * c["UNROLL"] * 4))), units
    chunk = max(cdiv(length, max(chunks, 1)), 1)
    return max(cdiv(length, chunk), 1), chunk


def reduce_launch(dev, name, ptrs, out, partials, outer, inner, outer_strides, inner_strides):
    """Strides of operands, then of the output."""
    c = constants_of(name)
    v, units = c["V"], int(np.prod(inner)) // c["V"]
    tail = inner[0] % v if len(inner) == 1 else 0
    rows = int(np.prod(outer))
    chunks, chunk = reduce_cut(c, rows, units)
    kept = units * v if c.get("COLUMNS") else rows
    params = packed([("Q", x) for x in ptrs] + [("Q", 0), ("Q", out), ("Q", partials(chunks * kept))] + draws() +
                    space(outer_strides, [0] * len(outer_strides), outer) +
                    space([s[:-1] + [s[-1] * v] for s in inner_strides], [s[-1] for s in inner_strides],
                          list(inner[:-1]) + [cdiv(inner[-1], v)]) +
                    [("I", rows), ("I", units), ("I", tail), ("I", chunks), ("I", chunk)])
    across = cdiv(units, c["LANES"]) if c.get("COLUMNS") else cdiv(rows, c["THREADS"] // c["LANES"])
    dev.launch(name, "reduce", params, (across, chunks), c["THREADS"])
    if chunks > 1:
        dev.launch(name, "reduce_finish", params, (cdiv(kept, 32),), 1024)


def check_reduce(dev, name, outer, inner, pad):
    c = constants_of(name)
    columns, program = c.get("COLUMNS"), BUILDS[name][1]["Program"]
    dtype, out_dtype = program.inputs[0][0], c.get("OUT", "f32")
    sizes = list(outer) + list(inner)
    n = len(outer)
    order = list(RNG.permutation(n)) + list(range(n, len(sizes)))
    strides, count = place(sizes, order, pad)
    array = random(count, dtype)
    if name.endswith("max"):
        view(array, sizes, strides)[(1,) * len(sizes)] = nans(1, dtype)[0]
    x = as_float(view(array, sizes, strides), dtype)
    _, x = program.evaluate([x], CLOCK)
    axes = tuple(range(n)) if columns else tuple(range(n, len(sizes)))
    want = x.max(axis=axes) if c.get("FOLD") == "Max" else x.sum(axis=axes)
    kept = inner if columns else outer
    out_strides, out_count = place(kept, range(len(kept)), 5)
    zero_in, zero_out = [0] * len(inner), [0] * len(outer)
    source = Buffer(dev, array)

    def run():
        out = Buffer(dev, nans(out_count, out_dtype))
        scratch = []

        def partials(count):
            scratch.append(Buffer(dev, nans(max(count, 1), "f32")))
            return scratch[0].ptr
        reduce_launch(dev, name, [source.ptr], out.ptr, partials, outer, inner,
                      [strides[:n], zero_out if columns else out_strides],
                      [strides[n:], out_strides if columns else zero_in])
        scratch[0].get()
        return [out.get()]
    got, = twice(run)
    scale = np.sqrt(x.size / want.size) if c.get("FOLD") != "Max" else 1
    close_stored(name, got, stored(out_count, kept, out_strides, out_dtype, want), out_dtype, 4 * max(scale, 1))


# ---------------------------------------------------------------- norms
def norm_params(c, ptrs, gain, bias, clock, strides, row_sizes, width, eps):
    """strides: of each operand over the row axes; all are contiguous along the width."""
    return packed([("Q", x) for x in ptrs] + [("Q", gain), ("Q", bias), ("Q", clock)] + draws() +
                  space(strides, [1] * len(strides), row_sizes) +
                  [("I", int(np.prod(row_sizes))), ("I", width), ("f", eps)])


def grad_params(c, ptrs, gain, partials, sums, strides, row_sizes, width, eps):
    rows, groups = int(np.prod(row_sizes)), c["THREADS"] // c["LANES"]
    chunk = cdiv(cdiv(rows, 264), groups) * groups
    blocks = cdiv(rows, chunk)
    return packed([("Q", x) for x in ptrs] + [("Q", gain), ("Q", partials(blocks * 2 * width)), ("Q", sums[0]),
                  ("Q", sums[1]), ("q", 1), ("q", 1), ("Q", 0)] + draws() +
                  space(strides, [1] * len(strides), row_sizes) +
                  [("I", rows), ("I", width), ("I", chunk), ("I", blocks), ("f", eps)]), blocks


def statistics(x, center, eps):
    mean = x.mean(-1, keepdims=True) if center else 0.0
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    return (x - mean) * inverse, inverse


def check_norm(dev, name, row_sizes, width):
    c, programs = constants_of(name), BUILDS[name][1]
    dtypes = [d for p in programs.values() for d, _ in p.inputs + p.outputs]
    sizes, n = list(row_sizes) + [width], len(row_sizes)
    is_grad, center = name.startswith("grad"), c.get("CENTER", 1)
    outs = {"norm": [len(dtypes) - 1], "grad": [len(dtypes) - 1]}[name[:4]] + ([2] if "residual" in name else [])
    layouts = [place(sizes, list(RNG.permutation(n)) + [n], c["V"] * (i + 1)) for i in range(len(dtypes))]
    arrays = [nans(l[1], d) if i in outs else random(l[1], d) for i, (l, d) in enumerate(zip(layouts, dtypes))]
    x = [as_float(view(a, sizes, l[0]), d) for a, l, d in zip(arrays, layouts, dtypes)]
    gain = RNG.standard_normal(width).astype(np.float32) if c.get("GAIN") else np.ones(width, np.float32)
    bias = RNG.standard_normal(width).astype(np.float32)
    fixed = [Buffer(dev, g) for g in (gain, bias)]
    wants = {}
    if is_grad:
        unit, inverse = statistics(x[0], center, 1e-5)
        g = x[1] * gain
        dx = (g - (g.mean(-1, keepdims=True) if center else 0) - unit * (g * unit).mean(-1, keepdims=True)) * inverse
        if len(dtypes) == 4:
            dx = dx + x[2]
        wants[outs[0]] = dx
        sums = [(x[1] * unit).sum(tuple(range(n))), x[1].sum(tuple(range(n)))]
    else:
        source = x[0]
        if "residual" in name:
            source = wants[2] = widen(narrow(x[0] + x[1]))
        unit, _ = statistics(source, center, 1e-5)
        wants[outs[0]] = unit * gain + (bias if c.get("BIAS") else 0)

    def run():
        b = [Buffer(dev, a.copy()) for a in arrays]
        strides, ptrs = [l[0][:n] for l in layouts], [x.ptr for x in b]
        result, rows = [], int(np.prod(row_sizes))
        if is_grad:
            scratch, d = [], [Buffer(dev, nans(width, "f32")) for _ in range(2)]

            def partials(count):
                scratch.append(Buffer(dev, nans(count, "f32")))
                return scratch[0].ptr
            params, blocks = grad_params(c, ptrs, fixed[0].ptr, partials, [x.ptr for x in d], strides, row_sizes, width, 1e-5)
            dev.launch(name, "norm_grad", params, (blocks,), c["THREADS"])
            dev.launch(name, "norm_grad_finish", params, (cdiv(width, 32), 2), 1024)
            scratch[0].get()
            result = [x.get() for x in d]
        else:
            params = norm_params(c, ptrs, fixed[0].ptr, fixed[1].ptr, 0, strides, row_sizes, width, 1e-5)
            dev.launch(name, "norm_rows", params, (cdiv(rows, c["THREADS"] // c["LANES"]),), c["THREADS"])
        return [b[i].get() for i in outs] + result
    got = twice(run)
    for i, own in zip(outs, got):
        want = stored(len(own), sizes, layouts[i][0], dtypes[i], wants[i])
        # dx is rounded before the gradient of the residual is added, and may cancel with it.
        close_stored(f"{name} {sizes}", own, want, dtypes[i], 20 if len(dtypes) == 4 and is_grad else 6)
    if is_grad:
        close(name + " dgain", got[1], sums[0], "f32", 10)
        close(name + " dbias", got[2], sums[1], "f32", 10)


# ---------------------------------------------------------------- tables
def check_gather(dev, name, positions, batch_axes, width):
    """The first `batch_axes` of the positions are batch axes."""
    c = constants_of(name)
    t, v, n = c.get("T", "bf16"), c["V"], len(positions)
    first_row, table_rows, all_rows = 11, 37, 60
    table_sizes = list(positions[:batch_axes]) + [table_rows, width]
    table_strides, count = place(table_sizes, range(len(table_sizes)), v)
    if v == 1:
        table_strides, count = place(table_sizes, [len(table_sizes) - 1] + list(range(len(table_sizes) - 1)), 0)
    table = random(count, t)
    ids_sizes = positions[batch_axes:]
    ids = RNG.integers(0, 64, int(np.prod(ids_sizes))).astype(np.uint32)
    ids_strides = [0] * batch_axes + place(ids_sizes, range(len(ids_sizes)), 0)[0]
    sizes = list(positions) + [width]
    out_strides, out_count = place(sizes, list(range(len(sizes))), v)
    whole = np.zeros(table_sizes[:-2] + [all_rows + 4, width])
    whole[..., first_row:first_row + table_rows, :] = as_float(view(table, table_sizes, table_strides), t)
    whole[..., all_rows:, :] = np.nan
    at = ids.reshape(ids_sizes)
    want = np.stack([w[at] for w in whole.reshape(-1, all_rows + 4, width)]).reshape(sizes)
    a, b = Buffer(dev, table), Buffer(dev, ids)

    def run():
        out = Buffer(dev, nans(out_count, t))
        by = [table_strides[:batch_axes] + [0] * (n - batch_axes), ids_strides, out_strides[:n]]
        total = int(np.prod(sizes)) // v
        params = packed([ptr(a), ptr(b), ptr(out), ("q", table_strides[-2])] +
                        space(by, [table_strides[-1], 0, out_strides[-1]], positions) + divide(width // v) +
                        [("I", x) for x in (total, first_row, table_rows, all_rows)])
        dev.launch(name, "gather", params, (cdiv(total, 1024),), 256)
        return [out.get()]
    got, = twice(run)
    close_stored(name, got, stored(out_count, sizes, out_strides, t, want), t)


def scatter_params(p, pass_):
    """p: addresses and sizes by the names of the struct."""
    return packed([("Q", p[k]) for k in ("table", "ids", "rows", "keys0", "keys1", "order0", "order1", "counts", "bounds", "sums")] +
                  [("q", p["table_row"])] + space(p["positions"], [0, 1], p["sizes"]) +
                  space(p["batch"], [1, 1], [p["batches"]]) +
                  [("I", p[k]) for k in ("count", "tiles", "units", "batches", "first_row", "table_rows")] + [("I", pass_)])


def scatter_launch(dev, t, p):
    passes, stretches, slices = cdiv(p["table_rows"].bit_length(), 8), cdiv(p["count"], 128), cdiv(p["units"], 32)
    for i in range(passes):
        name, params = f"scatter_{t}_{int(i == 0)}", scatter_params(p, i)
        dev.launch(name, "scatter_count", params, (p["tiles"],), 256)
        dev.launch(name, "scatter_scan", params, (1,), 1024)
        dev.launch(name, "scatter_place", params, (p["tiles"],), 256)
    name, params = f"scatter_{t}_1", scatter_params(p, passes)
    dev.launch(name, "scatter_bounds", params, (cdiv(p["table_rows"] + 1, 256),), 256)
    dev.launch(name, "scatter_hot", params, (stretches, slices, p["batches"]), 32)
    dev.launch(name, "scatter_add", params, (cdiv(p["table_rows"], 8), slices, p["batches"]), 256)


def check_scatter(dev, t, ids, sizes, batches, table_rows, first_row, width, how="add"):
    """ids over positions of `sizes`; rows [positions.., batches, width]."""
    v, n = constants_of(f"scatter_{t}_1")["V"], len(ids)
    row_strides, row_count = place(list(sizes) + [batches, width], range(len(sizes) + 2), v)
    rows = random(row_count, t)
    x = as_float(view(rows, list(sizes) + [batches, width], row_strides), t).reshape(n, batches, width)
    table_dtype = "f32" if how == "add" else t
    table_strides, table_count = place([batches, table_rows, width], [0, 1, 2], 8)
    want = np.full((batches, table_rows, width), 0.0 if how == "add" else np.inf)
    own = ids.astype(np.int64) - first_row
    here = (own >= 0) & (own < table_rows)
    if how == "add":
        np.add.at(want, (slice(None), own[here]), x[here].transpose(1, 0, 2))
    else:
        want[:, own[here]] = x[here].transpose(1, 0, 2)
    fixed = [Buffer(dev, ids), Buffer(dev, rows)]

    def run():
        table, tiles = Buffer(dev, nans(table_count, table_dtype)), cdiv(n, 4096)
        words = [Buffer(dev, nans(k, "u32")) for k in (n, n, n, n, 256 * tiles, table_rows + 1)]
        sums = Buffer(dev, nans(cdiv(n, 128) * 2 * width * batches, "f32"))
        p = dict(zip(("keys0", "keys1", "order0", "order1", "counts", "bounds"), [w.ptr for w in words]),
                 table=table.ptr, ids=fixed[0].ptr, rows=fixed[1].ptr, sums=sums.ptr, table_row=table_strides[1],
                 positions=[place(sizes, range(len(sizes)), 0)[0], row_strides[:len(sizes)]], sizes=sizes,
                 batch=[[table_strides[0]], [row_strides[-2]]], batches=batches, count=n, tiles=tiles,
                 units=width // v, first_row=first_row, table_rows=table_rows)
        if how == "add":
            scatter_launch(dev, t, p)
        else:
            dev.launch(f"scatter_{t}_1", "scatter_set", scatter_params(p, 0), (cdiv(n, 8), cdiv(width // v, 32), batches), 256)
        [w.get() for w in words + [sums]]
        return [table.get()]
    got, = twice(run)
    full = stored(table_count, [batches, table_rows, width], table_strides, table_dtype, want)
    close_stored(f"scatter {how} {t}", got, full, table_dtype, 1 + np.sqrt(np.bincount(own[here]).max()))


def check_copy(dev, name, sizes, transposed):
    c = constants_of(name)
    t, v = c["T"], c["V"]
    other = [0, 1, 3, 2] if transposed else [1, 0, 2]
    a, na = place(sizes, other, 0 if v == 1 else 2 * v)
    b, nb = place(sizes, range(len(sizes)), 0 if v == 1 else v)
    source = random(na, t)
    want = nans(nb, t)
    view(want, sizes, b)[...] = view(source, sizes, a)
    held = Buffer(dev, source)

    def run():
        out = Buffer(dev, nans(nb, t))
        if transposed:   # axes: outer, outer, a (contiguous in the source), b (in the target)
            x, y = sizes[2], sizes[3]
            params = packed([ptr(held), ptr(out), ("q", a[3]), ("q", b[2])] +
                            space([a[:2] + [0], b[:2] + [0]], [0, 0], sizes[:2] + [1]) + divide(cdiv(x, 64)) +
                            [("I", 0), ("I", x), ("I", y)])
            dev.launch(name, "copy_transpose", params, (cdiv(x, 64) * cdiv(y, 64), sizes[0] * sizes[1]), 256)
        else:
            units = int(np.prod(sizes)) // v
            params = packed([ptr(held), ptr(out), ("q", 0), ("q", 0)] +
                            space([s[:2] + [v] for s in (a, b)], [1, 1], sizes[:2] + [sizes[2] // v]) + divide(1) +
                            [("I", units), ("I", 0), ("I", 0)])
            dev.launch(name, "copy", params, (cdiv(units, 1024),), 256)
        return [out.get()]
    got, = twice(run)
    assert got.tobytes() == want.tobytes(), (name, sizes)


def check_fill(dev):
    for name, sizes, strides, t, bits in [("fill_f32", [4099], [1], "f32", 0x40490fdb), ("fill_bf16", [17, 30], [38, 1], "bf16", 0x7f80)]:
        v, n = constants_of(name)["V"], 1 + sum((s - 1) * x for s, x in zip(sizes, strides))
        want = nans(n, t).view({"f32": np.uint32, "bf16": np.uint16}[t])
        view(want, sizes, strides)[...] = bits
        out, units = Buffer(dev, nans(n, t)), int(np.prod(sizes)) // v
        params = packed([ptr(out)] + space([strides[:-1] + [v]], [1], sizes[:-1] + [sizes[-1] // v]) +
                        [("I", units), ("I", sizes[0] % v if len(sizes) == 1 else 0), ("I", bits)])
        dev.launch(name, "fill", params, (cdiv(units, 1024),), 256)
        assert out.get().tobytes() == want.tobytes(), name


# ---------------------------------------------------------------- cross entropy
def ce_params(logits, gradient, each, ld, row_strides, row_sizes, first, count, vocab, first_row, all_rows, gradient_ld=None):
    return packed([("Q", logits), ("Q", gradient)] + [("Q", x) for x in each] + [("q", ld), ("q", gradient_ld or ld)] +
                  space([row_strides] * 6, [0] * 6, row_sizes) +
                  [("I", x) for x in (first, count, vocab, first_row, all_rows)])


def ce_launch(dev, name, params, count):
    c = constants_of(name)
    dev.launch(name, "cross_entropy", params, (cdiv(count, c["THREADS"] // c["LANES"]),), c["THREADS"],
               c["SHARED"] * c["LANES"] * 16)


def check_ce(dev, name, vocab, first, count, row_sizes=(40,), first_row=0, more=0):
    c = constants_of(name)
    dtype, grads = c.get("LOGITS", "bf16"), "GRADIENT" in c
    v = 8 if dtype == "bf16" else 4
    ld, rows = cdiv(vocab, v) * v + v, int(np.prod(row_sizes))
    array = random(count * ld, dtype)
    x = as_float(array.reshape(count, ld)[:, :vocab], dtype) * 4
    array.reshape(count, ld)[:, :vocab] = narrow(x) if dtype == "bf16" else x
    array.reshape(count, ld)[:, vocab:] = nans(1, dtype)[0]
    x = as_float(array.reshape(count, ld)[:, :vocab], dtype)
    all_rows = first_row + vocab + more
    targets = RNG.integers(first_row, first_row + vocab, rows).astype(np.uint32)
    weights = RNG.random(rows).astype(np.float32)
    targets[first] = all_rows + 3
    targets[first + 1], weights[first + 1] = all_rows + 5, 0.0
    if more:
        targets[first + 2] = all_rows - 1
    strides = place(row_sizes, list(range(len(row_sizes)))[::-1], 0)[0]
    order = np.arange(rows)
    at = np.ravel([sum(i * s for i, s in zip(np.unravel_index(r, row_sizes), strides)) for r in order])
    t, w = targets[at][first:first + count].astype(np.int64), weights[at][first:first + count].astype(np.float64)
    top = x.max(1, keepdims=True)
    lse = (top + np.log(np.exp(x - top).sum(1, keepdims=True)))[:, 0]
    given = np.full(rows, np.nan, np.float32)
    given[at[first:first + count]] = lse + (0.7 if c.get("GIVEN") else 0)
    if c.get("GIVEN"):
        lse = given[at[first:first + count]].astype(np.float64)
    own = t - first_row
    here = (own >= 0) & (own < vocab)
    hit = np.where(here, x[np.arange(count), np.where(here, own, 0)], np.where(t < all_rows, 0.0, np.nan))
    slope = np.exp(x - lse[:, None]) * w[:, None]
    slope[np.arange(count)[here], own[here]] -= w[here]
    ce = np.where(w == 0, 0, w * (lse - hit))
    fixed = [Buffer(dev, a) for a in (targets, weights, given)]

    def run():
        logits = Buffer(dev, array.copy())
        outs = [Buffer(dev, nans(rows, "f32")) for _ in range(3)]
        params = ce_params(logits.ptr, logits.ptr, [b.ptr for b in fixed + outs], ld, strides, row_sizes, first, count,
                           vocab, first_row, all_rows)
        ce_launch(dev, name, params, count)
        return [logits.get()] + [o.get() for o in outs]
    got = twice(run)
    for values, want, what in zip(got[1:], (ce, lse, hit), ("ce", "lse", "hit")):
        full = np.full(rows, np.inf)
        full[at[first:first + count]] = want
        close_stored(f"{name} {vocab} {what}", values, full, "f32", 4)
    g = got[0].reshape(count, ld)
    if not grads:
        assert got[0].tobytes() == array.tobytes()
        return
    units = cdiv(vocab, v) * v
    error = np.abs(as_float(g[:, :vocab], dtype) - slope)
    bound = (2.0**-8 if dtype == "bf16" else 1e-5) * np.abs(slope) + 1e-7
    assert (error <= bound).all(), (name, vocab, error.max(), (error / bound).max())
    assert (as_float(g[:, vocab:units], dtype) == 0).all() and (g[:, units:] == array.reshape(count, ld)[:, units:]).all() \
        or dtype == "f32"


def check(dev, small=False):
    """Every build; `small` leaves the large shapes out."""
    tests = []

    def add(f, *a, **k):
        tests.append((f, a, k))
    for n in (4099, 3, 64):
        add(check_adamw, n)
    for name in ("gelu", "gelu_grad", "add", "cast", "dropout"):
        [add(check_map, name, [n]) for n in (5003, 7, 8)]
    add(check_map, "bias", [37, 72])
    add(check_map, "every", [3, 5, 4, 14])
    add(check_map, "every", [2, 3, 33, 6])
    for n, pad in ((1003, 5), (32, 0), (7, 1)):
        add(check_reduce, "rows_sum", [13], [n], pad + (-(n + pad)) % 4)
    add(check_reduce, "rows_max", [3, 5], [4, 48], 8)
    for n in (100003, 17):
        add(check_reduce, "rows_all", [1], [n], 0)
    add(check_reduce, "rows_all", [3], [70000], 0)
    for rows, columns in ((2000, 264), (5, 8), (300, 768)):
        add(check_reduce, "columns_sum", [rows], [columns], 8)
    add(check_reduce, "columns_max", [7, 9], [3, 20], 4)
    for d, rows in ((64, 37), (256, 19), (768, 20), (1600, 9), (8192, 3)):
        add(check_norm, f"norm_{d}", [rows], d)
        add(check_norm, f"grad_{d}", [rows * (1 if small else 40)], d)
        if d < 8192:
            add(check_norm, f"norm_{d}", [rows], d - 8)
            add(check_norm, f"grad_{d}", [rows], d - 8)
    add(check_norm, "norm_768_residual", [21], 768)
    add(check_norm, "norm_f32", [5, 7], 236)
    add(check_norm, "grad_f32", [1, 700 if small else 7001], 236)
    add(check_gather, "gather", [300], 0, 72)
    add(check_gather, "gather_f32", [3, 5, 7], 1, 9)
    zipf = np.minimum(RNG.zipf(1.3, 9000), 400).astype(np.uint32)
    add(check_scatter, "bf16", zipf, [9000], 1, 300, 5, 264)
    add(check_scatter, "bf16", np.full(1000, 7, np.uint32), [1000], 1, 256, 0, 8)
    add(check_scatter, "f32", zipf[:6000], [60, 100], 2, 390, 0, 36)
    add(check_scatter, "f32", RNG.integers(0, 70000, 500).astype(np.uint32), [5, 100], 1, 66000, 100, 8)
    add(check_scatter, "bf16", RNG.permutation(200).astype(np.uint32)[:120], [120], 2, 150, 20, 72, how="set")
    for name in ("copy_bf16_8", "copy_u32_4", "copy_bf16_1", "copy_u32_1", "copy_bf16_2"):
        add(check_copy, name, [3, 5, 48], False)
        add(check_copy, name, [2, 3, 136, 200] if not name.endswith("1") else [2, 2, 67, 129], True)
    add(check_fill)
    for name, vocab in [("ce_32", 256), ("ce_32", 1021), ("ce_256", 16384), ("ce_256", 5001), ("ce_walk", 5001), ("ce_walk", 9),
                        ("ce_512", 50304), ("ce_512", 50257), ("ce_1024", 131072)]:
        add(check_ce, name, vocab, 3, 5 if vocab > 9999 else 13)
    add(check_ce, "ce_given", 4999, 3, 13, first_row=100, more=50)
    add(check_ce, "ce_lse", 4999, 3, 13, first_row=100, more=50)
    add(check_ce, "ce_f32", 4999, 3, 13, row_sizes=(4, 10))
    failed = 0
    for f, a, k in tests:
        try:
            f(dev, *a, **k)
        except AssertionError as e:
            failed += 1
            print("FAILED", f.__name__, [x for x in a if not isinstance(x, np.ndarray)], str(e)[:300], flush=True)
    print(f"{len(tests) - failed} of {len(tests)} checks passed", flush=True)
    return failed


# ---------------------------------------------------------------- timings
def median_ms(torch, run, copies, repeats=15):
    """Of run(i), i going around the copies of the buffers."""
    for i in range(3):
        run(i % copies)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i, (start, end) in enumerate(events):
        start.record()
        run(i % copies)
        end.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[repeats // 2]


def times(dev):
    torch = dev.torch
    F, bf16, f32 = torch.nn.functional, torch.bfloat16, torch.float32
    table = []

    def new(*sizes, dtype=bf16):
        return torch.randn(*sizes, device="cuda", dtype=f32).to(dtype) if np.prod(sizes) < 5e8 else \
            torch.zeros(*sizes, device="cuda", dtype=dtype).normal_()

    def note(what, nbytes, run, copies=1, peer=None):
        ms = median_ms(torch, run, copies)
        other = median_ms(torch, peer, copies) if peer else None
        table.append((what, nbytes, ms, other))
        print(f"{what:34} {ms * 1e3:9.1f} us {nbytes / ms / 1e6:7.0f} GB/s"
              + (f"  torch {other * 1e3:9.1f} us" if other else ""), flush=True)

    a, b = new(1 << 29), new(1 << 29)
    note("copy, 1 GiB", 2 * a.nbytes, lambda i: b.copy_(a))
    copy = table[0][1] / table[0][2]
    half = [x[: 1 << 26] for x in (a, b)]
    note("copy, 128 MiB", 2 * half[0].nbytes, lambda i: half[1].copy_(half[0]))
    del a, b
    n, d = 65536, 768
    x, y, z, w = (new(n, d) for _ in range(4))
    p = [t.data_ptr() for t in (x, y, z, w)]
    clock = torch.tensor([5, 1, 0, 0], device="cuda", dtype=torch.int64)

    def flat(name, ptrs, count, extra=0, strides=None):
        c = constants_of("map_" + name)
        v, strides = c["V"], strides or [1] * (len(ptrs) + extra)
        units = count // v
        params = packed([("Q", q) for q in ptrs] + [("Q", clock.data_ptr())] + draws() +
                        space([[s * v] for s in strides], strides, [units]) + [("I", units), ("I", count % v)])
        return lambda i: dev.launch("map_" + name, "map", params, (cdiv(units, c["THREADS"] * c["UNROLL"]),), c["THREADS"])
    big = x.nbytes
    for name in ("add", "add1", "add4"):
        note("map " + name + " bf16", 3 * big, flat(name, p[:3], n * d), peer=lambda i: torch.add(x, y, out=z))
    note("map gelu", 2 * big, flat("gelu", p[:2], n * d), peer=lambda i: F.gelu(x, approximate="tanh"))
    note("map gelu gradient", 3 * big, flat("gelu_grad", p[:3], n * d),
         peer=lambda i: torch.ops.aten.gelu_backward(y, x, approximate="tanh"))
    note("map dropout + residual", 3 * big, flat("dropout", p[:3], n * d, 1), peer=lambda i: F.dropout(x, 0.1) + y)
    wide = new(n, d, dtype=f32)
    note("map cast f32 to bf16", 3 * big, flat("cast", [wide.data_ptr(), p[0]], n * d), peer=lambda i: x.copy_(wide))
    row, one = new(d, dtype=f32), new(1, dtype=f32)
    c = constants_of("map_bias")
    params = packed([("Q", q) for q in (p[0], row.data_ptr(), one.data_ptr(), p[1], 0)] + draws() +
                    space([[d, 8], [0, 8], [0, 0], [d, 8]], [1, 1, 0, 1], [n, d // 8]) + [("I", n * d // 8), ("I", 0)])
    note("map bias, by rows", 2 * big, lambda i: dev.launch("map_bias", "map", params, (cdiv(n * d // 8, 512),), 256))
    count = 124_475_904
    s = torch.tensor([1.0, 1e-4, 1.0, 1e-6, 1.0], device="cuda")
    g, q, m, v = (torch.rand(count, device="cuda") * 1e-3 for _ in range(4))
    out = torch.empty(count, device="cuda", dtype=bf16)
    each = [g, q, m, v] + [s[i:] for i in range(5)] + [q, m, v, out]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(q.clone())], fused=True)
    optimizer.param_groups[0]["params"][0].grad = g
    note("map AdamW, 124M", 30 * count, flat("adamw", [t.data_ptr() for t in each], count, strides=[1] * 4 + [0] * 5 + [1] * 4),
         peer=lambda i: optimizer.step())
    scratch = torch.empty(1 << 22, device="cuda", dtype=f32)

    def reduction(name, source, outer, inner, strides):
        return lambda i: reduce_launch(dev, name, [source.data_ptr()], scratch[1 << 21:].data_ptr(),
                                       lambda c: scratch.data_ptr(), outer, inner, *strides)
    note("reduce squares to one, 124M", 4 * count, reduction("rows_all", g, [1], [count], [[[0], [1]], [[1], [0]]]),
         peer=lambda i: torch.linalg.vector_norm(g))
    del g, q, m, v, out, each, optimizer
    note("reduce columns 65536 x 768", big, reduction("columns_sum", x, [n], [d], [[[d], [0]], [[1], [1]]]),
         peer=lambda i: x.sum(0, dtype=f32))
    h = new(n, 4 * d)
    note("reduce columns 65536 x 3072", 4 * big, reduction("columns_sum", h, [n], [4 * d], [[[4 * d], [0]], [[1], [1]]]),
         peer=lambda i: h.sum(0, dtype=f32))
    note("reduce rows 65536 x 768 f32", 2 * big, reduction("rows_sum", wide, [n], [d], [[[d], [1]], [[1], [0]]]))
    del wide
    for d, rows in ((256, 196608), (768, 65536), (1600, 24576), (8192, 8192)):
        x, y, z, w = (new(rows, d) for _ in range(4))
        gain, bias = new(d, dtype=f32), new(d, dtype=f32)
        ptrs, size = [t.data_ptr() for t in (x, y, z, w)], x.nbytes
        fast = [t.to(bf16) for t in (gain, bias)]
        c = constants_of(f"norm_{d}")
        grid = (cdiv(rows, c["THREADS"] // c["LANES"]),)

        def params(own, count):
            return norm_params(c, own, gain.data_ptr(), bias.data_ptr(), 0, [[d]] * count, [rows], d, 1e-5)
        plain = params(ptrs[:2], 2)
        note(f"norm {rows} x {d}", 2 * size, lambda i: dev.launch(f"norm_{d}", "norm_rows", plain, grid, c["THREADS"]),
             peer=lambda i: F.layer_norm(x, (d,), *fast))
        if d == 768:
            both = params(ptrs, 4)
            note("norm + residual", 4 * size, lambda i: dev.launch("norm_768_residual", "norm_rows", both, grid, c["THREADS"]),
                 peer=lambda i: F.layer_norm(x + y, (d,), *fast))
        c = constants_of(f"grad_{d}")
        k = 4 if d == 768 else 3
        back, blocks = grad_params(c, ptrs[:k], gain.data_ptr(), lambda c: scratch.data_ptr(),
                                   [scratch[3 << 20:].data_ptr()] * 2, [[d]] * k, [rows], d, 1e-5)

        def gradient(i):
            dev.launch(f"grad_{d}", "norm_grad", back, (blocks,), c["THREADS"])
            dev.launch(f"grad_{d}", "norm_grad_finish", back, (cdiv(d, 32), 2), 1024)
        _, mean, rstd = torch.ops.aten.native_layer_norm(x, (d,), *fast, 1e-5)
        note(f"norm gradient {rows} x {d}" + (" + residual" if k == 4 else ""), k * size, gradient,
             peer=lambda i: torch.ops.aten.native_layer_norm_backward(y, x, (d,), mean, rstd, *fast, [True] * 3))
    n, d, vocab = 65536, 768, 50304
    x, y = new(n, d), new(vocab, d)
    ids = torch.from_numpy(np.minimum(RNG.zipf(1.1, n), vocab).astype(np.int32) - 1).cuda()
    params = packed([("Q", y.data_ptr()), ("Q", ids.data_ptr()), ("Q", x.data_ptr()), ("q", d)] +
                    space([[0], [1], [d]], [1, 0, 1], [n]) + divide(d // 8) + [("I", i) for i in (n * d // 8, 0, vocab, vocab)])
    note("gather 65536 of 50304 x 768", 2 * x.nbytes, lambda i: dev.launch("gather", "gather", params, (cdiv(n * d // 8, 1024),), 256),
         peer=lambda i: F.embedding(ids, y))
    words = torch.empty(4 * n + 256 * 16 + vocab + 1, device="cuda", dtype=torch.int32)
    sums = torch.empty(n // 128 * 2 * d, device="cuda", dtype=f32)
    grad, base = torch.empty(vocab, d, device="cuda", dtype=f32), words.data_ptr()
    at = {k: base + 4 * o for k, o in zip(("keys0", "keys1", "order0", "order1", "counts", "bounds"),
                                          (0, n, 2 * n, 3 * n, 4 * n, 4 * n + 4096))}
    p = dict(at, table=grad.data_ptr(), ids=ids.data_ptr(), rows=x.data_ptr(), sums=sums.data_ptr(), table_row=d,
             positions=[[1], [d]], sizes=[n], batch=[[0], [0]], batches=1, count=n, tiles=16, units=d // 8, first_row=0, table_rows=vocab)
    long = ids.long()
    note("scatter add, Zipf 1.1", x.nbytes + grad.nbytes, lambda i: scatter_launch(dev, "bf16", p),
         peer=lambda i: torch.ops.aten.embedding_dense_backward(x, long, vocab, -1, False))
    even = torch.randint(0, vocab, (n,), device="cuda", dtype=torch.int32)
    p2 = dict(p, ids=even.data_ptr())
    note("scatter add, even ids", x.nbytes + grad.nbytes, lambda i: scatter_launch(dev, "bf16", p2))
    for name, t, e in (("copy_bf16_8", bf16, 2), ("copy_u32_4", f32, 4)):
        x = new(8, 12, 1024, 512, dtype=t)
        y = torch.empty(8, 12, 512, 1024, device="cuda", dtype=t)
        params = packed([("Q", x.data_ptr()), ("Q", y.data_ptr()), ("q", 512), ("q", 1024)] +
                        space([[12 * 1024 * 512, 1024 * 512, 0]] * 2, [0, 0], [8, 12, 1]) + divide(8) + [("I", i) for i in (0, 512, 1024)])
        note(f"transpose, {e} bytes", 2 * x.nbytes, lambda i: dev.launch(name, "copy_transpose", params, (8 * 16, 96), 256),
             peer=lambda i: y.copy_(x.transpose(2, 3)))
    rows, vocab = 8192, 50304
    x = new(rows, vocab)
    targets = torch.randint(0, vocab, (rows,), device="cuda", dtype=torch.int32)
    ce, size = torch.empty(3, rows, device="cuda"), x.nbytes
    given = torch.full((rows,), 11.3, device="cuda")
    leaf, long = x.detach().clone().requires_grad_(True), targets.long()

    def peer(i):
        leaf.grad = None
        F.cross_entropy(leaf, long, reduction="sum").backward()
    y = torch.empty_like(x)
    for name, passes in (("ce_512", 2), ("ce_1024", 2), ("ce_walk", 3), ("ce_given", 2), ("ce_lse", 1)):
        params = ce_params(x.data_ptr(), y.data_ptr(), [targets.data_ptr(), 0, given.data_ptr()] + [ce[i].data_ptr() for i in range(3)],
                           vocab, [1], [rows], 0, rows, vocab, 0, vocab)
        note(f"cross entropy 8192 x 50304, {name[3:]}", passes * size, lambda i: ce_launch(dev, name, params, rows),
             peer=peer if name == "ce_512" else None)
    print(f"\n{'kernel':34} {'us':>9} {'GB/s':>7} {'of copy':>8} {'torch us':>9}")
    for what, nbytes, ms, other in table:
        print(f"{what:34} {ms * 1e3:9.1f} {nbytes / ms / 1e6:7.0f} {nbytes / ms / copy:8.2f} {other * 1e3 if other else 0:9.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["emit"]:
        emit(sys.argv[2])
    else:
        gpu = Gpu(sys.argv[2])
        failures = check(gpu)
        times(gpu)
        sys.exit(failures > 0)
