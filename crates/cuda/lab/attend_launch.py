"""Launches of the attention kernels: parameters, grids, shared memory. A model of the host's part."""

import ctypes
import math
import struct

import numpy as np
import torch

import gemm_host
from attend_lists import EMPTY, FULL, UNIT, Masks, Packed, band, lists, units


class Operand(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("batch", ctypes.c_int64 * 3)] + [
        (n, ctypes.c_int64) for n in "kv group column row width".split()
    ]


OPERANDS = "q k v o lse dout dlse dq dk dv".split()


class Params(ctypes.Structure):
    _fields_ = (
        [(n, Operand) for n in OPERANDS]
        + [(n, ctypes.c_uint64) for n in "stats first entries order masks position".split()]
        + [("batch", ctypes.c_uint32 * 3)]
        + [
            (n, ctypes.c_uint32)
            for n in (
                "kv group queries keys query_length key_length query_magic key_magic query_step "
                "key_step query_units tiles kinds section key_width value_width"
            ).split()
        ]
        + [("scale", ctypes.c_float), ("scale_log2", ctypes.c_float)]
    )


def read_variants(path, arch="sm_90a"):
    """The lines of variants.attend.txt for bf16 and an architecture as (file, options)."""
    lines = [line.split() for line in open(path) if not line.startswith("#")]
    return [
        (file, {name: int(value) for name, value in (d[2:].split("=") for d in options)})
        for file, _, of, *options in lines
        if of in ("both", arch) and "-DF16=1" not in options
    ]


class Driver:
    """Kernels of the cubins, through the driver API and torch's context."""

    device = "cuda"
    tensor_map = staticmethod(gemm_host.tensor_map)

    def __init__(self, folder):
        self.folder, self.cuda, self.functions = folder, ctypes.CDLL("libcuda.so.1"), {}
        self.variants = read_variants(f"{folder}/variants.attend.txt")
        torch.zeros(1, device="cuda")

    def check(self, status, what):
        if status:
            raise SystemExit(f"{what}: CUDA error {status}")

    def function(self, file, entry, options, shared):
        name = "_".join([file, *(f"{k}{v}" for k, v in options.items())])
        if (name, entry) not in self.functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            with open(f"{self.folder}/{name}.cubin", "rb") as f:
                image = f.read()
            self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), image), name)
            self.check(
                self.cuda.cuModuleGetFunction(ctypes.byref(function), module, entry.encode()), entry
            )
            # All of L1 for shared memory, so that the blocks meant to fit do.
            self.check(self.cuda.cuFuncSetAttribute(function, 9, 100), f"{name}: carve-out")
            self.functions[name, entry] = function, 48 << 10
        function, most = self.functions[name, entry]
        if shared > most:
            self.check(self.cuda.cuFuncSetAttribute(function, 8, shared), f"{name}: {shared} bytes")
            self.functions[name, entry] = function, shared
        return function

    def launch(self, file, entry, options, params, grid, threads, shared):
        self.prepare(file, entry, options, params, grid, threads, shared)()

    def prepare(self, file, entry, options, params, grid, threads, shared):
        """A launch that costs the host little: kernels of 20 us are timed behind it."""
        function = self.function(file, entry, options, shared)
        args = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        launch, what = self.cuda.cuLaunchKernel, f"{entry} {options} {grid}"

        def run():
            self.check(
                launch(function, *grid, 1, threads, 1, 1, shared, stream, args, None), what
            )

        run.keeps = params
        return run


