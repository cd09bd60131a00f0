"""Columns dealt out in turn and put back are the same bytes, as torch's reshape deals them."""

import pytest
import torch

from loratools.errors import UnsupportedFile
from loratools.tensors.interleave import Dealer, interleaved
from loratools.tensors.lazy import LazyTensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64], ids=str)
def test_dealing_is_what_reshape_does_and_interleaving_undoes_it(dtype):
    whole = torch.randn(5, 12).to(dtype)
    parts = Dealer().dealt(LazyTensor.from_torch(whole), 4)
    for at, part in enumerate(parts):
        assert torch.equal(part.load().double(), whole.double().reshape(5, 3, 4)[:, :, at])
    back = interleaved(parts)
    assert back.shape == (5, 12)
    assert torch.equal(back.load().double(), whole.double())


def test_columns_that_do_not_go_round_or_share_bytes_are_refused():
    with pytest.raises(ValueError, match="dealt out"):
        Dealer().dealt(LazyTensor.zeros("F32", (2, 5)), 2)
    with pytest.raises(UnsupportedFile, match="packs elements"):
        Dealer().dealt(LazyTensor.zeros("F4", (2, 4)), 2)
    with pytest.raises(ValueError, match="different"):
        interleaved([LazyTensor.zeros("F32", (2, 1)), LazyTensor.zeros("F32", (2, 2))])
