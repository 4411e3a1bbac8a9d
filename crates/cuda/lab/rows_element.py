"""Checks of maps, reductions and norms against float64."""
from rows_builds import *

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


def check_function(dev, f):
    """The largest error in units in the last place, which lib/math.cuh promises."""
    limit = {"exp": 2, "ln": 1.5, "sigmoid": 3, "sqrt": 0.51, "rsqrt": 1.51, "recip": 0.51}.get(f, 2.5)
    edge = FUNCTIONS[f]
    x = np.concatenate([RNG.uniform(-edge, edge, 1 << 14), edge * np.exp(-RNG.uniform(0, 60, 1 << 14))]).astype(np.float32)
    x = np.abs(x) if f in ("ln", "sqrt", "rsqrt", "recip") else x
    special = np.array([0, np.inf, -np.inf, np.nan], np.float32)
    n = len(x) + 4
    source, out = Buffer(dev, np.concatenate([x, special])), Buffer(dev, nans(n, "f32"))
    params, units = map_params([source, out], None, [[1], [1]], [n], 4)
    dev.launch("map_f_" + f, "map", params, (cdiv(units, 256),), 256)
    got = out.get().astype(np.float64)
    with np.errstate(all="ignore"):
        want = UNARY[f](np.concatenate([x, special]).astype(np.float64))
    assert ((got[-4:] == want[-4:].astype(np.float32)) | (np.isnan(got[-4:]) & np.isnan(want[-4:]))).all(), (f, got[-4:])
    with np.errstate(over="ignore"):
        nearest = want[:-4].astype(np.float32)
    normal = (np.abs(nearest) > 1.2e-38) & np.isfinite(nearest)
    error = (np.abs(got[:-4] - want[:-4])[normal] / np.spacing(np.abs(nearest[normal])).astype(np.float64)).max()
    assert error < limit, (f, error)


# ---------------------------------------------------------------- reductions
def reduce_cut(c, outer, units, waves=None):
    """Chunks, and the length of one. `waves` other than reduce.cu's own are for measurements."""
    groups = c["THREADS"] // c["LANES"]
    if c.get("COLUMNS"):
        across, length = cdiv(units, c["LANES"]), outer
        blocks = (waves or (4 if across > 32 else 1)) * 132 * 1024 // c["THREADS"]
        chunks = min(blocks // max(across, 1), cdiv(outer, c["UNROLL"] * groups))
    else:
        chunks, length = min(cdiv(1024, max(outer, 1)), max(1, units // (c["LANES"] * c["UNROLL"] * 4))), units
    chunk = max(cdiv(length, max(chunks, 1)), 1)
    return max(cdiv(length, chunk), 1), chunk


def reduce_launches(dev, name, ptrs, out, partials, outer, inner, outer_strides, inner_strides, waves=None):
    """A function that launches. Strides of operands, then of the output."""
    c = constants_of(name)
    v, units = c["V"], int(np.prod(inner)) // c["V"]
    tail = inner[0] % v if len(inner) == 1 else 0
    rows = int(np.prod(outer))
    chunks, chunk = reduce_cut(c, rows, units, waves)
    kept = units * v if c.get("COLUMNS") else rows
    params = packed([("Q", x) for x in ptrs] + [("Q", 0), ("Q", out), ("Q", partials(chunks * kept))] + draws() +
                    space(outer_strides, [0] * len(outer_strides), outer) +
                    space([s[:-1] + [s[-1] * v] for s in inner_strides], [s[-1] for s in inner_strides],
                          list(inner[:-1]) + [cdiv(inner[-1], v)]) +
                    [("I", rows), ("I", units), ("I", tail), ("I", chunks), ("I", chunk)])
    across = cdiv(units, c["LANES"]) if c.get("COLUMNS") else cdiv(rows, c["THREADS"] // c["LANES"])

    def launch(i=0):
        dev.launch(name, "reduce", params, (across, chunks), c["THREADS"])
        if chunks > 1:
            dev.launch(name, "reduce_finish", params, (cdiv(kept, 32),), 1024)
    return launch


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
        reduce_launches(dev, name, [source.ptr], out.ptr, partials, outer, inner,
                        [strides[:n], zero_out if columns else out_strides],
                        [strides[n:], out_strides if columns else zero_in])()
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


def grad_params(name, c, ptrs, gain, partials, sums, strides, row_sizes, width, eps):
    rows, groups = int(np.prod(row_sizes)), c["THREADS"] // c["LANES"]
    chunk = cdiv(cdiv(rows, BLOCKS[name]), groups) * groups
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
            params, blocks = grad_params(name, c, ptrs, fixed[0].ptr, partials, [x.ptr for x in d], strides, row_sizes, width, 1e-5)
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
