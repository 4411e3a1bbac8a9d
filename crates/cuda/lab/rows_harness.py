"""What rows.py stands on: programs and their C text, parameters, a GPU, buffers between canaries.

`Program.text` is what the generator of the crate writes, instruction by instruction.
"""
import ctypes, os, struct
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "..", "kernels")
RNG = np.random.default_rng(5)

# ---------------------------------------------------------------- programs and their C text
UNARY = {"exp": np.exp, "ln": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "abs": np.abs,
         "neg": np.negative, "sin": np.sin, "cos": np.cos, "floor": np.floor,
         "rsqrt": lambda x: 1 / np.sqrt(x), "recip": lambda x: 1 / x,
         "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "not": lambda x: (x == 0) * 1.0,
         "erf": lambda x: np.vectorize(__import__("math").erf)(x),
         "round": lambda x: widen(narrow(x))}
BINARY = {"add": ("{0} + {1}", np.add), "sub": ("{0} - {1}", np.subtract),
          "mul": ("{0} * {1}", np.multiply), "div": ("{0} / {1}", np.divide),
          "min": ("math::min({0}, {1})", np.minimum), "max": ("math::max({0}, {1})", np.maximum),
          "pow": ("math::pow({0}, {1})", np.power),
          "lt": ("math::truth({0} < {1})", lambda a, b: (a < b) * 1.0),
          "le": ("math::truth({0} <= {1})", lambda a, b: (a <= b) * 1.0),
          "eq": ("math::truth({0} == {1})", lambda a, b: (a == b) * 1.0)}


class Program:
    """`inputs` and `outputs` are (dtype, mode) with mode unit, zero or strided along the lanes;
    `indices` are modes of numbers linear in the coordinates; `code` a list of instructions that
    define values 0, 1, ... in turn, and of stores and at most one result."""

    def __init__(self, inputs, outputs, code, indices=()):
        self.inputs, self.outputs, self.code, self.indices = inputs, outputs, code, indices

    def text(self, name, base=0, index_base=0):
        site = "const Site<OPERANDS + INDICES>& s"
        fields, loads, before, lines, after = [], [], [], [], []
        for i, (dtype, mode) in enumerate(self.inputs):
            k, n = base + i, "1" if mode == "zero" else "N"
            fields.append(f"        Vec<{dtype}, {n}> x{i};")
            call = (f"::load_strided<{dtype}, N>(s.ptr[{k}], s.at[{k}], s.lane[{k}])"
                    if mode == "strided" else f"::load<{dtype}, {n}>(s.ptr[{k}], s.at[{k}])")
            loads.append(f"        l.x{i} = {call};")
        value = 0
        for op, *a in self.code:
            if op == "store":
                (dtype, mode), k = self.outputs[a[0]], base + len(self.inputs) + a[0]
                before.append(f"        f32 y{a[0]}[N];")
                lines.append(f"            y{a[0]}[i] = v{a[1]};")
                after.append(f"        ::store_strided<{dtype}, N>(s.ptr[{k}], s.at[{k}], s.lane[{k}],"
                             f" y{a[0]});" if mode == "strided" else
                             f"        ::store<{dtype}, N>(s.ptr[{k}], s.at[{k}], y{a[0]});")
                continue
            if op == "result":
                lines.append(f"            result[i] = v{a[0]};")
                continue
            v = [f"v{x}" for x in a]
            if op == "load":
                lane = "0" if self.inputs[a[0]][1] == "zero" else "i"
                e = f"get(l.x{a[0]}, {lane})"
            elif op == "product":
                e = "product[i]"
            elif op == "const":
                e = f"__uint_as_float(0x{struct.unpack('I', struct.pack('f', a[0]))[0]:08x}u)"
            elif op == "coord":
                e = f"s.coordinate({index_base + a[0]}, i)"
            elif op == "piece":
                e = "s.piece()"
            elif op == "rand":
                k = index_base + a[0]
                draw = (f"draw_unit<N>(t{value}, s.element({k}), d{value})"
                        if self.indices[a[0]] == "unit" else
                        f"draw_strided<N>(t{value}, s.element({k}), s.lane[{k}], d{value})")
                before.append(f"        u32 d{value}[N];")
                before.append(f"        Stream t{value}(s.clock->seed, s.clock->step, {a[1]:#x}ull);")
                before.append(f"        {draw};")
                e = f"unit_interval(d{value}[i])"
            elif op == "select":
                e = f"{v[0]} != 0.0f ? {v[1]} : {v[2]}"
            elif op == "fma":
                e = f"fmaf({v[0]}, {v[1]}, {v[2]})"
            elif op in BINARY:
                e = BINARY[op][0].format(*v)
            else:
                e = {"neg": "-{}", "not": "math::truth({} == 0.0f)",
                     "round": "round_bf16({})"}.get(op, "math::" + op + "({})").format(v[0])
            lines.append(f"            f32 v{value} = {e};")
            value += 1
        head = "    template <int N>\n    static __device__ __forceinline__ void "
        return "\n".join([f"struct {name} {{", "    template <int N>\n    struct Loads {", *fields,
                          "    };\n", f"{head}load({site}, Loads<N>& l) {{", *loads, "    }\n",
                          f"{head}run({site}, const Loads<N>& l,", " " * 43 +
                          "const f32 (&product)[N], f32 (&result)[N]) {", *before,
                          "#pragma unroll", "        for (int i = 0; i < N; ++i) {", *lines,
                          "        }", *after, "    }", "};"])

    def evaluate(self, inputs, clock, indices=(), product=None):
        """Stores by output, and the result, in f64."""
        v, outs, result = [], {}, None
        for op, *a in self.code:
            if op == "store":
                outs[a[0]] = v[a[1]]
            elif op == "result":
                result = v[a[0]]
            elif op == "load":
                v.append(inputs[a[0]])
            elif op == "product":
                v.append(product)
            elif op == "const":
                v.append(np.float64(np.float32(a[0])))
            elif op == "coord":
                v.append(indices[a[0]].astype(np.float64))
            elif op == "piece":
                v.append(np.float64(clock["micro"]))
            elif op == "rand":
                first = clock["first"] + clock["micro"] * clock["stride"]
                v.append(uniform(clock["seed"], clock["step"], a[1], indices[a[0]] + first))
            elif op == "select":
                v.append(np.where(v[a[0]] != 0, v[a[1]], v[a[2]]))
            elif op == "fma":
                v.append(v[a[0]] * v[a[1]] + v[a[2]])
            else:
                v.append((BINARY[op][1] if op in BINARY else UNARY[op])(*[v[i] for i in a]))
        return outs, result


