"""Correctness cases of the products."""

import math

import torch

from gemm_host import MapError, epilogue_params, general as run_general, hopper as run_hopper, load
from gemm_variants import VARIANTS

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
torch.manual_seed(7)


class Array:
    """A view [b0, b1, b2, rows, cols] inside a buffer of NaN, and what must stay as it is."""

    def __init__(self, sizes, dtype, order="cols", pad=8, fill=True, repeat=(), start=8):
        *batch, rows, cols = sizes
        step = 1
        if order == "any":  # no axis is contiguous
            step = 3
        inner, outer = (cols, rows) if order != "rows" else (rows, cols)
        line = inner * step + pad
        if pad % 8 == 0 and step == 1:
            line = -(-inner // 8) * 8 + pad
        strides, block = [0, 0, 0], outer * line + (8 if pad % 8 == 0 else 5)
        for i in (2, 1, 0):
            if i in repeat:
                continue
            strides[i] = block
            block *= batch[i]
        matrix = [line, step] if order != "rows" else [step, line]
        self.flat = torch.full((start + block + 64,), math.nan, device="cuda", dtype=dtype)
        self.start, self.sizes, self.strides = start, list(sizes), strides + matrix
        self.view = self.of(self.flat)
        if fill:
            own = [1 if i in repeat else b for i, b in enumerate(batch)] + [rows, cols]
            self.flat.as_strided(own, self.strides, start).copy_(
                torch.randn(own, device="cuda").to(dtype))
        self.before = self.flat.clone()

    def of(self, flat):
        return flat.as_strided(self.sizes, self.strides, self.start)

    def reset(self):
        self.flat.copy_(self.before)

    def stray(self):
        """How many elements outside of the view have changed."""
        bits = BITS[self.flat.dtype]
        changed = self.flat.view(bits) != self.before.view(bits)
        self.of(changed)[...] = False
        return int(changed.sum())


def error(out, wanted):
    out, wanted = out.double(), wanted.double()
    return float((out - wanted).norm() / wanted.norm())


COUNTS = {"cases": 0, "bad": 0}


def verdict(name, outs, refs, arrays, calls, work, limit):
    """Runs twice from the same start, compares with the references and between the runs."""
    bits = []
    for _ in range(2):
        for x in arrays:
            x.reset()
        if work is not None:
            work.fill_(math.nan)
        for call in calls:
            call()
        torch.cuda.synchronize()
        bits.append([x.flat.clone() for x in outs])
    same = all(torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype])) for a, b in zip(*bits))
    errors = [error(x.view, r) for x, r in zip(outs, refs)]
    stray = sum(x.stray() for x in outs)
    ok = all(e < limit[x.view.dtype] for e, x in zip(errors, outs)) and same and stray == 0
    COUNTS["cases"] += 1
    if not ok:
        COUNTS["bad"] += 1
        first = outs[0].view.double() - refs[0].double()
        size = refs[0].double().abs()
        where = ~(first.abs() < 0.05 * size.mean() + 0.02 * size)
        places = where.nonzero()[:3].tolist()
        print(f"BAD {name}: errors {['%.2e' % e for e in errors]} same bits {same} stray {stray}, "
              f"{int(where.sum())} of {where.numel()} elements off, first {places}", flush=True)


LIMIT = {torch.float32: 2e-5, torch.bfloat16: 3e-3}


def gelu_parts(x):
    s = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    slope = s + 2 * x * s * (1 - s) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return x * s, slope


def case(folder, name, sizes, **more):
    try:
        run_case(folder, name, sizes, **more)
    except MapError as refusal:
        COUNTS["cases"] += 1
        COUNTS["bad"] += 1
        print(f"BAD {name} {sizes}: {refusal}", flush=True)


