"""The safetensors header parser, against the safetensors library and against damage."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dogfit.checkpoints.files import LocalFile, read_header
from dogfit.checkpoints.header import FLOATS, MAX_HEADER_BYTES, Tensor
from dogfit.errors import InputError

DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
SIZES = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()} | {"BF16": 2, "F8_E4M3": 1}

entries = st.lists(
    st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 4), max_size=4)), min_size=1, max_size=6
)
names = st.lists(st.text(min_size=1, max_size=12).filter(lambda t: t != "__metadata__"), unique=True)


ENTRY = b'"a": {"dtype": "F32", "shape": [2, 1, 3, 3], "data_offsets": [0, 72]}'


def _file(header, data):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return len(text).to_bytes(8, "little") + text + data


def _entry(dtype="F32", shape=(2, 1, 3, 3), offsets=(0, 72)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _parse(path, content):
    path.write_bytes(content)
    return read_header(LocalFile(path))


def _by_library(path):
    """Names, dtypes and shapes as the safetensors library reads them; None if it refuses."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            return tensors, file.metadata() or {}
    except SafetensorError:
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("header") / "x.safetensors"


@given(entries, names, st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3), st.randoms())
def test_read_header_as_the_library_does(path, shapes, keys, metadata, random):
    header, end = {}, 0
    for key, (dtype, shape) in zip(keys, shapes, strict=False):
        size = int(np.prod(shape)) * SIZES[dtype]
        header[key] = _entry(dtype, shape, (end, end + size))
        end += size
    header = dict(random.sample(list(header.items()), len(header)))
    if metadata:
        header["__metadata__"] = metadata
    read = _parse(path, _file(header, bytes(end)))
    library = _by_library(path)
    assert library is not None
    assert {name: (t.dtype, t.shape) for name, t in read.tensors.items()} == library[0]
    assert read.metadata == library[1]


def _sound():
    random = np.random.default_rng(0)
    tensors = {
        "stem.weight": random.normal(size=(4, 3, 2, 2)).astype(np.float16),
        "stages.0.blocks.0.conv_dw.weight": random.normal(size=(4, 1, 7, 7)).astype(np.float32),
        "stages.0.blocks.0.mlp.weight": random.normal(size=(16, 4)).astype(np.float32),
    }
    return save(tensors, {"format": "pt"})


# Damage has more ways than other inputs.
@settings(max_examples=10 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_read_header_damaged(path, data):
    content = bytearray(_sound())
    length = 8 + int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["flip", "byte", "cut", "grow", "swap"]))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 3))):
            bit = data.draw(st.integers(0, length * 8 - 1))
            content[bit // 8] ^= 1 << bit % 8
    elif kind == "byte":
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "grow":
        content += bytes(data.draw(st.integers(1, 9)))
    else:
        digits = [i for i in range(8, length) if chr(content[i]).isdigit()]
        content[data.draw(st.sampled_from(digits))] = ord(data.draw(st.sampled_from("0123456789")))
    try:
        read = _parse(path, bytes(content))
    except InputError as error:
        assert str(path) in str(error)
        return
    library = _by_library(path)
    assert library is not None
    assert {name: (t.dtype, t.shape) for name, t in read.tensors.items()} == library[0]


@given(st.binary(max_size=300))
def test_read_header_any_bytes(path, content):
    with pytest.raises(InputError):
        _parse(path, content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    )
)
def test_read_header_any_json(path, value):
    try:
        read = _parse(path, _file(json.dumps(value).encode(), b""))
    except InputError:
        return
    assert not read.tensors or all(0 in t.shape for t in read.tensors.values())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": _entry(offsets=(0, 71))}, r"'a': F32 of shape \[2, 1, 3, 3\] does not take 71 bytes"),
        ({"a": _entry(offsets=(72, 0))}, "does not take -72 bytes"),
        ({"a": _entry(), "b": _entry(offsets=(36, 108))}, "'b' overlaps the tensor before it"),
        ({"a": _entry(offsets=(4, 76))}, "'a' leaves a gap before it"),
        ({"a": _entry(dtype="F12")}, "unknown dtype 'F12'"),
        ({"a": _entry(dtype=7)}, "unknown dtype '7'"),
        ({"a": _entry(shape=(2, -1, -3, 3))}, "non-negative integers"),
        ({"a": _entry(shape=(2, True, 3, 3))}, "non-negative integers"),
        ({"a": _entry(shape=(2.0, 1, 3, 3))}, "non-negative integers"),
        ({"a": _entry(offsets=(0, 72, 80))}, "non-negative integers"),
        ({"a": _entry(shape=(2**62, 2**62, 3, 3))}, "does not take 72 bytes"),
        ({"a": {"dtype": "F32"}}, "must hold dtype, shape and data_offsets"),
        ({"a": 3}, "must hold dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, "__metadata__ must map strings to strings"),
        ({"__metadata__": []}, "__metadata__ must map strings to strings"),
        ({"\ud800": _entry()}, "surrogates not allowed"),
        (b"[]", "does not start with"),
        (b"", "does not start with"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "a name appears twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [18], "data_offsets": [0, 72]}}', "appears twice"),
        (b'{"__metadata__": {"b": "1", "b": "2"}, ' + ENTRY + b"}", "a name appears twice"),
        (b'{"__metadata__": {"b": "::", "b": "2"}, ' + ENTRY + b"}", "a name appears twice"),
        (b'{"__metadata__": {"b": "", "b": "\\u003a"}, ' + ENTRY + b"}", "a name appears twice"),
        (b'{"a:": 1, "a:": 2, ' + ENTRY + b"}", "a name appears twice"),
        (b"{" * 100_000, "damaged safetensors header"),
        (b'{"a": ' + b"[" * 200_000, "damaged safetensors header"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "damaged safetensors header"),
        (b'{"\xff": 1}', "damaged safetensors header"),
    ],
)
def test_read_header_that_lies(path, header, message):
    with pytest.raises(InputError, match=message):
        _parse(path, _file(header, bytes(72)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        ((2**63).to_bytes(8, "little"), f"at most {MAX_HEADER_BYTES}"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "not safetensors, or truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "holds a Python pickle"),
        (b"\x80\x02}q\x00(X" + bytes(100), "holds a Python pickle"),
        (_file({"a": _entry()}, bytes(71)), "truncated"),
        (_file({"a": _entry()}, bytes(73)), "followed by bytes no tensor owns"),
        (_file({}, b"x"), "followed by bytes no tensor owns"),
    ],
)
def test_read_header_of_other_files(path, content, message):
    with pytest.raises(InputError, match=message):
        _parse(path, content)


@pytest.mark.parametrize("start", [0x04_80, 0x02_80, 0x05_80])
def test_read_header_length_that_looks_like_a_pickle(path, start):
    text = json.dumps({"a": _entry()}).encode()
    read = _parse(path, _file(text + b" " * (start - len(text)), bytes(72)))
    assert list(read.tensors) == ["a"]


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_tensor_decode_every_float_type(dtype):
    kinds = {
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }
    kind = np.dtype(getattr(ml_dtypes, kinds[dtype]) if dtype in kinds else FLOATS[dtype])
    values = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(kind)
    decoded = Tensor("a", dtype, (4, 1, 3, 3), 0, values.nbytes).decode(values.tobytes())
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values.astype(np.float32))