def magic(length):
    """x // length = x * magic >> 32, for x * length < 2**32."""
    return min(-(-(2**32) // length), 2**32 - 1)


class Side:
    """Lists of a launch, on the device: first, entries, order, and how many tiles they are of."""

    def __init__(self, device, first, entries, order, tiles):
        self.first, self.entries, self.order = (
            torch.from_numpy(a.view(np.int32)).to(device) for a in (first, entries, order)
        )
        self.tiles = tiles


def prepared(make):
    """A method that returns a launch: made once, then only launched."""

    def run(self):
        if make.__name__ not in self.ready:
            self.ready[make.__name__] = make(self)
        self.ready[make.__name__]()

    run.__name__ = make.__name__
    return run


class Attention:
    """Operands as views [b0, b1, b2, kv, group, column, row, width], and the launches over them.

    `tile` is the units of a tile; `pack` the steps of packed columns, None for one column; `band`
    the units of a stretch of attend_band, 0 for the backward in two kernels; `options` narrow the
    choice of its variants; `hopper` takes the kernels of
    Hopper alone.
    """

    def __init__(
        self,
        driver,
        views,
        pattern,
        tile=1,
        pack=None,
        fused=False,
        plain=False,
        section=1 << 20,
        band_units=0,
        options=None,
        hopper=False,
    ):
        self.ready, self.band_units, self.options = {}, band_units, options or {}
        self.hopper = hopper
        self.driver, self.v, self.pattern, self.plain, self.fused = (
            driver,
            views,
            pattern,
            plain,
            fused,
        )
        q, k, v = (views[n] for n in "qkv")
        *batch, kv, group, columns, rows, dq = q.shape
        key_rows, dv = k.shape[6], v.shape[7]
        self.dq, self.dv, self.kv, self.group = dq, dv, kv, group
        self.tile, self.pack = tile, int(pack is not None)
        steps = pack or (UNIT, UNIT)
        inner = Packed(pattern, rows, key_rows) if pack else pattern
        assert (pack or columns == 1) and (tile == 1 or not pack)
        queries, keys = rows * columns, key_rows * columns
        self.outer, self.kinds = math.prod(batch) * kv, pattern.kinds
        query_units, key_units = -(-queries // steps[0]), -(-keys // steps[1])
        masks = Masks()
        kept = [units(inner, h, queries, keys, steps, masks) for h in range(self.kinds)]
        self.kept, device = kept, driver.device
        self.by_row = Side(device, *lists(kept, query_units, key_units, tile, False))
        self.by_column = Side(device, *lists(kept, key_units, query_units, tile, True))
        if band_units:
            assert group == 1, "attend_band: no shared keys"
            *of, self.slots = band(kept, query_units, key_units, band_units)
            self.by_band = Side(device, *of)
        if fused:
            assert (
                tile == 1
                and group == 1
                and all(
                    len(of)
                    == query_units
                    == key_units
                    == len({q for q, _ in of})
                    == len({k for _, k in of})
                    for of in kept
                )
            ), "fused: tiles see one another in pairs"
        self.masks = torch.from_numpy(masks.table().view(np.int32)).to(device)
        self.stats_rows = torch.full(
            (self.outer * group * query_units + 1, UNIT, 2), math.nan, device=device
        )
        p = self.params = Params()
        p.batch[:] = batch
        p.kv, p.group, p.queries, p.keys = kv, group, queries, keys
        p.query_length, p.key_length = rows, key_rows
        p.query_magic, p.key_magic = magic(rows), magic(key_rows)
        assert not pack or max(queries * rows, keys * key_rows) < 1 << 32
        p.query_step, p.key_step = steps
        p.query_units, p.kinds, p.section = query_units, self.kinds, section
        p.key_width, p.value_width = dq, dv
        p.scale = 1 / math.sqrt(dq)
        p.scale_log2 = p.scale * math.log2(math.e)
        p.stats, p.masks = self.stats_rows.data_ptr(), self.masks.data_ptr()
        for name, view in views.items():
            s = view.stride()
            operand = Operand(
                view.data_ptr(), s[:3], s[3], s[4], s[5], s[6], s[7] if view.dim() == 8 else 0
            )
            setattr(p, name, operand)

    def head_map(self, name):
        """Tensor map of an operand, and which axes of the head its last three are (5: none)."""
        x = self.v[name]
        sizes, strides = x.shape, x.stride()
        some = sizes[7]  # a legal stride, where an axis has size 1
        axes = [a for a in range(5) if sizes[a] > 1 and strides[a] > 0]
        assert len(axes) <= 3 and strides[7] == 1, "no map of this operand"
        rows = (sizes[6], strides[6] if sizes[6] > 1 else some)
        of = [(sizes[7], 1), rows, *((sizes[a], strides[a]) for a in axes)]
        of += [(1, some)] * (5 - len(of))
        made = self.driver.tensor_map(
            x.data_ptr(), [a for a, _ in of], [b for _, b in of], [UNIT, UNIT, 1, 1, 1]
        )
        return made, [*axes, 5, 5, 5][:3]

    def start_hopper(self, entry, shared, side, heads):
        """HopperParams: five maps, Params, the axes of each, runs of 1; a multiple of 64 bytes."""
        blocks, p = heads * side.tiles, self.params_of(side, heads * side.tiles)
        maps, axes = zip(*(self.head_map(n) for n in ("q", "k", "v", "dout", "o")))
        image = b"".join(maps) + bytes(p) + struct.pack("<16I", *sum(axes, []), 1)
        image = ctypes.create_string_buffer(image, -(-len(image) // 64) * 64)
        return self.driver.prepare(
            entry, entry, self.variant(entry), image, (blocks, 1), 384, 1024 + shared
        )

    @prepared
    def forward_hopper(self):
        assert self.tile == 2 and not self.pack
        shared = 256 * self.dq + 2 * 256 * (self.dq + self.dv)
        return self.start_hopper("attend_fwd_sm90", shared, self.by_row, self.outer * self.group)

    @prepared
    def grad_q_hopper(self):
        assert self.tile == 2 and not self.pack
        shared = (256 + 4 * 128) * (self.dq + self.dv)
        return self.start_hopper("attend_dq_sm90", shared, self.by_row, self.outer * self.group)

    @prepared
    def dkv_hopper(self):
        assert self.tile == 2 and not self.pack
        shared = (256 + 3 * 128) * (self.dq + self.dv) + 3 * 528
        return self.start_hopper("attend_dkv_sm90", shared, self.by_column, self.outer)

    def params_of(self, side, blocks):
        p = Params.from_buffer_copy(self.params)
        if side is not None:
            p.first, p.entries, p.order = (
                x.data_ptr() for x in (side.first, side.entries, side.order)
            )
            p.tiles = side.tiles
            p.section = min(p.section, blocks // side.tiles)
        return p

    def start(self, entry, options, grid, threads, shared, side=None):
        file, p = "attend_plain" if self.plain else entry, self.params_of(side, grid[0])
        return self.driver.prepare(file, entry, options, p, grid, threads, shared)

    def variant(self, file, **more):
        """The first line of the list that fits."""
        wanted = {"DQ": self.dq, "DV": self.dv, "ROW_TILES": self.tile, "PACK": self.pack, **more}
        if self.plain:
            wanted = {"BF16": int(self.v["q"].dtype == torch.bfloat16), "PACK": self.pack}
            file = "attend_plain"
        for name, options in self.driver.variants:
            if name == file and all(wanted.get(n, v) == v for n, v in options.items()):
                return options
        raise SystemExit(f"no variant of {file} for {wanted}")

    def forward(self):
        (self.forward_hopper if self.hopper else self.forward_mma)()

    @prepared
    def forward_mma(self):
        o, width, heads = self.variant("attend_fwd"), self.dq + self.dv, self.outer * self.group
        if self.plain:
            return self.start(
                "attend_plain_fwd", o, (heads * self.by_row.tiles, 16), 128, 16 * width, self.by_row
            )
        shared = 2 * (64 * self.tile * self.dq + o["STAGES"] * 64 * width)
        return self.start("attend_fwd", o, (heads * self.by_row.tiles, 1), 128, shared, self.by_row)

    @prepared
    def stats(self):
        o, units = self.variant("attend_stats"), self.params.query_units
        if self.plain:
            blocks = self.outer * self.group * units
            return self.start("attend_plain_stats", o, (blocks, 16), 128, 0)
        per_block = {32: 4, 64: 2}.get(self.dv, 1)
        blocks = self.outer * self.group * -(-units // per_block)
        return self.start("attend_stats", o, (blocks, 1), 256, 0)

    @prepared
    def dkv(self):
        o, width = self.variant("attend_dkv", FUSED=int(self.fused)), self.dq + self.dv
        blocks = self.outer * self.by_column.tiles
        if self.plain:
            return self.start("attend_plain_dkv", o, (blocks, 16), 128, 32 * width, self.by_column)
        shared = (
            2 * (64 * self.tile + o["STAGES"] * 64) * width
            + 16384 * self.tile
            + 512 * o["STAGES"]
            + 8192 * self.fused
        )
        return self.start("attend_dkv", o, (blocks, 1), 256, shared, self.by_column)

    @prepared
    def grad_q(self):
        o, width = self.variant("attend_dq"), self.dq + self.dv
        blocks = self.outer * self.group * self.by_row.tiles
        if self.plain:
            return self.start(
                "attend_plain_dq", o, (blocks, 16), 128, 16 * (self.dq + width), self.by_row
            )
        shared = 2 * (64 * self.tile + o["STAGES"] * o["CHUNK"]) * width
        return self.start("attend_dq", o, (blocks, 1), 128, shared, self.by_row)

    @prepared
    def grad_band(self):
        o, width = self.variant("attend_band", **self.options), self.dq + self.dv
        shared = (o["KEY_STAGES"] + 2) * 128 * width + 9216 + self.slots * 256 * self.dq
        blocks = self.outer * self.by_band.tiles
        return self.start("attend_band", o, (blocks, 1), 128, shared, self.by_band)

    def parts(self):
        """The launches of a backward."""
        if self.hopper:
            return [self.grad_q_hopper, self.dkv_hopper]
        if self.band_units:
            return [self.stats, self.grad_band]
        return [self.dkv] if self.fused else [self.stats, self.dkv, self.grad_q]

    def backward(self):
        for part in self.parts():
            part()

    def flops(self):
        """Of the pairs kept: forward, and backward as it is counted for everybody (5 products)."""
        pairs = 0
        for h, kept in enumerate(self.kept):
            pairs += sum(UNIT * UNIT if code == FULL else 0 for code in kept.values())
            words = self.masks[:, :128].cpu().numpy().view(np.uint8)
            bits = np.unpackbits(words, axis=-1).reshape(len(words), -1).sum(-1)
            pairs += sum(int(bits[code]) for code in kept.values() if code not in (FULL, EMPTY))
        pairs = pairs * self.outer * self.group // self.kinds
        return 2 * pairs * (self.dq + self.dv), 2 * pairs * (3 * self.dq + 2 * self.dv)
