"""The row kernels (map, reduce, norm, gather, scatter, copy, fill, cross entropy) against float64,
then against the copy bandwidth and PyTorch.

  rows.py emit DIR   writes the sources with their programs and builds.txt (see build_rows.sh)
  rows.py run DIR    checks and times the cubins of DIR on a GPU
"""
import sys
from rows_element import *
from rows_table import *


def check_unaligned_draws(dev):
    """Draws whose first element is no multiple of 4."""
    first = CLOCK["first"]
    try:
        for shift in (1, 2, 3):
            CLOCK["first"] = first + shift
            check_map(dev, "dropout", [333])
    finally:
        CLOCK["first"] = first


def check(dev, small=False):
    """Every build; `small` leaves the large shapes out."""
    tests = [(check_function, (f,), {}) for f in FUNCTIONS]

    def add(f, *a, **k):
        tests.append((f, a, k))
    for n in (4099, 3, 64):
        add(check_adamw, n)
    for name in ("gelu", "gelu_grad", "add", "cast", "dropout"):
        [add(check_map, name, [n]) for n in (5003, 7, 8)]
    add(check_unaligned_draws)
    add(check_map, "bias", [37, 72])
    add(check_map, "every", [3, 5, 4, 14])
    add(check_map, "every", [2, 3, 33, 6])
    for n, pad in ((1003, 5), (32, 0), (7, 1)):
        for name in ("rows_sum", "rows_sum_3", "rows_sum_6"):
            add(check_reduce, name, [13], [n], pad + (-(n + pad)) % 4)
    add(check_reduce, "rows_max", [3, 5], [4, 48], 8)
    for n in (100003, 17):
        add(check_reduce, "rows_all", [1], [n], 0)
    add(check_reduce, "rows_all", [3], [70000], 0)
    for rows, columns in ((2000, 264), (5, 8), (300, 768)):
        for lanes in (8, 16, 32):
            add(check_reduce, f"columns_{lanes}", [rows], [columns], 8)
            add(check_reduce, f"columns_f32_{lanes}", [rows], [columns], 4)
        add(check_reduce, "columns_256_threads", [rows], [columns], 8)
        add(check_reduce, "columns_8_rows", [rows], [columns], 8)
    add(check_reduce, "columns_8", [70000 if not small else 7000], [64], 0)
    add(check_reduce, "columns_8", [33], [9000], 0)
    add(check_reduce, "columns_max", [7, 9], [3, 20], 4)
    for d, rows in ((64, 37), (256, 19), (768, 20), (1600, 9), (8192, 3)):
        for what in [f"norm_{d}", f"norm_{d}x"]:
            if what in BUILDS:
                add(check_norm, what, [rows], d)
        if d < 8192:
            add(check_norm, f"norm_{d}", [rows], d - 8)
    for d in GRADS:
        width = int(d.rstrip("abc"))
        rows = 40 + 8192 // width
        add(check_norm, f"grad_{d}", [rows if small else 20 * rows], width)
        add(check_norm, f"grad_{d}", [rows], width - 8)
    add(check_norm, "norm_768_residual", [21], 768)
    add(check_norm, "norm_f32", [5, 7], 236)
    add(check_norm, "grad_f32", [1, 700 if small else 7001], 236)
    add(check_gather, "gather", [300], 0, 72)
    add(check_gather, "gather_f32", [3, 5, 7], 1, 9)
    zipf = np.minimum(RNG.zipf(1.3, 9000), 400).astype(np.uint32)
    add(check_scatter, "bf16", zipf, [9000], 1, 300, 5, 264)
    add(check_scatter, "bf16", np.full(1000, 7, np.uint32), [1000], 1, 256, 0, 8)
    add(check_scatter, "f32", zipf[:6000], [60, 100], 2, 390, 0, 36)
    add(check_scatter, "f32", RNG.integers(0, 70000, 500).astype(np.uint32), [5, 100], 1, 66000, 100, 8)
    add(check_scatter, "bf16", RNG.permutation(200).astype(np.uint32)[:120], [120], 2, 150, 20, 72, how="set")
    for name in ("copy_bf16_8", "copy_u32_4", "copy_bf16_1", "copy_u32_1", "copy_bf16_2"):
        add(check_copy, name, [3, 5, 48], False)
        add(check_copy, name, [2, 3, 136, 200] if not name.endswith("1") else [2, 2, 67, 129], True)
    add(check_fill)
    for name, vocab in [("ce_32", 256), ("ce_32", 1021), ("ce_256", 16384), ("ce_256", 5001), ("ce_walk", 5001), ("ce_walk", 9),
                        ("ce_512", 50304), ("ce_512", 50257), ("ce_1024", 131072),
                        ("ce_1024x2", 50304), ("ce_walk_1024", 50257)]:
        add(check_ce, name, vocab, 3, 5 if vocab > 9999 else 13)
    add(check_ce, "ce_given", 4999, 3, 13, first_row=100, more=50)
    add(check_ce, "ce_lse", 4999, 3, 13, first_row=100, more=50)
    add(check_ce, "ce_f32", 4999, 3, 13, row_sizes=(4, 10))
    failed = 0
    for f, a, k in tests:
        try:
            f(dev, *a, **k)
        except AssertionError as e:
            failed += 1
            print("FAILED", f.__name__, [x for x in a if not isinstance(x, np.ndarray)], str(e)[:300], flush=True)
    print(f"{len(tests) - failed} of {len(tests)} checks passed", flush=True)
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["emit"]:
        emit(sys.argv[2])
    else:
        from rows_times import times
        gpu = Gpu(sys.argv[2])
        failures = check(gpu)
        times(gpu)
        sys.exit(failures > 0)
