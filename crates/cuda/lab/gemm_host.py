"""Host side of the products for the lab: driver calls, tensor maps, parameter structs, operands.

Everything goes through libcuda by ctypes; arrays are torch tensors.
"""

import ctypes
import math
import os
import struct

import torch

# What splits are planned for: a constant, so that bits do not depend on the device.
PROCESSORS = 132

_driver = None


def driver():
    global _driver
    if _driver is None:
        torch.zeros(1, device="cuda")  # makes the context current
        _driver = ctypes.CDLL("libcuda.so.1")
    return _driver


def check(code, what):
    if code != 0:
        name = ctypes.c_char_p()
        driver().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"{what}: {name.value.decode() if name.value else code}")


class MapError(Exception):
    """The driver refuses a tensor map."""


class Module:
    """A cubin with the entries `gemm` and, unless it cannot split, `gemm_reduce`."""

    def __init__(self, path, shared_bytes):
        image = open(path, "rb").read()
        self.shared_bytes = shared_bytes
        self.handle = ctypes.c_void_p()
        check(driver().cuModuleLoadData(ctypes.byref(self.handle), image), f"load {path}")
        self.gemm = self.entry("gemm")
        if shared_bytes > 48 * 1024:
            code = driver().cuFuncSetAttribute(self.gemm, 8, shared_bytes)  # most dynamic shared
            check(code, f"{shared_bytes} bytes of shared memory")

    def entry(self, name):
        function = ctypes.c_void_p()
        code = driver().cuModuleGetFunction(ctypes.byref(function), self.handle, name.encode())
        check(code, f"entry {name}")
        return function


class Launch:
    """A call that is ready to go, as often as one likes."""

    def __init__(self, function, grid, threads, shared_bytes, params):
        self.function, self.grid, self.threads, self.shared = function, grid, threads, shared_bytes
        self.params = ctypes.create_string_buffer(params, len(params))
        self.list = (ctypes.c_void_p * 1)(ctypes.addressof(self.params))

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        x, y, z = self.grid
        code = driver().cuLaunchKernel(
            self.function, x, y, z, self.threads, 1, 1, self.shared, stream, self.list, None
        )
        check(code, "launch")


def tensor_map(address, sizes, strides, box):
    """bf16, swizzle of 128 bytes, zeros out of bounds; sizes and strides (elements) from inside."""
    space = ctypes.create_string_buffer(128 + 64)
    at = (ctypes.addressof(space) + 63) // 64 * 64
    u64, u32 = ctypes.c_uint64 * 5, ctypes.c_uint32 * 5
    code = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(at), 9, 5, ctypes.c_void_p(address), u64(*sizes),
        (ctypes.c_uint64 * 4)(*[2 * s for s in strides[1:]]), u32(*box), u32(1, 1, 1, 1, 1),
        0, 3, 2, 0,
    )
    if code != 0:
        raise MapError(f"tensor map refused ({code}): sizes {sizes}, strides {strides}, box {box}")
    return ctypes.string_at(at, 128)


