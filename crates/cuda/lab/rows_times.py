"""Times of the row kernels, beside the copy bandwidth and PyTorch."""
from rows_element import *
from rows_table import *

def median_ms(torch, run, copies, repeats=15):
    """Of run(i), i going around the copies of the buffers: trains of runs, which the device finds
    queued when it comes to them, so that no time of the host counts."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i in range(3):
        run(i % copies)
    torch.cuda.synchronize()
    events[0][0].record()
    run(0)
    events[0][1].record()
    torch.cuda.synchronize()
    train = max(1, min(10, int(0.3 / events[0][0].elapsed_time(events[0][1]))))
    torch.cuda._sleep(30_000_000)
    for i, (start, end) in enumerate(events):
        start.record()
        for k in range(train):
            run((i * train + k) % copies)
        end.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[repeats // 2] / train


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
        print(f"{what:48} {ms * 1e3:9.1f} us {nbytes / ms / 1e6:7.0f} GB/s"
              + (f"  torch {other * 1e3:9.1f} us" if other else ""), flush=True)

    a, b = new(1 << 29), new(1 << 29)
    note("copy, 1 GiB", 2 * a.nbytes, lambda i: b.copy_(a))
    copy = table[0][1] / table[0][2]
    half = [x[: 1 << 26] for x in (a, b)]
    note("copy, 128 MiB", 2 * half[0].nbytes, lambda i: half[1].copy_(half[0]))
    part = [[x[i << 23:(i + 1) << 23] for i in range(8)] for x in (a, b)]
    note("copy, 16 MiB", 2 * part[0][0].nbytes, lambda i: part[1][i].copy_(part[0][i]), 8)
    del a, b, half, part
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
    for name in ("cast", "cast4"):
        note(f"map {name} f32 to bf16", 3 * big, flat(name, [wide.data_ptr(), p[0]], n * d), peer=lambda i: x.copy_(wide))
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
    scratch = torch.empty(1 << 24, device="cuda", dtype=f32)

    def reduction(name, sources, outer, inner, strides, waves=None):
        each = [reduce_launches(dev, name, [x.data_ptr()], scratch[1 << 23:].data_ptr(),
                                lambda c: scratch.data_ptr(), outer, inner, *strides, waves) for x in sources]
        return lambda i: each[i]()

    def columns(n, d, dtype, name=None, waves=None):
        """Bias gradients, of as many copies as the L2 cache cannot hold."""
        v, t = (8, "") if dtype == bf16 else (4, "f32_")
        lanes = min((32, 16, 8), key=lambda l: cdiv(d // v, l) * l)
        copies = cdiv(200e6, n * d * 16 // v)
        sources = [new(n, d, dtype=dtype) for _ in range(copies)]
        label = f"reduce columns {n} x {d} {'f32' if t else 'bf16'}" + (f", {name}" if name else "") + (f", {waves}x" if waves else "")
        note(label, sources[0].nbytes, reduction(name or f"columns_{t}{lanes}", sources, [n], [d], [[[d], [0]], [[1], [1]]], waves),
             copies, None if name or waves else lambda i: sources[i].sum(0, dtype=f32))
    note("reduce squares to one, 124M", 4 * count, reduction("rows_all", [g], [1], [count], [[[0], [1]], [[1], [0]]]),
         peer=lambda i: torch.linalg.vector_norm(g))
    del g, q, m, v, out, each, optimizer
    for width in (64, 256, 768, 1600, 3072, 8192):
        for dtype in (bf16, f32):
            columns(n if width < 8192 else n // 4, width, dtype)
    for width in (256, 768):
        for name, waves in (("columns_32", 2), ("columns_32", 4), ("columns_256_threads", None), ("columns_256_threads", 2),
                            ("columns_8_rows", None)):
            columns(n, width, bf16, name, waves)
    for name in ("rows_sum", "rows_sum_3", "rows_sum_6"):
        note(f"reduce rows 65536 x 768 f32, {name[9:] or 2} in flight", 2 * big, reduction(name, [wide], [n], [d], [[[d], [1]], [[1], [0]]]))
    del wide
    for d, rows in ((256, 196608), (512, 98304), (768, 65536), (1024, 49152), (1600, 24576), (2048, 24576), (4096, 12288), (8192, 8192)):
        x, y, z, w = (new(rows, d) for _ in range(4))
        gain, bias = new(d, dtype=f32), new(d, dtype=f32)
        ptrs, size = [t.data_ptr() for t in (x, y, z, w)], x.nbytes
        fast = [t.to(bf16) for t in (gain, bias)]

        def params(own, count):
            return norm_params(c, own, gain.data_ptr(), bias.data_ptr(), 0, [[d]] * count, [rows], d, 1e-5)
        for own in [o for o in (f"norm_{d}", f"norm_{d}x") if o in BUILDS]:
            c = constants_of(own)
            grid, plain = (cdiv(rows, c["THREADS"] // c["LANES"]),), params(ptrs[:2], 2)
            note(f"{own} of {rows} rows", 2 * size, lambda i: dev.launch(own, "norm_rows", plain, grid, c["THREADS"]),
                 peer=lambda i: F.layer_norm(x, (d,), *fast))
        if d == 768:
            both = params(ptrs, 4)
            note("norm + residual", 4 * size, lambda i: dev.launch("norm_768_residual", "norm_rows", both, grid, c["THREADS"]),
                 peer=lambda i: F.layer_norm(x + y, (d,), *fast))
        k = 4 if d == 768 else 3
        _, mean, rstd = torch.ops.aten.native_layer_norm(x, (d,), *fast, 1e-5)
        for own in [o for o in (f"grad_{d}{x}" for x in ("", "a", "b", "c")) if o in BUILDS]:
            c = constants_of(own)
            back, blocks = grad_params(own, c, ptrs[:k], gain.data_ptr(), lambda c: scratch.data_ptr(),
                                       [scratch[1 << 23:].data_ptr()] * 2, [[d]] * k, [rows], d, 1e-5)

            def gradient(i):
                dev.launch(own, "norm_grad", back, (blocks,), c["THREADS"])
                dev.launch(own, "norm_grad_finish", back, (cdiv(d, 32), 2), 1024)
            note(f"{own} of {rows} rows" + (" + residual" if k == 4 else ""), k * size, gradient,
                 peer=lambda i: torch.ops.aten.native_layer_norm_backward(y, x, (d,), mean, rstd, *fast, [True] * 3))
    n, d, vocab = 65536, 768, 50304
    x, y = new(n, d), new(vocab, d)
    ids = torch.from_numpy(np.minimum(RNG.zipf(1.1, n), vocab).astype(np.int32) - 1).cuda()
    params = packed([("Q", y.data_ptr()), ("Q", ids.data_ptr()), ("Q", x.data_ptr()), ("q", d)] +
                    space([[0], [1], [d]], [1, 0, 1], [n]) + divide(d // 8) + [("I", i) for i in (n * d // 8, 0, vocab, vocab)])
    note("gather 65536 of 50304 x 768", 2 * x.nbytes, lambda i: dev.launch("gather", "gather", params, (cdiv(n * d // 8, 1024),), 256),
         peer=lambda i: F.embedding(ids, y))
    long = ids.long()
    even = torch.randint(0, vocab, (n,), device="cuda", dtype=torch.int32)
    grad = torch.empty(vocab, d, device="cuda", dtype=f32)
    for what, own, peer in (("Zipf 1.1", ids, lambda i: torch.ops.aten.embedding_dense_backward(x, long, vocab, -1, False)), ("even ids", even, None)):
        for name in ("bf16_4", "bf16"):
            passes, tiles, counts, kept = scatter_sizes(n, vocab, d, 1)
            words = torch.empty(4 * n + counts + vocab + 1, device="cuda", dtype=torch.int32)
            sums = torch.empty(kept, device="cuda", dtype=f32)
            at = {k: words.data_ptr() + 4 * o for k, o in zip(("keys0", "keys1", "order0", "order1", "counts", "bounds"),
                                                              (0, n, 2 * n, 3 * n, 4 * n, 4 * n + counts))}
            p = dict(at, table=grad.data_ptr(), ids=own.data_ptr(), rows=x.data_ptr(), sums=sums.data_ptr(), table_row=d,
                     positions=[[1], [d]], sizes=[n], batch=[[0], [0]], batches=1, count=n, tiles=tiles, passes=passes,
                     units=d // constants_of(f"scatter_{name}")["V"], first_row=0, table_rows=vocab)
            whole = scatter_launches(dev, f"scatter_{name}", p)
            note(f"scatter add, {what}, {name}", x.nbytes + grad.nbytes, whole, peer=peer if name == "bf16" else None)
        for i, (entry, _, _) in enumerate(whole.steps):
            whole()  # the steps before it may have run more than once
            note(f"  its {entry}", 0, lambda _: whole.step(i))
    for name, t, e in (("copy_bf16_8", bf16, 2), ("copy_u32_4", f32, 4)):
        x = new(8, 12, 1024, 512, dtype=t)
        y = torch.empty(8, 12, 512, 1024, device="cuda", dtype=t)
        params = packed([("Q", x.data_ptr()), ("Q", y.data_ptr()), ("q", 512), ("q", 1024)] +
                        space([[12 * 1024 * 512, 1024 * 512, 0]] * 2, [0, 0], [8, 12, 1]) + divide(8) + [("I", i) for i in (0, 512, 1024)])
        note(f"transpose, {e} bytes", 2 * x.nbytes, lambda i: dev.launch(name, "copy_transpose", params, (8 * 16, 96), 256),
             peer=lambda i: y.copy_(x.transpose(2, 3)))
    for rows, vocab, names in ((8192, 50304, (("ce_512", 2), ("ce_1024", 2), ("ce_1024x2", 2), ("ce_walk", 3), ("ce_walk_1024", 3), ("ce_given", 2), ("ce_lse", 1))),
                               (3072, 131072, (("ce_1024", 2), ("ce_walk", 3), ("ce_walk_1024", 3)))):
        x = new(rows, vocab)
        targets = torch.randint(0, vocab, (rows,), device="cuda", dtype=torch.int32)
        ce, size = torch.empty(3, rows, device="cuda"), x.nbytes
        given = torch.full((rows,), 11.3, device="cuda")
        leaf, long = x.detach().clone().requires_grad_(True), targets.long()

        def peer(i):
            leaf.grad = None
            F.cross_entropy(leaf, long, reduction="sum").backward()
        y = torch.empty_like(x)
        for name, passes in names:
            params = ce_params(x.data_ptr(), y.data_ptr(), [targets.data_ptr(), 0, given.data_ptr()] + [ce[i].data_ptr() for i in range(3)],
                               vocab, [1], [rows], 0, rows, vocab, 0, vocab)
            note(f"cross entropy {rows} x {vocab}, {name[3:]}", passes * size, lambda i: ce_launch(dev, name, params, rows),
                 peer=peer if name == names[0][0] else None)
    print(f"\n{'kernel':48} {'us':>9} {'GB/s':>7} {'of copy':>8} {'torch us':>9}")
    for what, nbytes, ms, other in table:
        print(f"{what:48} {ms * 1e3:9.1f} {nbytes / ms / 1e6:7.0f} {nbytes / ms / copy:8.2f} {other * 1e3 if other else 0:9.1f}")
