"""Operands of the attention lab: random tensors in any layout between NaN, and what is right."""

import math

import numpy as np
import torch


def reference(views, pattern):
    """o, lse, dq, dk, dv in float64."""
    q, k, v = (views[n].double() for n in "qkv")
    s = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    i, j = (np.arange(n) for n in s.shape[-2:])
    heads = s.shape[3] * s.shape[4]
    seen = np.stack(
        [
            np.broadcast_to(pattern.allows(h, i[:, None], j[None, :]), (len(i), len(j)))
            for h in range(heads)
        ]
    )
    seen = torch.from_numpy(seen).to(s.device).view(s.shape[3], s.shape[4], 1, len(i), len(j))
    s = s.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - lse.masked_fill(lse == -math.inf, 0)[..., None])
    o = torch.einsum("...ij,...jw->...iw", p, v)
    dout = views["dout"].double()
    d = (dout * o).sum(-1) - (views["dlse"].double() if "dlse" in views else 0)
    ds = p * (torch.einsum("...iw,...jw->...ij", dout, v) - d[..., None]) / math.sqrt(q.shape[-1])
    ds = ds.masked_fill(~seen, 0)
    dq = torch.einsum("...ij,...jd->...id", ds, k)
    dk = torch.einsum("...ij,...id->...jd", ds, q).sum(4, keepdim=True)
    dv = torch.einsum("...ij,...iw->...jw", p, dout).sum(4, keepdim=True)
    return {"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


AXES = "b0 b1 b2 kv group column row width".split()


class Arena:
    """Tensors of one storage order each, inside buffers of NaN."""

    def __init__(self, device, generator):
        self.device, self.generator, self.guarded = device, generator, []

    def make(self, sizes, order, dtype, random, pad=8):
        """`order`: axes, outermost first in memory; the row of the innermost is padded by `pad`."""
        present = [sizes[a] for a in order]
        stride, strides = 1, {}
        for axis, size in reversed(list(zip(order, present))):
            strides[axis] = stride
            stride *= size
            if axis == order[-1]:
                stride += pad
        total = stride + 4096
        flat = torch.full((total,), math.nan, dtype=dtype, device=self.device)
        axes = [a for a in AXES if a in sizes]
        view = flat.as_strided([sizes[a] for a in axes], [strides.get(a, 0) for a in axes], 2048)
        if random:
            view.copy_(torch.randn(view.shape, generator=self.generator, device=self.device))
        else:
            self.guarded.append((flat, view))
        return view

    def interleaved(self, shape, dtype, names, random):
        """[b0, b1, b2, row, 3, kv, width], as one product makes q, k and v."""
        base = torch.full(shape, math.nan, dtype=dtype, device=self.device)
        if random:
            base.normal_(generator=self.generator)
        else:
            self.guarded.append((base.view(-1), base))
        parts = (base.select(4, n).transpose(3, 4)[:, :, :, :, None, None] for n in range(3))
        return dict(zip(names, parts))

    def check(self):
        """Whether all of the outputs was written, and nothing around them."""
        for flat, view in self.guarded:
            if torch.isnan(view).any():
                return "NaN in an output"
            inside = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
            inside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
            if not torch.isnan(flat[~inside]).all():
                return "an output was written outside"
        return ""


def problem(
    device, seed, batch, kv, group, columns, queries, keys, dq, dv, order, dtype, dlse, pad=8
):
    """Random operands, poisoned outputs; `order` as in Arena.make, width last, or "interleaved"."""
    arena = Arena(device, torch.Generator(device).manual_seed(seed))
    sizes = {
        "b0": batch[0],
        "b1": batch[1],
        "b2": batch[2],
        "kv": kv,
        "group": group,
        "column": columns,
        "row": queries,
        "width": dq,
    }
    shared = {**sizes, "group": 1, "row": keys}

    def wide(x, width, random):
        return arena.make({**x, "width": width}, order, dtype, random, pad)

    def narrow(random):
        x = {a: n for a, n in sizes.items() if a != "width"}
        return arena.make(x, [a for a in order if a != "width"], torch.float32, random, pad=0)

    def spread(x):
        return x.expand(*x.shape[:4], group, *x.shape[5:])

    if order == "interleaved":
        order = "b0 b1 b2 row column kv group width".split()
        views = arena.interleaved((*batch, queries, 3, kv, dq), dtype, "q k v".split(), True)
        views.update(dout=wide(sizes, dv, True), o=wide(sizes, dv, False), lse=narrow(False))
        views.update(
            arena.interleaved((*batch, queries, 3, kv, dq), dtype, "dq dk dv".split(), False)
        )
        return arena, views
    views = {
        "q": wide(sizes, dq, True),
        "k": spread(wide(shared, dq, True)),
        "v": spread(wide(shared, dv, True)),
        "dout": wide(sizes, dv, True),
    }
    if dlse:
        views["dlse"] = narrow(True)
    views.update(
        o=wide(sizes, dv, False),
        lse=narrow(False),
        dq=wide(sizes, dq, False),
        dk=wide(shared, dq, False),
        dv=wide(shared, dv, False),
    )
    return arena, views
