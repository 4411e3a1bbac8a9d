"""The variants of the products that the lab runs: NAME -> (FILE, -D constants).

    python3 gemm_variants.py --build      lines NAME FILE ARCH -D... for build_gemm.sh
    python3 gemm_variants.py --table      lines FILE ENTRY ARCH -D... for variants.gemm.txt
"""

import sys

VARIANTS = {}


def add(name, file, **defs):
    VARIANTS[name] = (file, defs)


def header(name):
    return f"<lib/gemm_{name}.cuh>"


# gemm.cu, tensor cores: all layouts and tiles
BIG = dict(BM=128, BN=128, BK=32, STAGES=4, WARPS_M=2, WARPS_N=4)
DEEP = dict(BM=128, BN=128, BK=64, STAGES=3, WARPS_M=2, WARPS_N=4)
MIDDLE = dict(BM=128, BN=64, BK=64, STAGES=3, WARPS_M=2, WARPS_N=2)
SMALL = dict(BM=64, BN=64, BK=64, STAGES=4, WARPS_M=2, WARPS_N=2)
TENSOR = dict(COMPUTE_F32=0, A_F32=0, B_F32=0)
for tile_name, tile in [("big", BIG), ("deep", DEEP), ("middle", MIDDLE), ("small", SMALL)]:
    for a in (0, 1):
        for b in (0, 1):
            add(f"mma_{tile_name}_{a}{b}", "gemm.cu", **TENSOR, A_LAYOUT=a, B_LAYOUT=b, **tile)
add("mma_split", "gemm.cu", **TENSOR, A_LAYOUT=1, B_LAYOUT=1, **DEEP, SPLIT=1, ACCUMULATE=1)
add("mma_any", "gemm.cu", **TENSOR, A_LAYOUT=2, B_LAYOUT=2, **SMALL, C_WIDE=0, C_BF16=1)
add("mma_any_mixed", "gemm.cu", COMPUTE_F32=0, A_F32=1, B_F32=0, A_LAYOUT=2, B_LAYOUT=2, **SMALL,
    C_WIDE=0)
for e in ("bias_gelu", "residual", "gelu_grad"):
    add(f"mma_{e}", "gemm.cu", **TENSOR, A_LAYOUT=0, B_LAYOUT=0, **DEEP, EPILOGUE=header(e))
add("mma_time", "gemm.cu", **TENSOR, A_LAYOUT=0, B_LAYOUT=0, **DEEP, C_BF16=1, BATCHED=0, N_WHOLE=1)

# gemm.cu, f32
FLOAT = dict(COMPUTE_F32=1, A_LAYOUT=2, B_LAYOUT=2, WARPS_M=2, WARPS_N=4)
F_BIG = dict(BM=128, BN=128, BK=16, STAGES=3)
F_SMALL = dict(BM=64, BN=64, BK=16, STAGES=4)
add("f32_big", "gemm.cu", **FLOAT, A_F32=1, B_F32=1, **F_BIG)
add("f32_small", "gemm.cu", **FLOAT, A_F32=1, B_F32=1, **F_SMALL, C_WIDE=0, ACCUMULATE=1)
add("f32_mixed", "gemm.cu", **FLOAT, A_F32=1, B_F32=0, **F_SMALL, C_WIDE=0)
add("f32_split", "gemm.cu", **FLOAT, A_F32=1, B_F32=1, **F_BIG, SPLIT=1)
add("f32_bias_gelu", "gemm.cu", **FLOAT, A_F32=1, B_F32=1, **F_BIG, EPILOGUE=header("bias_gelu"))

# gemm_sm90.cu: every form; the widest tile has neither batches nor ragged vectors
for c in (1, 2):
    LEAN = dict(CLUSTER=c, BATCHED=0, N_WHOLE=1)
    for bn in (320, 256, 128):
        OWN = LEAN if bn == 320 else dict(CLUSTER=c)
        for a in (0, 1):
            for b in (0, 1):
                add(f"ring{c}_{bn}_{a}{b}", "gemm_sm90.cu", A_K=a, B_K=b, BN=bn, **OWN)
    for bn, end in ((256, ""), (128, "_128"), (320, "_320")):
        OWN = dict(BN=bn, **LEAN)
        add(f"ring{c}_permuted{end}", "gemm_sm90.cu", A_K=1, B_K=1, **OWN, B_PERMUTED=1, C_BF16=1)
        add(f"ring{c}_10{end}", "gemm_sm90.cu", A_K=1, B_K=0, **OWN, C_BF16=1)
        add(f"ring{c}_split{end}", "gemm_sm90.cu", A_K=0, B_K=0, **OWN, SPLIT=1, ACCUMULATE=1)
        add(f"ring{c}_00{end}", "gemm_sm90.cu", A_K=0, B_K=0, **OWN, ACCUMULATE=1)
    add(f"ring{c}_11", "gemm_sm90.cu", A_K=1, B_K=1, BN=256, **LEAN, C_BF16=1)
    # Sums of A: ragged columns, then the forms whose timings count
    for bn in (320, 256, 128):
        OWN = LEAN if bn == 320 else dict(CLUSTER=c, BATCHED=0)
        for b in (0, 1):
            add(f"ring{c}_sums_{bn}_0{b}", "gemm_sm90.cu", A_K=0, B_K=b, BN=bn, **OWN, SUMS=1)
    add(f"ring{c}_sums_ragged", "gemm_sm90.cu", A_K=0, B_K=0, BN=256, CLUSTER=c, BATCHED=0,
        SPLIT=1, SUMS=1)
    add(f"ring{c}_sums", "gemm_sm90.cu", A_K=0, B_K=0, BN=256, **LEAN, SPLIT=1, SUMS=1)
    add(f"ring{c}_unsummed", "gemm_sm90.cu", A_K=0, B_K=0, BN=256, **LEAN, SPLIT=1)
    add(f"ring{c}_sums_128", "gemm_sm90.cu", A_K=0, B_K=0, BN=128, **LEAN, SPLIT=1, SUMS=1)
    add(f"ring{c}_unsummed_128", "gemm_sm90.cu", A_K=0, B_K=0, BN=128, **LEAN, SPLIT=1)
    for bn, end in ((256, ""), (320, "_320")):
        OWN = dict(BN=bn, **LEAN)
        for e in ("bias_gelu", "residual"):
            add(f"ring{c}_{e}{end}", "gemm_sm90.cu", A_K=1, B_K=1, **OWN, B_PERMUTED=1,
                EPILOGUE=header(e))
        add(f"ring{c}_gelu_grad{end}", "gemm_sm90.cu", A_K=1, B_K=0, **OWN,
            EPILOGUE=header("gelu_grad"))

