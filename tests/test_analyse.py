"""What the analysis of one size does by itself; the rest is tested through the main job."""

import numpy as np
import pytest

from dogfit.analysis import size as analyse
from dogfit.normalize import normalize_kernels


@pytest.mark.parametrize("sample", [1000, 120])
def test_kmeans_of_a_sample_puts_every_kernel_to_its_nearest_centre(monkeypatch, sample):
    generator = np.random.default_rng(0)
    shapes = generator.standard_normal((4, 5, 5))
    truth = generator.integers(4, size=700)
    kernels = normalize_kernels(shapes[truth] + 0.2 * generator.standard_normal((700, 5, 5))).astype(
        np.float32
    )
    monkeypatch.setattr(analyse, "KMEANS_SAMPLE", sample)
    labels, centres = analyse._kmeans(kernels, 4, seed=0)
    apart = np.linalg.norm(kernels[:, None] - centres, axis=(2, 3))
    np.testing.assert_array_equal(labels, apart.argmin(axis=1))
    assert len({(a, b) for a, b in zip(truth.tolist(), labels.tolist(), strict=True)}) == 4


def test_a_sample_is_all_where_there_are_few():
    rows = np.arange(50)
    np.testing.assert_array_equal(rows[analyse._sample(50, 50, 0)], rows)
    some = rows[analyse._sample(50, 20, 0)]
    assert len(some) == 20
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, rows[analyse._sample(50, 20, 0)])
