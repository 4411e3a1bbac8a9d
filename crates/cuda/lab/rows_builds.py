"""The programs and variants that rows.py checks and times, and their sources for the compiler."""
from rows_harness import *

P = Program
U, Z, S = "unit", "zero", "strided"

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
build("map_cast4", "map.cu", {"Program": MAPS["cast"]}, V=4, UNROLL=4)
FUNCTIONS = {"exp": 110, "ln": 2, "tanh": 12, "erf": 6, "sigmoid": 80, "sin": 1e9, "cos": 1e9, "sqrt": 9, "rsqrt": 9, "recip": 9}
for f in FUNCTIONS:
    build("map_f_" + f, "map.cu", {"Program": P([("f32", U)], [("f32", U)], [("load", 0), (f, 0), ("store", 0, 1)])}, V=4, UNROLL=1)
build("rows_sum", "reduce.cu", {"Program": SQUARE}, V=4, LANES=32, UNROLL=2)
for unroll in (3, 6):
    build(f"rows_sum_{unroll}", "reduce.cu", {"Program": SQUARE}, V=4, LANES=32, UNROLL=unroll)
build("rows_max", "reduce.cu", {"Program": SUM}, V=8, LANES=8, UNROLL=2, OUTER=2, INNER=2, FOLD="Max", OUT="bf16")
build("rows_all", "reduce.cu", {"Program": SQUARE}, V=4, LANES=256, UNROLL=4)
for lanes in (8, 16, 32):
    build(f"columns_{lanes}", "reduce.cu", {"Program": SUM}, V=8, LANES=lanes, UNROLL=4, COLUMNS=1, THREADS=512)
    build(f"columns_f32_{lanes}", "reduce.cu", {"Program": LOAD32}, V=4, LANES=lanes, UNROLL=4, COLUMNS=1, THREADS=512)
build("columns_256_threads", "reduce.cu", {"Program": SUM}, V=8, LANES=32, UNROLL=4, COLUMNS=1)
build("columns_8_rows", "reduce.cu", {"Program": SUM}, V=8, LANES=32, UNROLL=8, COLUMNS=1, THREADS=512)
build("columns_max", "reduce.cu", {"Program": LOAD32}, V=4, LANES=8, UNROLL=2, OUTER=2, INNER=2, COLUMNS=1, FOLD="Max", OUT="bf16")
# Widths with an x: the same shape with other lanes.
for d, lanes, units, threads in [(64, 8, 1, 256), (256, 32, 1, 256), ("256x", 16, 2, 256), (768, 32, 3, 256),
                                 (1600, 32, 7, 256), ("1600x", 128, 2, 128), (8192, 256, 4, 256)]:
    for what, programs in [("", PLAIN), ("_residual", RESIDUAL)][: 2 if d == 768 else 1]:
        build(f"norm_{d}{what}", "norm.cu", programs, V=8, LANES=lanes, UNITS=units, THREADS=threads, GAIN="f32",
              BIAS="f32", CENTER=int(d != 8192))
# Lanes, units, threads, row ahead, and blocks: those that all multiprocessors of an H100 hold at
# once, a number of the variant and not of the device. Letters: other variants of a width.
GRADS = {"64": (8, 1, 256, 1, 396), "256": (32, 1, 256, 0, 660), "256a": (32, 1, 256, 1, 396), "256b": (32, 1, 128, 1, 1056), "256c": (32, 1, 256, 1, 528),
         "512": (32, 2, 256, 1, 264), "768": (32, 3, 256, 0, 264), "768a": (32, 3, 128, 1, 396), "1024": (128, 1, 128, 1, 792), "1024a": (128, 1, 128, 1, 1056),
         "1600": (128, 2, 128, 0, 660), "1600a": (128, 2, 128, 1, 660), "1600b": (256, 1, 256, 1, 396), "1600c": (256, 1, 256, 1, 528),
         "2048": (128, 2, 128, 1, 660), "4096": (256, 2, 256, 1, 264), "8192": (512, 2, 512, 0, 132), "8192a": (512, 2, 512, 1, 132)}
BLOCKS = {"grad_f32": 528, **{f"grad_{d}": v[4] for d, v in GRADS.items()}}
for d, (lanes, units, threads, ahead, _) in GRADS.items():
    build(f"grad_{d}", "norm_grad.cu", GRAD if d[:3] == "768" else GRAD_PLAIN, V=8, LANES=lanes, UNITS=units,
          THREADS=threads, AHEAD=ahead, GAIN="f32", **{"MIN_BLOCKS": 4} if d == "256c" else {})
build("norm_f32", "norm.cu", PLAIN32, V=4, LANES=32, UNITS=2, AXES=2, GAIN="f32")
build("grad_f32", "norm_grad.cu", GRAD32, V=4, LANES=32, UNITS=2, AXES=2)
build("gather", "gather.cu", V=8)
build("gather_f32", "gather.cu", T="f32", V=1, AXES=3)
for name, t, v, axes in [("bf16", "bf16", 8, 1), ("bf16_4", "bf16", 4, 1), ("f32", "f32", 4, 2)]:
    build(f"scatter_{name}", "scatter.cu", T=t, V=v, AXES=axes)
for t, v in [("bf16", 8), ("u32", 4), ("bf16", 1), ("u32", 1), ("bf16", 2)]:
    build(f"copy_{t}_{v}", "copy.cu", T=t, V=v, AXES=3)
build("fill_f32", "fill.cu", T="f32", V=4)
build("fill_bf16", "fill.cu", T="bf16", V=2, AXES=2)
CE = {"ce_512": dict(LANES=512, THREADS=512, UNITS=3, SHARED=10), "ce_1024": dict(LANES=1024, THREADS=1024, UNITS=3, SHARED=14),
      "ce_walk": dict(LANES=512, THREADS=512, UNITS=0, SHARED=0), "ce_32": dict(LANES=32, THREADS=256, UNITS=3, SHARED=1),
      "ce_256": dict(LANES=256, THREADS=256, UNITS=3, SHARED=5), "ce_walk_1024": dict(LANES=1024, THREADS=1024, UNITS=0, SHARED=0),
      "ce_1024x2": dict(LANES=1024, THREADS=1024, UNITS=0, SHARED=7, BLOCKS=2)}
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
