"""C kernels compiled when they are first wanted, for what torch on a CPU loses a small model's time in.

Attention over short heads, the softmax over the vocabulary and, on processors with 512-bit vectors, the matrix
products: `attention_kernel`, `loss_kernel` and `linear_kernel` do the same sums two to four times faster. They need a
C compiler with OpenMP (gcc or clang). Without one `library` says why and the plain path runs: slower, never
different. `compile.compile_model` checks each against the plain path before it is used.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

VECTORS = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#define BYTES 64 /* of a vector register */
#define REGISTERS 32
#elif defined(__AVX2__)
#define BYTES 32
#define REGISTERS 16
#elif defined(__aarch64__)
#define BYTES 16
#define REGISTERS 32
#else
#define BYTES 16
#define REGISTERS 16
#endif
#define LANES (BYTES / 4)
#define UNROLL _Pragma("GCC unroll 16")
typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
#define LOG2E 1.4426950408889634f

static inline vec splat(float x) { return (vec){} + x; }
static inline vec choose(ivec m, vec a, vec b) { return (vec)((m & (ivec)a) | (~m & (ivec)b)); }
static inline vec vmax(vec a, vec b) { return choose(a > b, a, b); }

/* 2^x for x <= 0; NaN stays NaN, below -126 it is 2^-126 */
static inline vec exp2v(vec x) {
  x = choose(x < splat(-126.f), splat(-126.f), x);
  ivec n = __builtin_convertvector(x - splat(.5f), ivec);
  vec f = x - __builtin_convertvector(n, vec);
  vec p = splat(1.5403530e-4f);
  p = p * f + splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.f);
  return (vec)((ivec)p + (n << 23));
}
"""


class Unavailable(Exception):
    """The kernels cannot be had on this machine; the message is the reason, in one line."""


def compiler() -> str | None:
    """The C compiler of this machine."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


LEVELS = {"AVX512": "native", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}


def _level() -> list[str]:
    """Flags for the instruction set that torch uses, so that both are held to the same by `ATEN_CPU_CAPABILITY`."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["-mcpu=native"]
    return [f"-march={LEVELS.get(torch.backends.cpu.get_cpu_capability(), 'native')}"]


@functools.cache
def library(source: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile C source for this machine and load it. `defines` are `NAME=VALUE` constants.

    Raises Unavailable when there is no compiler or it fails.
    """
    program = compiler()
    if program is None:
        raise Unavailable("no C compiler found")
    with tempfile.TemporaryDirectory(prefix="pgolf-", ignore_cleanup_errors=True) as folder:
        built = Path(folder) / "kernel.so"
        flags = ["-O3", *_level(), "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp"]
        command = [program, *flags, *(f"-D{define}" for define in defines), "-xc", "-", "-o", str(built), "-lm"]
        try:
            done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{program} did not run: {error}") from error
        if done.returncode:
            line = next(iter(done.stderr.strip().splitlines()), "no message")
            raise Unavailable(f"{program} failed: {line}")
        try:
            return ctypes.CDLL(str(built))  # stays loaded after the file is gone
        except OSError as error:
            raise Unavailable(f"the compiled kernel does not load: {error}") from error


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a contiguous tensor's data; a null pointer for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
