import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from dogfit.kernelset import KernelSet, Layer
from dogfit.nulls import covariance_matched, threshold_at_rate, untrained, white_noise


def group_of(*layers: np.ndarray):
    """A group with one layer for each array `[c, k, k]`."""
    pairs = [
        (Layer(f"layer{i}", "net", i, None, None, a.shape[-1], len(a), "F32"), a.astype(np.float32))
        for i, a in enumerate(layers)
    ]
    return KernelSet.from_layers(pairs).groups[layers[0].shape[-1]]


def coloured(n: int, k: int, seed: int) -> np.ndarray:
    """Kernels with a mean and correlated taps of unequal variance."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((k * k, k * k)) / k
    return (generator.standard_normal((n, k * k)) @ mix + generator.standard_normal(k * k)).reshape(-1, k, k)


def test_white_noise_moments():
    """White noise is standard normal."""
    taps = white_noise(2000, 7, seed=3)
    assert taps.shape == (2000, 7, 7)
    assert taps.dtype == np.float32
    assert stats.kstest(taps.ravel(), "norm").pvalue > 1e-3
    # Neighbouring taps are independent.
    assert abs(np.corrcoef(taps[:, 3, 3], taps[:, 3, 4])[0, 1]) < 0.1


@pytest.mark.parametrize("draw", [white_noise, untrained])
def test_nulls_seed_and_size(draw):
    """Nulls follow seed and size."""
    assert np.array_equal(draw(5, 7, 1), draw(5, 7, 1))
    assert not np.array_equal(draw(5, 7, 1), draw(5, 7, 2))
    assert not np.array_equal(draw(5, 7, 1)[:, :5, :5], draw(5, 5, 1))


def test_nulls_independent():
    """Nulls are independent of each other."""
    noise, fresh = white_noise(500, 5, 0).ravel(), untrained(500, 5, 0).ravel()
    assert abs(np.corrcoef(noise, fresh)[0, 1]) < 0.05


@pytest.mark.parametrize("init", ["trunc_normal", "uniform"])
def test_untrained_distributions(init):
    """Untrained is what PyTorch initialises."""
    torch = pytest.importorskip("torch", reason="parity with PyTorch's initialisation needs torch")
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(400, 400, 7, groups=400)
    if init == "trunc_normal":
        torch.nn.init.trunc_normal_(layer.weight, std=0.02)
    theirs = layer.weight.detach().numpy().ravel()
    ours = untrained(400, 7, seed=0, init=init).ravel()
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    assert np.isclose(ours.std(), theirs.std(), rtol=0.03)


def test_untrained_unknown_init():
    """Untrained refuses an unknown initialisation."""
    with pytest.raises(ValueError, match="'trunc_normal' or 'uniform', got 'zeros'"):
        untrained(1, 3, 0, init="zeros")


@pytest.mark.parametrize("channels", [200, 6])
def test_covariance_matched_moments(channels):
    """Covariance matched has the moments of each layer."""
    # Six channels of 3x3 taps: a singular covariance.
    layers = [coloured(channels, 3, seed) for seed in (1, 2)]
    group = group_of(*layers)
    kernels, layer = covariance_matched(group, seed=0, n=200_000)
    for index, own in enumerate(layers):
        drawn = kernels[layer == index].reshape(-1, 9)
        own = own.reshape(-1, 9)
        spread = np.cov(own, rowvar=False)
        # 100,000 draws: moments within about four of their standard errors.
        assert np.allclose(drawn.mean(0), own.mean(0), atol=4 * np.sqrt(spread.diagonal().max() / 1e5))
        assert np.allclose(np.cov(drawn, rowvar=False), spread, atol=0.02 * spread.diagonal().max())


def test_covariance_matched_singular():
    """Singular null stays in the span of its layer."""
    own = coloured(5, 4, 7)
    kernels, _ = covariance_matched(group_of(own), seed=1, n=50)
    centred = (own - own.mean(0)).reshape(5, -1)
    drawn = (kernels - own.mean(0)).reshape(50, -1)
    coefficients = np.linalg.lstsq(centred.T, drawn.T, rcond=None)[0]
    assert np.allclose(centred.T @ coefficients, drawn.T, atol=1e-5)


def test_covariance_matched_layers():
    """Null kernels are shared among layers by their kernels."""
    group = group_of(coloured(30, 3, 0), coloured(10, 3, 1))
    assert np.array_equal(covariance_matched(group, 0)[1], group.layer)
    for n in (8, 40, 400):
        assert np.bincount(covariance_matched(group, 0, n)[1]).tolist() == [3 * n // 4, n // 4]


def test_covariance_matched_flagged():
    """Flagged and lonely kernels are left out."""
    own = coloured(20, 3, 0)
    damaged = np.concatenate([own, np.full((1, 3, 3), np.nan), np.zeros((1, 3, 3)), np.ones((1, 3, 3))])
    lonely = coloured(1, 3, 5)
    kernels, layer = covariance_matched(group_of(damaged, lonely), seed=0, n=64)
    expected, _ = covariance_matched(group_of(own), seed=0, n=64)
    assert set(layer) == {0}
    assert np.array_equal(kernels, expected)


def test_covariance_matched_empty():
    """No layer with a covariance gives no null."""
    kernels, layer = covariance_matched(group_of(coloured(1, 3, 0)), seed=0, n=10)
    assert kernels.shape == (0, 3, 3)
    assert layer.shape == (0,)


scores = arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32) | st.just(np.nan),
)


@given(scores, st.floats(0, 1, exclude_max=True))
def test_threshold_at_rate_is_least(r2, rate):
    """At most the rate passes and no lower threshold does."""
    fitted = r2[~np.isnan(r2)].astype(float)
    if not fitted.size:
        with pytest.raises(ValueError, match="no null kernel has an R²"):
            threshold_at_rate(r2, rate)
        return
    threshold = threshold_at_rate(r2, rate)
    assert np.mean(fitted > threshold) <= rate
    lower = np.nextafter(threshold, -1)
    assert np.mean(fitted > lower) > rate


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_threshold_at_rate_errors(rate):
    """A rate is a share."""
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        threshold_at_rate([0.5], rate)
