"""Statistics of columns, taken block by block."""

import numpy as np

from gpumlp.data.statistics import Moments


def test_moments_of_blocks_of_any_length_are_those_of_the_whole():
    moments = Moments(1)
    for block in ([[1.0], [2.0], [6.0]], [[11.0]]):
        moments.update(np.array(block))
    assert moments.count.tolist() == [4]
    assert moments.mean.tolist() == [5]
    assert (moments.m2 / moments.count).tolist() == [15.5]
    assert (moments.low.tolist(), moments.high.tolist()) == ([1], [11])
