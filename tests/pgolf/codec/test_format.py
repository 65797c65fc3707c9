"""The fast decoder against a plain reader that knows nothing but docs/FORMAT.md."""

import numpy as np
import plain_reader
import pytest
from quantized_models import same, trained_like

from pgolf.codec import container


@pytest.mark.parametrize("trellis", [0, 4, 8, 16, 32, 64])
def test_a_reader_made_from_the_document_finds_the_same_model(trellis: int) -> None:
    model = trained_like(seed=trellis, trellis=trellis)
    model.matrices["blocks.1.weight"].symbols[3, 4] = -1234567  # an escape
    data = container.encode(model)
    directory, matrices, controls = plain_reader.read(data)
    assert directory["header"] == model.header
    assert [name for name, *_ in matrices] == list(model.matrices)
    for name, symbols, row_scale, col_scale in matrices:
        tensor = model.matrices[name]
        assert np.array_equal(np.array(symbols), tensor.symbols)
        assert row_scale == tensor.row_scale.tolist()
        assert col_scale == tensor.col_scale.tolist()
    assert sorted(controls) == sorted(model.controls)
    assert same(container.decode(data), model)