def with_programs(source, programs):
    """A template's text with the programs {struct: Program} between its markers."""
    text = open(os.path.join(KERNELS, source)).read()
    if programs is None:
        return text
    base, parts = 0, []
    operands = sum(len(p.inputs) + len(p.outputs) for p in programs.values())
    indices = operands
    for name, p in programs.items():
        parts.append(p.text(name, base, indices))
        base, indices = base + len(p.inputs) + len(p.outputs), indices + len(p.indices)
    start, end = text.index("//@program begin"), text.index("//@program end")
    head = f"constexpr int OPERANDS = {operands};\nconstexpr int INDICES = {indices - operands};\n"
    return text[:start] + head + "\n".join(parts) + "\n" + text[end:]


# ---------------------------------------------------------------- numbers
def narrow(x):
    b = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((b + 0x7fff + ((b >> 16) & 1)) >> 16).astype(np.uint16)


def widen(b):
    return (b.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


NUMPY = {"f32": np.float32, "bf16": np.uint16, "u32": np.uint32}


def as_float(x, dtype):
    return widen(x) if dtype == "bf16" else x.astype(np.float64)


def random(n, dtype):
    if dtype == "u32":
        return RNG.integers(0, 1000, n).astype(np.uint32)
    x = RNG.standard_normal(n).astype(np.float32)
    return narrow(x) if dtype == "bf16" else x


def nans(n, dtype):
    return np.full(n, {"f32": np.nan, "bf16": 0x7fc1, "u32": 0xdeadbeef}[dtype], NUMPY[dtype])


def uniform(seed, step, stream, element):
    """crates/graph/src/random.rs"""
    M = np.uint64(0xffffffff)
    e = np.asarray(element).astype(np.uint64)
    q, s = e >> np.uint64(2), np.uint64(32)
    c = [q & M, q >> s, np.full_like(q, step & 0xffffffff),
         np.full_like(q, (stream ^ (stream >> 32)) & 0xffffffff)]
    k = [seed & 0xffffffff, seed >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> s) ^ c[1] ^ np.uint64(k[0]), b & M, (a >> s) ^ c[3] ^ np.uint64(k[1]), a & M]
        k = [(k[0] + 0x9E3779B9) & 0xffffffff, (k[1] + 0xBB67AE85) & 0xffffffff]
    word = np.choose((e & np.uint64(3)).astype(np.int64), c)
    return (word >> np.uint64(8)).astype(np.float64) / 16777216


# Known answers of Salmon et al.: uniform() forms the words below from an all-zero counter and key.
for _i, _w in enumerate([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]):
    assert uniform(0, 0, 0, _i) == (_w >> 8) / 16777216


