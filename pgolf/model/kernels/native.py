"""C kernels, compiled when they are first needed and kept in a cache folder.

Attention over short heads, the softmax over the vocabulary and matrix products (`attention`, `loss`, `linear`) are
written once with the width and number of vector registers as parameters (AVX-512: 32 of 64 bytes; AVX2: 16 of 32;
NEON: 32 of 16; else 16 of 16). They need gcc or clang with OpenMP; without one `library` raises `Unavailable` and the
plain path runs. `fast_paths` checks and times each kernel against the plain path before it is used.
"""

import contextlib
import ctypes
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.kernels import cache

VECTORS = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
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
#if BYTES == 64
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
static inline vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
static inline vec vmax(vec a, vec b) { return choose(a > b, a, b); }
#endif

/* 2^x for x <= 0; NaN stays NaN, below -126 it is 2^-126 */
static inline vec exp2v(vec x) {
  x = vmax(splat(-126.f), x);
#if BYTES == 64
  const vec n = (vec)_mm512_roundscale_ps((__m512)x, 0), f = x - n;
#else
  const ivec n = __builtin_convertvector(x - splat(.5f), ivec);
  const vec f = x - __builtin_convertvector(n, vec);
#endif
  vec p = splat(1.5403530e-4f);
  p = p * f + splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.f);
#if BYTES == 64
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return (vec)((ivec)p + (n << 23));
#endif
}
"""


_FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp", "-xc", "-")
_LEVELS = {"AVX512": ("-march=native",), "AVX2": ("-mavx2", "-mfma", "-mtune=native"), "DEFAULT": ("-mtune=native",)}
_loaded: dict[tuple[str, ...], ctypes.CDLL] = {}  # by source and defines; a loaded library stays loaded


class Unavailable(Exception):
    """A kernel cannot be built on this machine; the message is the reason, in one line."""


def compiler() -> str | None:
    """Path of this machine's C compiler."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def instruction_set() -> str:
    """The instruction set that torch computes with, which is the kernels' too: `ATEN_CPU_CAPABILITY` holds both."""
    return torch.backends.cpu.get_cpu_capability()


def library(source: str, defines: tuple[str, ...] = (), folder: Path | None = None) -> ctypes.CDLL:
    """Load C source compiled for this machine, from the cache `folder` where it is there already.

    `defines` are `NAME=VALUE` constants. Raises Unavailable when there is no compiler or it fails.
    """
    key = (source, *defines)
    if key not in _loaded:
        _loaded[key] = _load(key, folder)
    return _loaded[key]


def _load(key: tuple[str, ...], folder: Path | None) -> ctypes.CDLL:
    program = compiler()
    if program is None:
        raise Unavailable("no C compiler found")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    level = _LEVELS.get(instruction_set(), ("-march=native",)) if x86 else ("-mcpu=native",)
    flags = [*level, *_FLAGS, *(f"-D{define}" for define in key[1:])]
    facts = repr((key, flags))
    if folder is not None and (kept := cache.find(folder, cache.key(facts, program))) is not None:
        with contextlib.suppress(OSError):  # compiled for another system library: recompile
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="pgolf-", ignore_cleanup_errors=True) as scratch:
        built = Path(scratch) / "kernel.so"
        command = [program, *flags, "-o", str(built), "-lm"]
        try:
            done = subprocess.run(command, input=key[0], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{program} did not run: {error}") from error
        if done.returncode:
            line = next(iter(done.stderr.strip().splitlines()), "no message")
            raise Unavailable(f"{program} failed: {line}")
        try:
            loaded = ctypes.CDLL(str(built))  # stays loaded after the file is deleted
        except OSError as error:
            raise Unavailable(f"the compiled kernel does not load: {error}") from error
        if folder is not None:
            cache.keep(folder, cache.key(facts, program), built.read_bytes())
        return loaded


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a contiguous tensor's data; a null pointer for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
