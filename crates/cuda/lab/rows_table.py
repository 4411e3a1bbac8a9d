"""Checks of gather, scatter, copies, fill and cross entropy against float64."""
from rows_builds import *

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
                  [("I", p[k]) for k in ("count", "tiles", "units", "batches", "first_row", "table_rows", "passes")] + [("I", pass_)])


def scatter_sizes(count, table_rows, width, batches):
    """Passes, tiles, words of the counts, f32 of the sums."""
    passes, tiles = cdiv(table_rows.bit_length(), 8), cdiv(count, 2048)
    return passes, tiles, passes * tiles * 256, cdiv(count, 64) * 2 * width * batches


def scatter_launches(dev, name, p):
    """A function that launches; the parameters are made once."""
    stretches, slices, count = cdiv(p["count"], 64), cdiv(p["units"], 32), cdiv(p["table_rows"] + 1, 256)
    params = [scatter_params(p, i) for i in range(p["passes"])]
    steps = [("scatter_count", params[0], (p["tiles"],))]
    steps += [("scatter_place", own, (p["tiles"],)) for own in params]
    steps += [("scatter_runs", params[0], (cdiv(stretches, 8) + count, slices, p["batches"])),
              ("scatter_add", params[0], (cdiv(p["table_rows"], 32), slices, p["batches"]))]

    def step(k):
        entry, own, grid = steps[k]
        dev.launch(name, entry, own, grid, 256)

    def launch(i=0):
        for k in range(len(steps)):
            step(k)
    launch.steps, launch.step = steps, step
    return launch


def check_scatter(dev, t, ids, sizes, batches, table_rows, first_row, width, how="add"):
    """ids over positions of `sizes`; rows [positions.., batches, width]."""
    v, n = constants_of(f"scatter_{t}")["V"], len(ids)
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
        table = Buffer(dev, nans(table_count, table_dtype))
        passes, tiles, counts, kept = scatter_sizes(n, table_rows, width, batches)
        words = [Buffer(dev, nans(k, "u32")) for k in (n, n, n, n, counts, table_rows + 1)]
        sums = Buffer(dev, nans(kept, "f32"))
        p = dict(zip(("keys0", "keys1", "order0", "order1", "counts", "bounds"), [w.ptr for w in words]),
                 table=table.ptr, ids=fixed[0].ptr, rows=fixed[1].ptr, sums=sums.ptr, table_row=table_strides[1],
                 positions=[place(sizes, range(len(sizes)), 0)[0], row_strides[:len(sizes)]], sizes=sizes,
                 batch=[[table_strides[0]], [row_strides[-2]]], batches=batches, count=n, tiles=tiles, passes=passes,
                 units=width // v, first_row=first_row, table_rows=table_rows)
        if how == "add":
            scatter_launches(dev, f"scatter_{t}", p)()
        else:
            dev.launch(f"scatter_{t}", "scatter_set", scatter_params(p, 0), (cdiv(n, 8), cdiv(width // v, 32), batches), 256)
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
               c["SHARED"] * c["THREADS"] * 16)


def check_ce(dev, name, vocab, first, count, row_sizes=(40,), first_row=0, more=0):
    c = constants_of(name)
    dtype, grads = c.get("LOGITS", "bf16"), "GRADIENT" in c
    v = 8 if dtype == "bf16" else 4
    ld, rows = cdiv(vocab, v) * v + v, int(np.prod(row_sizes))
    array = random(count * ld, dtype)
    x = as_float(array.reshape(count, ld)[:, :vocab], dtype) * 4
    x[1, -1] = 300  # by far the largest, and after the whole units where there is a rest
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
