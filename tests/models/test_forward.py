"""A batch that does not fit is run in parts, in order, and every text once."""

import numpy as np
import pytest
import torch

from ntps.errors import NtpsError
from ntps.models.forward import halving


def runner(most):
    def run(batch):
        if len(batch) > most:
            raise torch.cuda.OutOfMemoryError("planted")
        return batch.sum()

    return run


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_parts_keep_order_and_lose_nothing(most):
    batches = [np.arange(7), np.arange(7, 9), np.arange(9, 10)]
    results = list(halving(batches, runner(most)))
    assert np.concatenate([batch for batch, _ in results]).tolist() == list(range(10))
    assert all(len(batch) <= most and total == batch.sum() for batch, total in results)


def test_a_size_that_did_not_fit_is_not_tried_again():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return runner(3)(batch)

    assert len(list(halving([np.arange(8)] * 5, run))) == 5 * 4
    assert sizes == [8, 4, *[2] * 20]


def test_a_text_that_does_not_fit_alone_is_named():
    with pytest.raises(NtpsError, match=r"too little memory for text 3 alone"):
        list(halving([np.array([2, 5])], runner(0)))


def test_errors_of_the_reader_are_not_taken_for_those_of_the_run():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        for _ in halving([np.arange(4)], runner(100)):
            raise torch.cuda.OutOfMemoryError("of the reader")