# gemm_resident_sm90.cu: every form
for bn in (256, 128):
    for a in (0, 1):
        for b in (0, 1):
            add(f"resident_{bn}_{a}{b}", "gemm_resident_sm90.cu", A_K=a, B_K=b, BN=bn)
LEAN = dict(BATCHED=0, N_WHOLE=1)
add("resident_permuted", "gemm_resident_sm90.cu", A_K=1, B_K=1, BN=256, **LEAN, B_PERMUTED=1,
    C_BF16=1)
add("resident_11", "gemm_resident_sm90.cu", A_K=1, B_K=1, BN=256, **LEAN, C_BF16=1)
add("resident_10", "gemm_resident_sm90.cu", A_K=1, B_K=0, BN=256, **LEAN, C_BF16=1)
for e in ("bias_gelu", "residual"):
    add(f"resident_{e}", "gemm_resident_sm90.cu", A_K=1, B_K=1, BN=256, **LEAN, B_PERMUTED=1,
        EPILOGUE=header(e))
    add(f"resident_{e}_11", "gemm_resident_sm90.cu", A_K=1, B_K=1, BN=256, **LEAN,
        EPILOGUE=header(e))
add("resident_gelu_grad", "gemm_resident_sm90.cu", A_K=1, B_K=0, BN=256, **LEAN,
    EPILOGUE=header("gelu_grad"))

# Several products in one launch: gradients of weights, linear layers, and gradients that are added
GRADIENTS = dict(A_K=0, B_K=0, **LEAN, SPLIT=1)
for c in (1, 2):
    add(f"members{c}_sums", "gemm_sm90.cu", BN=256, CLUSTER=c, **GRADIENTS, SUMS=1, MEMBERS=3)
add("members_sums_128", "gemm_sm90.cu", BN=128, CLUSTER=1, **GRADIENTS, SUMS=1, MEMBERS=4)
add("members_split", "gemm_sm90.cu", BN=256, CLUSTER=1, **GRADIENTS, MEMBERS=2)
for bn in (256, 128):
    LAYERS = dict(A_K=1, B_K=1, BN=bn, **LEAN, EPILOGUE=header("bias_gelu"), MEMBERS=3, BESIDE=1)
    add(f"members_layers_{bn}", "gemm_sm90.cu", **LAYERS, CLUSTER=1, B_PERMUTED=1)
    add(f"members_resident_{bn}", "gemm_resident_sm90.cu", **LAYERS)
for c, bn in ((1, 256), (1, 128), (2, 256)):
    add(f"terms{c}_{bn}", "gemm_sm90.cu", A_K=1, B_K=0, BN=bn, CLUSTER=c, **LEAN, C_BF16=1,
        TERMS=3)


# In the table alone: the lab runs bf16.
F16 = [
    ("gemm.cu", dict(COMPUTE_F32=0, A_F32=0, B_F32=0, A_LAYOUT=0, B_LAYOUT=0, BM=128, BN=128,
                     BK=64, STAGES=3, WARPS_M=2, WARPS_N=4, C_BF16=1, F16=1)),
    ("gemm.cu", dict(COMPUTE_F32=1, A_F32=0, B_F32=0, A_LAYOUT=2, B_LAYOUT=2, BM=64, BN=64,
                     BK=16, STAGES=4, WARPS_M=2, WARPS_N=4, C_WIDE=0, F16=1, B_HALF="bf16")),
    ("gemm_sm90.cu", dict(A_K=1, B_K=1, BN=256, CLUSTER=1, **LEAN, B_PERMUTED=1, C_BF16=1,
                          F16=1)),
    ("gemm_sm90.cu", dict(A_K=0, B_K=0, BN=256, CLUSTER=1, BATCHED=0, SUMS=1, F16=1)),
    ("gemm_sm90.cu", dict(A_K=1, B_K=1, BN=256, CLUSTER=1, **LEAN, B_PERMUTED=1,
                          EPILOGUE=header("bias_gelu"), F16=1)),
    ("gemm_resident_sm90.cu", dict(A_K=1, B_K=1, BN=256, **LEAN, B_PERMUTED=1, C_BF16=1, F16=1)),
]


def options(defs):
    return " ".join(f"-D{key}={value}" for key, value in defs.items())


if __name__ == "__main__":
    for name, (file, defs) in VARIANTS.items():
        if "--build" in sys.argv:
            print(name, file, "sm_90a", options(defs))
        else:
            arch = "both" if file == "gemm.cu" else "sm_90a"
            entries = ["gemm"] if "resident" in file else ["gemm", "gemm_reduce"]
            for entry in entries:
                print(file, entry, arch, options(defs))
    if "--build" not in sys.argv:
        print("# Factors of f16, and of f16 and bf16.")
        for file, defs in F16:
            print(file, "gemm", "both" if file == "gemm.cu" else "sm_90a", options(defs))
