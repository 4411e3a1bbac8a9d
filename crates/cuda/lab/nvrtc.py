#!/usr/bin/env python3
"""Compiles one kernel without a GPU: nvrtc.py FILE [--arch sm_90a] [-DNAME=VALUE ...] [-o CUBIN]

Prints the assembler's report. NVRTC is found in the Python package `nvidia-cuda-nvrtc`, or where
the system's loader finds it. Headers are those of `lib/` beside the file.
"""

import argparse
import ctypes
import glob
import importlib.util
import os
import sys


def library():
    """The compiler, and beside it its table of built-ins, which it would look for by itself."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations) if spec else []
    for folder in folders:
        names = sorted(glob.glob(os.path.join(folder, "**", "libnvrtc*.so*"), recursive=True))
        names = [name for name in names if ".alt." not in name]
        builtins = [name for name in names if "builtins" in name]
        compilers = [name for name in names if "builtins" not in name]
        if compilers:
            for name in builtins:
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(compilers[-1])
    return ctypes.CDLL("libnvrtc.so.13")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("-o", dest="cubin")
    arguments, defines = parser.parse_known_args()
    nvrtc = library()

    def check(answer):
        if answer:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            sys.exit(nvrtc.nvrtcGetErrorString(answer).decode())

    def get(kind):
        size = ctypes.c_size_t()
        check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        check(getattr(nvrtc, f"nvrtcGet{kind}")(program, data))
        return data.raw

    folder = os.path.dirname(os.path.abspath(arguments.file))
    headers = sorted(glob.glob(os.path.join(folder, "lib", "*.cuh")))
    names = [b"lib/" + os.path.basename(header).encode() for header in headers]
    texts = [open(header, "rb").read() for header in headers]
    strings = ctypes.c_char_p * len(headers)
    program = ctypes.c_void_p()
    with open(arguments.file, "rb") as file:
        text = ctypes.c_char_p(file.read())
    name = ctypes.c_char_p(os.path.basename(arguments.file).encode())
    check(nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text, name, len(headers), strings(*texts), strings(*names)))
    fixed = ["--std=c++17", "--fmad=false", "-default-device", "--ptxas-options=-v"]
    options = [option.encode() for option in [f"-arch={arguments.arch}", *fixed, *defines]]
    compiled = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options))
    print(get("ProgramLog").rstrip(b"\0").decode().strip())
    check(compiled)
    if arguments.cubin:
        with open(arguments.cubin, "wb") as file:
            file.write(get("CUBIN"))


if __name__ == "__main__":
    main()