def operand_map(x, k_contiguous, permuted):
    """Map of an operand [b0, b1, b2, side, K] and its flags `batched`."""
    sizes, strides = list(x.shape), list(x.stride())
    batched = [int(sizes[i] > 1 and strides[i] != 0) for i in range(3)]
    if permuted:
        n, k, row = sizes[3], sizes[4], strides[3]
        assert k_contiguous and n % 32 == 0 and not any(batched)
        return tensor_map(x.data_ptr(), [k, 2, 4, 4, n // 32],
                          [1, row, 8 * row, 2 * row, 32 * row], [64, 2, 4, 4, 2]), batched
    inner, outer = (4, 3) if k_contiguous else (3, 4)
    assert strides[inner] == 1 or sizes[inner] == 1, (sizes, strides)
    some = max(8, -(-sizes[inner] // 8) * 8)  # a legal stride, where the axis has size 1
    axis = lambda i: (sizes[i], strides[i]) if sizes[i] > 1 and strides[i] else (1, some)
    rows = (sizes[outer], strides[outer]) if sizes[outer] > 1 else (1, some)
    all_axes = [(sizes[inner], 1), rows, axis(2), axis(1), axis(0)]
    return tensor_map(x.data_ptr(), [a for a, _ in all_axes], [b for _, b in all_axes],
                      [64, 64, 1, 1, 1]), batched


def strides_of(x, rows=3, cols=4):
    """`Strides` of an operand [b0, b1, b2, m, n]."""
    s = [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride())]
    return struct.pack("<5q", *s)


def epilogue_params(operands):
    """Epi of the samples: all pointers, then all strides."""
    out = struct.pack(f"<{len(operands)}Q", *[x.data_ptr() for x in operands])
    return out + b"".join(strides_of(x) for x in operands)


def work_for(splits, batches, m, n, sums=False):
    if splits == 1:
        return None
    size = splits * (batches * m * (-(-n // 8) * 8) + (m if sums else 0))
    return torch.full((size,), math.nan, device="cuda")


def split_of(slices, wanted):
    """Of `wanted` shares, as many as leave none empty."""
    share = -(-slices // max(1, min(wanted, slices)))
    return -(-slices // share)


def best_split(tiles, slices, m, n, k):
    """Shares of K that fill the device: what a wave takes against the traffic of the parts."""
    def cost(s):
        waves = -(-tiles * s // PROCESSORS) * PROCESSORS / s
        product = waves * (2 * m * n * k / tiles) / 600e12
        return product + (2 * s * m * n * 4 / 2.5e12 + 3e-6 if s > 1 else 0)
    return split_of(slices, min(range(1, min(slices, 96) + 1), key=cost))


def reduce_grid(batches, m, n):
    return (-(-batches * m * -(-n // 8) // 64), 1, 1)


def general(module, defs, a, b, epi, alpha=1.0, splits=1, k_outer=1):
    """Calls of gemm.cu for a [b0, b1, b2, m, k], b [b0, b1, b2, n, k]; k may be (outer, inner)."""
    batch = [max(x, y) for x, y in zip(a.shape[:3], b.shape[:3])]
    m, n = a.shape[3], b.shape[3]
    k = a.shape[-1]
    tile = defs["BM"], defs["BN"], defs["BK"]
    work = work_for(splits, math.prod(batch), m, n)
    stride = lambda x, i: 0 if x.shape[i] == 1 else x.stride(i)
    side = lambda x: [stride(x, 3), x.stride(-1), stride(x, 4) if k_outer > 1 else 0]
    core = struct.pack(
        "<3Q12q8ifi", a.data_ptr(), b.data_ptr(), work.data_ptr() if work is not None else 0,
        *side(a), *side(b), *[stride(a, i) for i in range(3)], *[stride(b, i) for i in range(3)],
        m, n, k, k_outer, *batch, splits, alpha, 0)
    params = core + epi
    threads = 256 if defs["COMPUTE_F32"] else 32 * defs["WARPS_M"] * defs["WARPS_N"]
    grid = (-(-m // tile[0]) * -(-n // tile[1]), splits, math.prod(batch))
    calls = [Launch(module.gemm, grid, threads, module.shared_bytes, params)]
    if splits > 1:
        reduce = module.entry("gemm_reduce")
        calls.append(Launch(reduce, reduce_grid(math.prod(batch), m, n), 256, 0, params))
    return calls, work


def hopper(module, defs, a, b, epi, alpha=1.0, wanted=1, sums=None):
    """Calls of gemm_sm90.cu or gemm_resident_sm90.cu; shapes as for `general`. `sums`: where those
    of A go with -DSUMS=1, one for each of its rows."""
    batch = [max(x, y) for x, y in zip(a.shape[:3], b.shape[:3])]
    batches, m, n, k = math.prod(batch), a.shape[3], b.shape[3], a.shape[4]
    bn, cluster = defs["BN"], defs.get("CLUSTER")
    splits = split_of(-(-k // 64), wanted)
    work = work_for(splits, batches, m, n, sums is not None)
    map_a, a_batched = operand_map(a, defs["A_K"], False)
    map_b, b_batched = operand_map(b, defs["B_K"], defs.get("B_PERMUTED", 0))
    core = map_a + map_b + struct.pack(
        "<Q13if", work.data_ptr() if work is not None else 0, m, n, k, *batch, *a_batched,
        *b_batched, splits, alpha)
    assert len(core) == 320
    params = core + epi
    assert (sums is not None) == bool(defs.get("SUMS"))
    if sums is not None:
        assert len(epi) % 8 == 0 and sums.shape == (m,) and sums.dtype == torch.float32
        params += struct.pack("<Qq", sums.data_ptr(), sums.stride(0))
    params += bytes(-len(params) % 64)
    columns = -(-n // bn)
    if cluster is None:
        assert k <= 256 and splits == 1
        walkers = max(1, min(-(-m // 64), PROCESSORS // (columns * batches)))
        grid = (walkers, columns, batches)
    else:
        items = batches * splits * -(-m // (128 * cluster)) * columns
        grid = (cluster * min(items, PROCESSORS // cluster), 1, 1)
    calls = [Launch(module.gemm, grid, 384, module.shared_bytes, params)]
    if splits > 1:
        reduce = module.entry("gemm_reduce")
        blocks = reduce_grid(batches, m, n)[0] + (-(-m // 64) if sums is not None else 0)
        calls.append(Launch(reduce, (blocks, 1, 1), 256, 0, params))
    return calls, work


def shared_bytes(file, defs):
    if file == "gemm.cu":
        wide = 8 if defs["COMPUTE_F32"] else 0
        size = 4 if defs["COMPUTE_F32"] else 2
        return defs["STAGES"] * (defs["BM"] + defs["BN"] + wide) * defs["BK"] * size
    widest = 256 if file == "gemm_resident_sm90.cu" else 320
    return 230400 if defs["BN"] == widest else 197632


def load(folder, name, file, defs):
    return Module(os.path.join(folder, name + ".cubin"), shared_bytes(file, defs))
