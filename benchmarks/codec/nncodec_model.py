"""A whole model through NNCodec 2 (ISO/IEC 15938-17), with its own quantizer; run by quantization.py.

`python nncodec_model.py IN.npz OUT.npz QP` codes every tensor with dependent quantization at one quantization
parameter, everything else at NNCodec's defaults, writes the decoder's output, and prints the bytes of the
stream. Needs a Python with NNCodec (`pip install nncodec`), which requires an older NumPy than this project.
"""

import sys
import tempfile

import numpy as np
from nncodec.nn import decode, encode


def main() -> None:
    source, target, parameter = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in np.load(source).items()}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"qp": parameter, "use_dq": True, "results": folder, "verbose": False}
        stream = encode(dict(tensors), settings)
    decoded = decode(stream)
    np.savez(target, **{name: np.asarray(decoded[name]).reshape(tensors[name].shape) for name in tensors})
    print(len(stream))


if __name__ == "__main__":
    main()
