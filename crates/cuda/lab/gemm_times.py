"""Timings of the products beside torch (cuBLAS)."""

import statistics

import torch
import torch.nn.functional as F

from gemm_cases import error, gelu_parts
from gemm_host import MapError, best_split, epilogue_params, general, hopper, load
from gemm_variants import VARIANTS

SETS = 3  # rotating buffers


def graph_ms(calls_of_set, sets, repeats=None):
    """Median over replays of the time of one call; the calls of the sets take turns."""
    for i in range(sets):
        calls_of_set(i)
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    calls_of_set(0)
    end.record()
    torch.cuda.synchronize()
    guess = max(begin.elapsed_time(end), 0.01)
    repeats = repeats or max(sets, min(60, int(6 / guess)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            calls_of_set(i % sets)
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / repeats)
    return statistics.median(times)


def row(name, variant, ms, torch_ms, flops, size, err):
    print(f"{name:<26}{variant:<20}{ms:8.4f} ms {flops / ms / 1e9:6.1f} TF "
          f"{size / ms / 1e6:5.0f} GB/s  torch {torch_ms:7.4f} ms x{torch_ms / ms:5.2f}  "
          f"err {err:.1e}", flush=True)


def five(x):
    return x[None, None, None]


def bf16(*sizes):
    return torch.randn(sizes, device="cuda").bfloat16()


class Shape:
    """Buffers of a product with A[m, k] and B[n, k] as views, and what torch runs."""

    def __init__(self, title, m, n, k, a_form="k", b_form="k", sets=SETS):
        self.title, self.m, self.n, self.k, self.sets = title, m, n, k, sets
        self.a = [bf16(m, k) if a_form == "k" else bf16(k, m).T for _ in range(sets)]
        self.b = [bf16(n, k) if b_form == "k" else bf16(k, n).T for _ in range(sets)]
        self.flops = 2 * m * n * k

    def reference(self, rows=256):
        rows = torch.randint(0, self.m, (rows,), device="cuda")
        return rows, self.a[0][rows].double() @ self.b[0].double().T

    def time(self, folder, variants, out_type, extra, torch_call, check=None, size=None):
        """`extra(i, out)`: the operands of the epilogue of set i, the last being the output."""
        outs = [torch.zeros(self.m, self.n, device="cuda", dtype=out_type)
                for _ in range(self.sets)]
        torch_ms = graph_ms(torch_call, self.sets)
        size = size or 2 * (self.m * self.k + self.n * self.k) + outs[0].nbytes
        for variant in variants:
            try:
                self.time_one(folder, variant, outs, extra, torch_ms, check, size)
            except MapError as refusal:
                print(f"{self.title} {variant}: {refusal}", flush=True)

    def time_one(self, folder, variant, outs, extra, torch_ms, check, size):
        file, defs = VARIANTS[variant]
        module = load(folder, variant, file, defs)
        calls, works, keep = [], [], []
        for i in range(self.sets):
            epi = epilogue_params([five(x) for x in extra(i, outs[i])])
            a, b = five(self.a[i]), five(self.b[i])
            if file == "gemm.cu":
                made, work = general(module, defs, a, b, epi)
            else:
                tiles = -(-self.m // 128) * -(-self.n // defs["BN"])
                best = best_split(tiles, -(-self.k // 64), self.m, self.n, self.k)
                wanted = max(2, best) if defs.get("SPLIT") else 1
                sums = torch.zeros(self.m, device="cuda") if defs.get("SUMS") else None
                made, work = hopper(module, defs, a, b, epi, wanted=wanted, sums=sums)
                keep.append(sums)
            calls.append(made)
            works.append(work)
        outs[0].zero_()
        for call in calls[0]:
            call()
        rows, wanted_rows = self.reference()
        if check is not None:
            wanted_rows = check(wanted_rows, rows)
        err = error(outs[0][rows], wanted_rows)
        ms = graph_ms(lambda i: [call() for call in calls[i]], self.sets)
        label = variant
        if works[0] is not None:
            label += f" /{works[0].numel() // (self.m * self.n)}"
        row(self.title, label, ms, torch_ms, self.flops, size, err)


def plain(folder, title, m, n, k, variants, a_form="k", b_form="k",
          out_type=torch.bfloat16, sets=SETS):
    s = Shape(title, m, n, k, a_form, b_form, sets)
    places = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    size = 2 * (m * k + n * k) + m * n * (2 if out_type == torch.bfloat16 else 8)
    s.time(folder, variants, out_type, lambda i, out: [out],
           lambda i: torch.mm(s.a[i], s.b[i].T, out=places[i]), size=size)


def both(*names):
    return [f"ring{c}_{name}" for name in names for c in (1, 2)]


def times_flagship(folder):
    big = torch.empty(1 << 29, device="cuda", dtype=torch.bfloat16)
    other = torch.empty_like(big)
    ms = graph_ms(lambda i: other.copy_(big), 1)
    print(f"copy: {2 * big.nbytes / ms / 1e6:.0f} GB/s")
    del big, other
    m = 73728
    for n in (256, 512, 768, 1024):
        plain(folder, f"y {m}x{n}x256", m, n, 256,
              ["resident_permuted", "resident_11", "ring1_permuted", "ring2_permuted"])
    for k in (512, 1024):
        plain(folder, f"y {m}x256x{k}", m, 256, k, both("permuted", "permuted_128", "11"))
    plain(folder, f"dx {m}x1024x256", m, 1024, 256, ["resident_10"] + both("10"), b_form="n")
    plain(folder, f"dx {m}x256x1024", m, 256, 1024, both("10", "10_128"), b_form="n")
    for rows, cols in ((256, 256), (768, 256), (1024, 256), (256, 1024)):
        plain(folder, f"dw {rows}x{cols}x{m}", rows, cols, m, both("split"), "m", "n",
              torch.float32)

    s = Shape(f"bias gelu {m}x1024x256", m, 1024, 256)
    bias = bf16(1, 1024)
    hs = [bf16(m, 1024) for _ in range(SETS)]
    def torch_gelu(i):
        h = F.linear(s.a[i], s.b[i], bias[0])
        return h, F.gelu(h, approximate="tanh")
    size = 2 * (m * 256 + 1024 * 256 + 2 * m * 1024)
    names = ["resident_bias_gelu", "resident_bias_gelu_11"] + both("bias_gelu")
    s.time(folder, names, torch.bfloat16,
           lambda i, out: [bias, hs[i], out], torch_gelu,
           lambda p, rows: gelu_parts(p + bias.double())[0], size)
    for k in (256, 1024):
        short = ["resident_residual", "resident_residual_11"] if k == 256 else []
        names = short + both("residual")
        s = Shape(f"residual {m}x256x{k}", m, 256, k)
        rs = [bf16(m, 256) for _ in range(SETS)]
        size = 2 * (m * k + 256 * k + 2 * m * 256)
        s.time(folder, names, torch.bfloat16, lambda i, out: [rs[i], out],
               lambda i: torch.mm(s.a[i], s.b[i].T) + rs[i],
               lambda p, rows: p + rs[0][rows].double(), size)
    s = Shape(f"gelu' {m}x1024x256", m, 1024, 256, b_form="n")
    size = 2 * (m * 256 + 1024 * 256 + 2 * m * 1024)
    s.time(folder, ["resident_gelu_grad", "ring1_gelu_grad", "ring2_gelu_grad"], torch.bfloat16,
           lambda i, out: [hs[i], out],
           lambda i: torch.ops.aten.gelu_backward(torch.mm(s.a[i], s.b[i].T), hs[i],
                                                  approximate="tanh"),
           lambda p, rows: p * gelu_parts(hs[0][rows].double())[1], size)


def times_gpt2(folder):
    m = 65536
    for n, k in ((2304, 768), (768, 768), (3072, 768), (768, 3072)):
        plain(folder, f"y {m}x{n}x{k}", m, n, k, both("permuted", "11"), sets=2)
        plain(folder, f"dx {m}x{k}x{n}", m, k, n, both("10"), b_form="n", sets=2)
        plain(folder, f"dw {n}x{k}x{m}", n, k, m, both("00", "split"), "m", "n", torch.float32, 2)


def times_gpt2_xl(folder):
    """A layer of GPT-2 1.5B, micro-batches of 9 and of 16, by columns of a tile."""
    ends = ("", "_320", "_128")
    for m in (9216, 16384):
        for n, k in ((1600, 1600), (4800, 1600), (6400, 1600), (1600, 6400)):
            plain(folder, f"y {m}x{n}x{k}", m, n, k, [f"ring1_permuted{e}" for e in ends], sets=2)
            plain(folder, f"dx {m}x{n}x{k}", m, n, k, both(*[f"10{e}" for e in ends]), b_form="n",
                  sets=2)
            plain(folder, f"dw {n}x{k}x{m}", n, k, m,
                  both(*[f"00{e}" for e in ends]) + [f"ring1_split{e}" for e in ends], "m", "n",
                  torch.float32, 2)


def times_sums(folder):
    """Weight gradients alone and with the sums of A; torch's time of those sums by themselves."""
    shapes = [(768, 256, 73728), (512, 256, 49152), (256, 512, 49152), (128, 256, 49152),
              (256, 128, 49152), (3072, 768, 65536), (768, 3072, 65536)]
    for m, n, k in shapes:
        s = Shape(f"dw {m}x{n}x{k}", m, n, k, "m", "n")
        names = ("unsummed_128", "sums_128") if n <= 128 else ("unsummed", "sums")
        size = 2 * (m * k + n * k) + 4 * m * n
        s.time(folder, both(*names), torch.float32, lambda i, out: [out],
               lambda i: s.a[i].sum(1, dtype=torch.float32), size=size)


def times_square(folder):
    for n in (4096, 8192):
        plain(folder, f"{n}^3", n, n, n, both("permuted", "11") + ["mma_time"], sets=2)
        plain(folder, f"{n}^3 b n-major", n, n, n, both("10"), b_form="n", sets=2)