# ---------------------------------------------------------------- parameters
def divide(d):
    shift = max(d - 1, 0).bit_length()
    return [("I", d), ("I", (2**32 * (2**shift - d) // d + 1) & 0xffffffff), ("I", shift)]


def space(strides, lanes, sizes):
    """strides[operand][axis], the innermost for a unit."""
    out = [("q", s) for own in strides for s in own] + [("q", s) for s in lanes]
    return out + [f for s in sizes for f in divide(max(int(s), 1))] + [("pad", 8)]


def packed(fields):
    data = b""
    for kind, x in fields:
        size = x if kind == "pad" else struct.calcsize(kind)
        data += b"\0" * (-len(data) % size)
        if kind != "pad":
            data += struct.pack(kind, x)
    return data + b"\0" * (-len(data) % 8)


CLOCK = {"seed": 7 << 40 | 11, "step": 3, "micro": 2, "first": 5 << 33, "stride": 4096}


def ptr(b):
    return ("Q", b.ptr if b is not None else 0)


def draws():
    return [("Q", CLOCK["first"]), ("Q", CLOCK["stride"])] + [("Q", 0)] * 4


# ---------------------------------------------------------------- devices
class Gpu:
    def __init__(self, folder):
        import torch
        self.torch, self.folder, self.functions = torch, folder, {}
        torch.zeros(1, device="cuda")
        self.cuda = ctypes.CDLL("libcuda.so.1")

    def up(self, raw):
        return self.torch.from_numpy(raw.copy()).cuda()

    def address(self, held):
        return held.data_ptr()

    def down(self, held):
        return held.cpu().numpy()

    def function(self, name, entry, shared):
        key = (name, entry)
        if key not in self.functions:
            module, f = ctypes.c_void_p(), ctypes.c_void_p()
            image = open(f"{self.folder}/{name}.cubin", "rb").read()
            self.ok(self.cuda.cuModuleLoadData(ctypes.byref(module), image), name)
            self.ok(self.cuda.cuModuleGetFunction(ctypes.byref(f), module, entry.encode()), entry)
            if shared > 48 << 10:
                self.ok(self.cuda.cuFuncSetAttribute(f, 8, shared), "shared memory")
            self.functions[key] = f
        return self.functions[key]

    def ok(self, code, what):
        assert code == 0, f"{what}: CUDA error {code}"

    def launch(self, name, entry, params, grid, block, shared=0):
        if grid[0] == 0:
            return
        f = self.function(name, entry, shared)
        held = ctypes.create_string_buffer(params, len(params))
        args = (ctypes.c_void_p * 1)(ctypes.addressof(held))
        grid = list(grid) + [1] * (3 - len(grid))
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        self.ok(self.cuda.cuLaunchKernel(f, *map(int, grid), int(block), 1, 1, shared, stream, args,
                                         None), entry)


class Buffer:
    """An array between canaries."""
    GUARD = 256

    def __init__(self, dev, array):
        self.dev, self.array, raw = dev, array, array.view(np.uint8).reshape(-1)
        guard = np.full(self.GUARD, 0xa5, np.uint8)
        self.held = dev.up(np.concatenate([guard, raw, guard]))
        self.ptr = dev.address(self.held) + self.GUARD

    def get(self):
        raw = self.dev.down(self.held)
        assert (raw[:self.GUARD] == 0xa5).all() and (raw[-self.GUARD:] == 0xa5).all(), "canary"
        return raw[self.GUARD:-self.GUARD].view(self.array.dtype).copy()


def cdiv(a, b):
    return -(-int(a) // int(b))


def close(name, got, want, dtype, slack=1.0):
    got = as_float(got, dtype)
    rtol = 2.0**-8 if dtype == "bf16" else 1e-5
    bad = ~((np.abs(got - want) <= slack * rtol * (np.abs(want) + 0.1)) | (np.isnan(want) & np.isnan(got)))
    assert not bad.any(), (name, bad.sum(), got[bad][:4], want[bad][:4])


def twice(run):
    """The outputs of a run, which another run repeats bit by bit."""
    first, second = run(), run()
    for a, b in zip(first, second):
        assert a.tobytes() == b.tobytes(), "another run gave other bits"
    return first


def place(sizes, order, pad, zero=()):
    """Strides of an array whose axes lie in this order, outermost first, rows `pad` longer; 0 along
    the axes `zero`; and how many elements it has."""
    strides, step = [0] * len(sizes), 1
    for n, axis in enumerate(reversed(order)):
        if axis in zero:
            continue
        strides[axis] = step
        step *= sizes[axis] + (pad if n == 0 else 0)
    return strides, step


def view(array, sizes, strides):
    return np.lib.stride_tricks.as_strided(array, sizes, [s * array.itemsize for s in strides])


def stored(size, sizes, strides, dtype, values):
    """What a buffer of NaN holds after the values were stored."""
    want = np.full(size, np.inf)
    view(want, sizes, strides)[...] = values
    return want


def close_stored(name, got, want, dtype, slack=1.0):
    rest = np.isposinf(want)
    assert (got[rest] == nans(1, dtype)[0]).all() if dtype != "f32" else np.isnan(got[rest]).all(), name
    close(name, got[~rest], want[~rest], dtype, slack)
