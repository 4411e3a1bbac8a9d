"""The GPT of `cpu_vs_pytorch.py` and `loss_vs_pytorch.py` in PyTorch; prints one JSON object.

    python3 bench/pytorch_gpt.py --threads 2 --dtype f32 --steps 30 --layers 4 ...

With --weights and --batches it starts from the given weights and reads the given tokens, so that
its losses can be laid beside those of another program.
"""

import argparse
import json
import resource
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

IMPORT_BYTES = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (
            z.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for z in self.qkv(self.n1(x)).split(d, 2)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, heads, width, context, vocab):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        nn.init.normal_(self.tok.weight, std=0.02)
        nn.init.normal_(self.pos.weight, std=0.02)

    def forward(self, x, y):
        h = self.norm(self.blocks(self.tok(x) + self.pos.weight))
        logits = F.linear(h, self.tok.weight).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def take_weights(model, tensors, width):
    """Weights by aerogel's names; its matrices have heads as axes of their own."""

    def put(to, name, rows=None):
        value = torch.from_numpy(tensors[name]).reshape(to.shape if rows is None else rows)
        to.copy_(value)

    with torch.no_grad():
        put(model.tok.weight, "embed.token.weight")
        put(model.pos.weight, "embed.position.weight")
        norms = [(model.norm, "final_norm")]
        for i, block in enumerate(model.blocks):
            at = f"h.{i}."
            norms += [(block.n1, at + "attn.norm"), (block.n2, at + "mlp.norm")]
            for part, name in enumerate("qkv"):
                rows = slice(part * width, (part + 1) * width)
                put(block.qkv.weight[rows], f"{at}attn.{name}.weight")
                put(block.qkv.bias[rows], f"{at}attn.{name}.bias")
            # [embed, heads, width of a head]: the heads' outputs lie side by side.
            put(block.out.weight, at + "attn.out.weight")
            put(block.out.bias, at + "attn.out.bias")
            for layer, name in [(block.up, "up"), (block.down, "down")]:
                put(layer.weight, f"{at}mlp.{name}.weight")
                put(layer.bias, f"{at}mlp.{name}.bias")
        for norm, name in norms:
            put(norm.weight, name + ".gain")
            put(norm.bias, name + ".bias")


def main():
    parser = argparse.ArgumentParser()
    for name, value in [
        ("threads", 2), ("steps", 30), ("warmup", 5), ("layers", 4), ("heads", 4),
        ("width", 256), ("context", 256), ("batch", 4), ("vocab", 4096),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--weights", help="a safetensors file")
    parser.add_argument("--batches", help="a .npy file: steps, batch, context + 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Gpt(args.layers, args.heads, args.width, args.context, args.vocab)
    if args.weights:
        from safetensors.numpy import load_file

        take_weights(model, load_file(args.weights), args.width)
    batches = None
    if args.batches:
        import numpy

        batches = torch.from_numpy(numpy.load(args.batches).astype("int64"))
    # Decay on matrices and tables alone, as aerogel has it.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
    seconds, losses = [], []
    for step in range(args.steps):
        if batches is None:
            shape = (args.batch, args.context)
            x, y = torch.randint(args.vocab, shape), torch.randint(args.vocab, shape)
        else:
            x, y = (batches[step][:, a:b].contiguous() for a, b in [(0, -1), (1, None)])
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    facts = {"version": torch.__version__, "import_bytes": IMPORT_BYTES}
    print(json.dumps({**facts, "seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