def run_case(folder, name, sizes, batch=(1, 1, 1), a_repeat=(), b_repeat=(), orders=None,
             pads=(8, 8, 8), alpha=1.0, splits=1, k_outer=1):
    file, defs = VARIANTS[name]
    module = load(folder, name, file, defs)
    m, n, k = sizes
    hopper = file != "gemm.cu"
    if orders is None:
        keys = ("A_K", "B_K") if hopper else ("A_LAYOUT", "B_LAYOUT")
        contiguous = [defs[key] == (1 if hopper else 0) for key in keys]
        orders = ["cols" if x else "rows" for x in contiguous]
    a_type = torch.float32 if defs.get("A_F32") else torch.bfloat16
    b_type = torch.float32 if defs.get("B_F32") else torch.bfloat16
    a = Array([*batch, m, k * k_outer], a_type, orders[0], pads[0], repeat=a_repeat)
    b = Array([*batch, n, k * k_outer], b_type, orders[1], pads[1], repeat=b_repeat)
    # f32 elements that the tensor cores round to bf16 are compared as such
    rounds = not defs.get("COMPUTE_F32")
    rounded = lambda x, t: x.view.bfloat16() if rounds and t == torch.float32 else x.view
    product = alpha * (rounded(a, a_type).double() @ rounded(b, b_type).double().mT)
    ep = defs.get("EPILOGUE", "store").replace("<lib/gemm_", "").replace(".cuh>", "")
    c_order = "cols" if defs.get("C_WIDE", 1) else "any"
    out = lambda dtype, fill=False: Array([*batch, m, n], dtype, c_order, pads[2], fill)
    if ep == "store":
        c_type = torch.bfloat16 if defs.get("C_BF16") else torch.float32
        c = out(c_type, bool(defs.get("ACCUMULATE")))
        refs = [product + c.view.double() if defs.get("ACCUMULATE") else product]
        outs = operands = [c]
    elif ep == "bias_gelu":
        bias = Array([1, 1, 1, 1, n], torch.bfloat16)
        h, y = out(torch.bfloat16), out(torch.bfloat16)
        sum_ = product + bias.view.double()
        refs, outs, operands = [sum_, gelu_parts(sum_)[0]], [h, y], [bias, h, y]
    elif ep == "residual":
        c = out(torch.bfloat16, True)  # in place
        refs, outs, operands = [product + c.view.double()], [c], [c, c]
    else:
        h, dh = out(torch.bfloat16, True), out(torch.bfloat16)
        refs, outs, operands = [product * gelu_parts(h.view.double())[1]], [dh], [h, dh]
    epi = epilogue_params([x.view for x in operands])
    if defs.get("SUMS"):
        # Rows of a matrix whose other columns are canaries: a stride of its own.
        sums = Array([1, 1, 1, m, 1], torch.float32, "cols", 2, False)
        refs, outs = refs + [a.view.double().sum(-1, keepdim=True)], outs + [sums]
        calls, work = run_hopper(module, defs, a.view, b.view, epi, alpha, splits,
                                 sums.view[0, 0, 0, :, 0])
    elif hopper:
        calls, work = run_hopper(module, defs, a.view, b.view, epi, alpha, splits)
    else:
        cut = lambda x: x.view if k_outer == 1 else x.view.unflatten(-1, (k_outer, k))
        calls, work = run_general(module, defs, cut(a), cut(b), epi, alpha, splits, k_outer)
    limit = dict(LIMIT)
    if k * k_outer > 8192:
        limit[torch.float32] = 1e-4
    verdict(f"{name} {sizes} batch {batch} splits {splits}", outs, refs, outs, calls, work, limit)


def summary(section):
    print(f"{section}: {COUNTS['cases']} cases, {COUNTS['bad']} bad", flush=True)
    COUNTS.update(cases=0, bad=0)


def general(folder):
    go = lambda name, *rest, **more: case(folder, name, *rest, **more)
    for tile in ("big", "deep", "middle", "small"):
        for form in ("00", "01", "10", "11"):
            name = f"mma_{tile}_{form}"
            go(name, (128, 128, 128))
            go(name, (257, 203, 90), pads=(8, 8, 16))
            go(name, (130, 77, 33), batch=(2, 3, 2), a_repeat=(1,), b_repeat=(0,), alpha=0.37)
            go(name, (1, 1, 8))
            go(name, (70, 1000, 7), pads=(0, 0, 8))
    for splits in (2, 7):
        go("mma_split", (256, 136, 5000), splits=splits, alpha=0.5)
    go("mma_split", (200, 131, 700), batch=(1, 2, 2), splits=3)
    for name in ("mma_any", "mma_any_mixed"):
        go(name, (65, 43, 77), orders=("any", "any"), pads=(3, 5, 1), batch=(2, 1, 3))
        go(name, (130, 129, 200), orders=("rows", "cols"), pads=(1, 7, 3), alpha=-2.0)
        go(name, (33, 70, 24), orders=("cols", "rows"), pads=(1, 7, 3), k_outer=3)
    for ep in ("bias_gelu", "residual", "gelu_grad"):
        go(f"mma_{ep}", (200, 264, 96))
        go(f"mma_{ep}", (133, 101, 50), batch=(2, 1, 2))
    go("mma_time", (256, 512, 320))
    for orders in (("cols", "cols"), ("rows", "rows"), ("any", "any"), ("rows", "cols")):
        go("f32_big", (257, 203, 90), orders=orders)
        go("f32_big", (64, 140, 33), orders=orders, batch=(2, 3, 2), a_repeat=(1,), alpha=0.37)
        go("f32_small", (65, 43, 77), orders=orders, pads=(3, 5, 1), batch=(2, 1, 3))
        go("f32_mixed", (65, 43, 19), orders=orders, pads=(3, 5, 1), k_outer=4)
        go("f32_split", (130, 70, 3000), orders=orders, splits=5)
    go("f32_bias_gelu", (133, 101, 50), orders=("cols", "cols"))
    summary("general")


