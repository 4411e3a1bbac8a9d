"""Training speed of one small GPT on the CPU: aerogel beside PyTorch, interleaved, medians.

    cargo build --release
    pip install torch numpy
    python3 bench/cpu_vs_pytorch.py [--rounds 9] [--threads 2] [--dtype f32|bf16]

Each round runs PyTorch, then aerogel, for 30 steps each, and takes the median step of each; the
figure is the median over the rounds, and the ratio is taken round by round. A step is forward,
backward and AdamW without clipping, on 4 sequences of 256 tokens.
"""
import argparse
import json
import pathlib
import random
import statistics
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TORCH = r"""
import sys, time, torch, torch.nn as nn, torch.nn.functional as F
threads, dtype, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
L, H, D, T, B, V = 4, 4, 256, 256, 4, 4096
torch.set_num_threads(threads); torch.manual_seed(0)
class Block(nn.Module):
    def __init__(s):
        super().__init__()
        s.n1, s.n2 = nn.LayerNorm(D), nn.LayerNorm(D)
        s.qkv, s.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        s.up, s.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
    def forward(s, x):
        q, k, v = (z.view(B, T, H, D // H).transpose(1, 2) for z in s.qkv(s.n1(x)).split(D, 2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + s.out(a.transpose(1, 2).reshape(B, T, D))
        return x + s.down(F.gelu(s.up(s.n2(x)), approximate="tanh"))
class Gpt(nn.Module):
    def __init__(s):
        super().__init__()
        s.tok, s.pos, s.norm = nn.Embedding(V, D), nn.Embedding(T, D), nn.LayerNorm(D)
        s.blocks = nn.Sequential(*(Block() for _ in range(L)))
        nn.init.normal_(s.tok.weight, std=0.02); nn.init.normal_(s.pos.weight, std=0.02)
    def forward(s, x, y):
        h = s.norm(s.blocks(s.tok(x) + s.pos.weight))
        return F.cross_entropy(F.linear(h, s.tok.weight).float().view(-1, V), y.view(-1))
model = Gpt(); opt = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
seconds = []
for _ in range(steps):
    x, y = torch.randint(V, (B, T)), torch.randint(V, (B, T)); start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"): loss = model(x, y)
    opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
    seconds.append(time.perf_counter() - start)
seconds = sorted(seconds[5:]); print(B * T / seconds[len(seconds) // 2], torch.__version__)
"""


def random_tokens():
    path = HERE / "data" / "random.bin"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draw = random.Random(1)
        path.write_bytes(b"".join(struct.pack("<H", draw.randrange(4096)) for _ in range(200_000)))


def pytorch(args):
    command = [args.python, "-c", TORCH, str(args.threads), args.dtype, str(args.steps)]
    figure, version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(figure), version


def aerogel(args):
    command = [
        args.aerogel, "--runs", str(HERE / "runs"), "--data", str(HERE / "data" / "prepared"),
        "train", str(HERE / "small-gpt.toml"), "--resume", "never", "--json",
        f"train.steps={args.steps}", f"parallel.threads={args.threads}",
        f"precision.compute={args.dtype}",
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    return statistics.median(e["tokens_per_second"] for e in events if e["event"] == "step" and e["step"] > 5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--aerogel", default=str(HERE.parent / "target" / "release" / "aerogel"))
    args = parser.parse_args()
    random_tokens()
    theirs, ours, version = [], [], ""
    for _ in range(args.rounds):
        figure, version = pytorch(args)
        theirs.append(figure)
        ours.append(aerogel(args))
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(json.dumps({
        "dtype": args.dtype, "threads": args.threads, "rounds": args.rounds, "pytorch": version,
        "pytorch_tokens_per_second": round(statistics.median(theirs)),
        "aerogel_tokens_per_second": round(statistics.median(ours)),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }))


if __name__ == "__main__":
    main()
