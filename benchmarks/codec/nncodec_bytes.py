"""Bytes of integer matrices under NNCodec's DeepCABAC (ISO/IEC 15938-17), with nothing of its headers.

Run by coder.py with a Python that has NNCodec 2: `python nncodec_bytes.py SYMBOLS.npz`. Every matrix is coded as
NNCodec codes a quantized layer, with its context parameters optimized, by rows and by columns; the smaller sum counts.
"""

import sys

import numpy as np
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

UNARY = 11  # NNCodec's default, cabac_unary_length_minus1 + 1


def size(symbols: np.ndarray) -> int:
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(UNARY, 1)
    layer = np.ascontiguousarray(symbols, dtype=np.int32)
    skip = np.zeros(layer.shape[0], dtype=np.int32)
    encoder.encodeLayer(layer, 0, 0, 1, 0, 0, skip, *HDSP_OPTS_OFF(), 0, 0)
    return len(encoder.finish())


def main() -> None:
    arrays = dict(np.load(sys.argv[1]))
    rows = sum(size(values) for values in arrays.values())
    columns = sum(size(values.T) for values in arrays.values())
    print(min(rows, columns))


if __name__ == "__main__":
    main()
