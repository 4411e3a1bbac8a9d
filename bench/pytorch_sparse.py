"""The Sparse Transformer of `sparse_vs_pytorch.py` in PyTorch; prints one JSON object.

    python3 bench/pytorch_sparse.py --form dense|blocks|flex --threads 2 --dtype f32 --steps 4
    python3 bench/pytorch_sparse.py --check

Layers are local (the last `stride` positions, the query included) and strided (every `stride`-th
position back) by turns. Forms of attention:

    dense   causal scaled_dot_product_attention in every layer: what is written first
    blocks  local: each block of queries with its own keys and those of the block before, under a
            mask; strided: the sequence as [row, column], causal along rows. No work is done for
            other blocks; the softmax and its gradient are PyTorch's own kernels
    flex    flex_attention with block masks, compiled; where PyTorch has no backward for it on
            the CPU, this ends with its message

`--check` compares `blocks` with attention under the whole mask, forward and backward, on a small
size.
"""

import argparse
import json
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

IMPORT_BYTES = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sdpa = F.scaled_dot_product_attention


def allowed(kind, stride, i, j):
    """Whether query i may see key j: the definition."""
    if kind == "local":
        return (j <= i) & (i - j < stride)
    return (j <= i) & ((i - j) % stride == 0)


def dense(kind, stride, q, k, v):
    """[batch, seq, head, width] operands, as in all forms."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(q, k, v, is_causal=True).transpose(1, 2)


def masked(kind, stride, q, k, v):
    """The definition, with all scores."""
    at = torch.arange(q.shape[1])
    mask = allowed(kind, stride, at[:, None], at[None, :])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(q, k, v, attn_mask=mask).transpose(1, 2)


def blocks(kind, stride, q, k, v):
    return (local_blocks if kind == "local" else columns)(stride, q, k, v)


def local_blocks(stride, q, k, v):
    b, t, h, d = q.shape
    n = t // stride
    # [batch * block, head, position, width]; the first block has no block before it.
    fold = lambda x: x.reshape(b, n, stride, h, d).transpose(2, 3)
    q, k, v = fold(q), fold(k), fold(v)
    first = sdpa(q[:, 0], k[:, 0], v[:, 0], is_causal=True)
    pairs = lambda x: torch.cat([x[:, :-1], x[:, 1:]], 3).flatten(0, 1)
    i, j = torch.arange(stride)[:, None] + stride, torch.arange(2 * stride)[None, :]
    mask = torch.zeros(stride, 2 * stride, dtype=q.dtype)
    mask.masked_fill_(~allowed("local", stride, i, j), float("-inf"))
    rest = sdpa(q[:, 1:].flatten(0, 1), pairs(k), pairs(v), attn_mask=mask)
    whole = torch.cat([first[:, None], rest.unflatten(0, (b, n - 1))], 1)
    return whole.transpose(2, 3).reshape(b, t, h, d)


def columns(stride, q, k, v):
    b, t, h, d = q.shape
    # [batch * column, head, row, width]
    fold = lambda x: x.reshape(b, t // stride, stride, h, d).permute(0, 2, 3, 1, 4).flatten(0, 1)
    o = sdpa(fold(q), fold(k), fold(v), is_causal=True)
    return o.unflatten(0, (b, stride)).permute(0, 3, 1, 2, 4).reshape(b, t, h, d)


class Flex:
    """flex_attention, with the block masks of both kinds made once."""

    def __init__(self, seq, stride):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        rule = lambda kind: lambda b, h, i, j: allowed(kind, stride, i, j)
        make = lambda kind: create_block_mask(rule(kind), None, None, seq, seq, device="cpu")
        self.masks = {kind: make(kind) for kind in ("local", "strided")}
        self.attend = torch.compile(flex_attention)

    def __call__(self, kind, stride, q, k, v):
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        return self.attend(q, k, v, block_mask=self.masks[kind]).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, kind, form, stride, width, heads, ratio):
        super().__init__()
        self.kind, self.form, self.stride, self.heads = kind, form, stride, heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x):
        b, t, d = x.shape
        split = self.qkv(self.n1(x)).split(d, 2)
        q, k, v = (z.view(b, t, self.heads, d // self.heads) for z in split)
        x = x + self.out(self.form(self.kind, self.stride, q, k, v).reshape(b, t, d))
        h = self.up(self.n2(x))
        return x + self.down(h * torch.sigmoid(1.702 * h))


class Model(nn.Module):
    """Pixels as bytes: a start vector, then all bytes but the last; three tables of positions."""

    def __init__(self, form, args, image=(32, 32, 3), vocab=256):
        super().__init__()
        width = args.width
        self.image = image
        self.tok, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        self.places = nn.ModuleList(nn.Embedding(n, width) for n in image)
        self.start = nn.Parameter(torch.randn(width) * 0.01)
        self.norm = nn.LayerNorm(width)
        kinds = ["local" if i % 2 == 0 else "strided" for i in range(args.layers)]
        one = lambda kind: Block(kind, form, args.stride, width, args.heads, args.ratio)
        self.blocks = nn.Sequential(*(one(kind) for kind in kinds))
        for table in [self.tok, *self.places]:
            nn.init.normal_(table.weight, std=0.01)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens):
        h = F.pad(self.tok(tokens[:, :-1]), (0, 0, 1, 0))
        h[:, 0] = h[:, 0] + self.start
        rows, cols, channels = (p.weight for p in self.places)
        place = rows[:, None, None] + cols[None, :, None] + channels[None, None]
        h = self.blocks(h + place.flatten(0, 2))
        logits = self.head(self.norm(h)).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def check():
    torch.manual_seed(0)
    stride, seq = 8, 48
    worst = 0.0
    for kind in ("local", "strided"):
        leaves = [torch.randn(2, seq, 2, 16, requires_grad=True) for _ in range(3)]
        weight = torch.randn(2, seq, 2, 16)

        def results(form):
            out = form(kind, stride, *leaves)
            return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

        for got, want in zip(results(blocks), results(masked)):
            worst = max(worst, (got - want).abs().max().item())
    if worst > 1e-5:
        sys.exit(f"blocks differ from the definition by {worst}")
    print(json.dumps({"largest_difference": worst}))


def main():
    parser = argparse.ArgumentParser()
    for name, value in [
        ("threads", 2), ("steps", 4), ("layers", 12), ("heads", 4), ("width", 256),
        ("ratio", 2), ("stride", 96), ("batch", 1),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--form", default="dense", choices=["dense", "blocks", "flex"])
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--images", help="a .npy file of bytes, [image, 3072]; else random ones")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        return check()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    seq = 32 * 32 * 3
    form = {"dense": dense, "blocks": blocks}.get(args.form) or Flex(seq, args.stride)
    model = Model(form, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, fused=True)
    images = None
    if args.images:
        import numpy

        images = torch.from_numpy(numpy.load(args.images).astype("int64"))
    seconds = []
    for step in range(args.steps):
        if images is None:
            tokens = torch.randint(256, (args.batch, seq))
        else:
            tokens = images[(torch.arange(args.batch) + step * args.batch) % len(images)]
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    facts = {"version": torch.__version__, "seconds": seconds, "import_bytes": IMPORT_BYTES}
    print(json.dumps({**facts, "loss": loss.item()}))


if __name__ == "__main__":
    main()