def rings(folder, cluster):
    go = lambda name, *rest, **more: case(folder, name, *rest, **more)
    for form in ("11", "10", "01", "00"):
        name = f"ring{cluster}_320_{form}"
        go(name, (256, 320, 64))
        go(name, (256, 640, 512))
        go(name, (300, 520, 200))
        go(name, (1000, 336, 1000), alpha=0.37)
        go(name, (3000, 2504, 136))
        go(name, (777, 1000, 1600))
        go(name, (300, 50256, 200))
        go(name, (1, 8, 8))
    for bn in (256, 128):
        for form in ("11", "10", "01", "00"):
            name = f"ring{cluster}_{bn}_{form}"
            go(name, (256, 256, 64))
            go(name, (256, 256, 512))
            go(name, (300, 520, 200))
            go(name, (1000, 333, 1000), alpha=0.37)
            go(name, (130, 77, 72), batch=(2, 3, 2), a_repeat=(1,), b_repeat=(0,))
            go(name, (3000, 2500, 136), batch=(1, 1, 2))
            go(name, (1, 1, 8))
    for name in ("permuted", "permuted_128", "permuted_320", "11", "10", "10_128", "10_320"):
        go(f"ring{cluster}_{name}", (384, 288, 320))
        go(f"ring{cluster}_{name}", (1152, 1600, 1600))
        go(f"ring{cluster}_{name}", (20000, 768, 256), alpha=2.0)
    for end in ("", "_128", "_320"):
        go(f"ring{cluster}_00{end}", (256, 264, 20000))
        for splits in (2, 7, 40):
            go(f"ring{cluster}_split{end}", (256, 264, 20000), splits=splits, alpha=0.5)
    for ep in ("bias_gelu", "residual", "gelu_grad"):
        for end in ("", "_320"):
            go(f"ring{cluster}_{ep}{end}", (1000, 544, 328))
            go(f"ring{cluster}_{ep}{end}", (17000, 512, 256))
            go(f"ring{cluster}_{ep}{end}", (2000, 1600, 640))


def ring(folder):
    rings(folder, 1)
    summary("ring")


def sums(folder):
    go = lambda name, *rest, **more: case(folder, name, *rest, **more)
    for c in (1, 2):
        for b in (0, 1):
            name = f"ring{c}_sums_320_0{b}"
            go(name, (128, 320, 64))
            go(name, (300, 520, 200), alpha=0.37)
            go(name, (1000, 600, 1000))
            go(name, (3000, 2504, 136))
        for bn in (256, 128):
            for b in (0, 1):
                name = f"ring{c}_sums_{bn}_0{b}"
                go(name, (128, 256, 64))
                go(name, (300, 520, 200), alpha=0.37)
                go(name, (130, 77, 72))
                go(name, (1000, 600, 1000))
                go(name, (3, 5, 1))
                go(name, (1, 1, 8))
                go(name, (3000, 2500, 136))
        for splits in (2, 3, 5, 7, 40, 96):
            go(f"ring{c}_sums_ragged", (256, 264, 20000), splits=splits, alpha=0.5)
            go(f"ring{c}_sums_ragged", (77, 131, 10007), splits=splits, pads=(8, 8, 16))
            go(f"ring{c}_sums", (768, 256, 8192), splits=splits)
            go(f"ring{c}_sums_128", (200, 128, 12345), splits=splits)
    summary("sums")


def cluster(folder):
    rings(folder, 2)
    summary("cluster")


def resident(folder):
    go = lambda name, *rest, **more: case(folder, name, *rest, **more)
    for bn in (256, 128):
        for form in ("11", "10", "01", "00"):
            name = f"resident_{bn}_{form}"
            go(name, (64, 256, 64))
            go(name, (256, 256, 256))
            go(name, (300, 520, 200))
            go(name, (40000, 333, 256), alpha=0.37)
            go(name, (130, 77, 72), batch=(2, 3, 2), a_repeat=(1,), b_repeat=(0,))
            go(name, (1, 1, 8))
    for name in ("permuted", "11", "10"):
        go(f"resident_{name}", (384, 288, 192))
        go(f"resident_{name}", (20000, 768, 256), alpha=2.0)
    for ep in ("bias_gelu", "residual", "gelu_grad"):
        go(f"resident_{ep}", (1000, 544, 200))
        go(f"resident_{ep}", (17000, 512, 256))
    go("resident_bias_gelu_11", (1000, 544, 200))
    go("resident_residual_11", (1000, 544, 200))
    summary("resident")
