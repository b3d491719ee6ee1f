"""Arrays of other libraries and of every numeric type, read on the host."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dogfit.host_arrays import fold_masks, host_array, is_wide, unmasked_array

VALUES = np.arange(12.0).reshape(3, 4)


class Lent:
    """An array that is handed over by DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Elsewhere:
    """An array on a device that the host cannot read."""

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")


@pytest.mark.parametrize(
    "dtype",
    [
        *("<f4", ">f4", ">f8", ">i2", ">u4"),
        *(np.longdouble, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
        *(np.int64, np.uint64, np.uint8),
    ],
)
def test_host_array_dtypes(dtype):
    """Real numbers of any type pass as they are."""
    given = VALUES.astype(dtype)
    found = host_array(given, "kernels")
    assert found is given
    np.testing.assert_array_equal(found.astype(float), VALUES)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (VALUES.astype(np.complex64), r"got dtype complex64: fit kernels\.real and kernels\.imag"),
        (VALUES.astype(object), "got dtype object: convert them, for instance"),
        (VALUES.astype(str), "got dtype <U32: convert the text"),
        (VALUES.astype(bytes), "got dtype .S32: convert the text"),
        (VALUES.astype("M8[s]"), r"got dtype datetime64\[s\]: give an array of floating-point numbers"),
        (np.zeros(3, [("x", "f4")]), "give an array of floating-point numbers or integers"),
        ([[1.0, 2.0], [3.0]], "must be an array of numbers; the list given is none"),
        ([["a", "b"]], "got dtype <U1"),
        (None, "got dtype object"),
        (Elsewhere(), r"Elsewhere cannot be read on the host: .*use `\.get\(\)`.*copy them there first"),
    ],
)
def test_host_array_refuses(values, told):
    with pytest.raises(TypeError, match=f"kernels .*{told}"):
        host_array(values, "kernels")


def test_host_array_other_libraries():
    np.testing.assert_array_equal(host_array(Lent(VALUES), "kernels"), VALUES)
    np.testing.assert_array_equal(host_array([Lent(VALUES), Lent(VALUES)], "kernels"), [VALUES, VALUES])
    np.testing.assert_array_equal(host_array(VALUES.tolist(), "kernels"), VALUES)
    small = jnp.asarray(VALUES, jnp.bfloat16)
    assert host_array(small, "kernels").dtype == ml_dtypes.bfloat16


def test_host_array_torch():
    """Tensors that need a gradient, and those of types that NumPy lacks."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16):
        tensor = torch.tensor(VALUES, dtype=dtype)
        tensor.requires_grad_(dtype.is_floating_point)
        for given in (tensor, [tensor[0], tensor[1], tensor[2]]):
            np.testing.assert_array_equal(host_array(given, "kernels").astype(float), VALUES)


def test_fold_masks_weights():
    """Masked taps have weight 0, be it the kernel's mask or the weights' own."""
    masked = np.ma.masked_greater(VALUES, 9)
    plain, weights = fold_masks(masked, None)
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(weights, VALUES <= 9)
    given = np.ma.masked_less(VALUES + 1, 3)
    _, weights = fold_masks(masked, given)
    np.testing.assert_array_equal(weights, np.where((VALUES <= 9) & (VALUES >= 2), VALUES + 1, 0))
    assert fold_masks(np.ma.array(VALUES, mask=False), None)[1] is None
    stacked = host_array([masked, np.ma.array(VALUES)], "kernels")
    np.testing.assert_array_equal(fold_masks(stacked, None)[1], [VALUES <= 9, np.ones_like(VALUES)])


def test_unmasked_array_masked():
    with pytest.raises(ValueError, match="masked kernels can only be fitted by fit_kernel"):
        unmasked_array(np.ma.masked_greater(VALUES, 9), "kernels")
    assert type(unmasked_array(np.ma.array(VALUES), "kernels")) is np.ndarray


def test_is_wide_types():
    narrow = (np.float32, np.float16, ml_dtypes.bfloat16, np.int16, np.uint8, bool)
    assert not any(is_wide(np.dtype(dtype)) for dtype in narrow)
    assert all(is_wide(np.dtype(dtype)) for dtype in (float, np.longdouble, np.int32, np.uint64))
