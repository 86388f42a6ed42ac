"""The order of training."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layersift.training.trainer import LengthGroupedSampler


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_sample_once_and_the_same_order_again(lengths, batch_size, seed, epoch):
    sampler = LengthGroupedSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    assert order == list(sampler)


def test_epochs_and_seeds_differ_and_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 1000).tolist()
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = LengthGroupedSampler(lengths, 10, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    spread = [np.ptp([lengths[i] for i in orders[0][at : at + 10]]) for at in range(0, 1000, 10)]
    assert np.mean(spread) < 5
    first = [np.mean([lengths[i] for i in orders[0][at : at + 10]]) for at in range(0, 1000, 10)]
    assert abs(np.corrcoef(first, range(100))[0, 1]) < 0.5  # batches themselves come in random order
