"""The logarithmic grid of step sizes: index i is a step of 2 ** (i / resolution).

Steps are put on the grid before anything is rounded with them, so that the quantizer works with the values that the
decoder will read (QUANTIZATION traps 1 and 12: a scale rounded afterwards spoils the error feedback).
"""

import numpy as np
import numpy.typing as npt

from pgolf.errors import PgolfError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int16]

LIMIT = 30_000  # an index and the sum of a row's and a column's stay far inside int16 and float32


def index_of(steps: Floats, resolution: int) -> Indices:
    """Nearest grid index of every positive step, any shape. Raises PgolfError for a step that is not finite."""
    if not np.all(np.isfinite(steps)) or np.any(steps < 0):
        raise PgolfError("a quantization step is not a finite positive number: the weights hold NaN or infinity")
    bounded = np.clip(steps, 2.0**-60, 2.0**60)
    return np.clip(np.rint(np.log2(bounded) * resolution), -LIMIT, LIMIT).astype(np.int16)


def step_of(index: npt.NDArray[np.integer], resolution: int) -> Floats:
    """Steps of grid indices, any shape."""
    return np.exp2(index.astype(np.float64) / resolution)
