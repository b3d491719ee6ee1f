"""Layers of TensorFlow Lite models become the kernels that TensorFlow's own interpreter runs."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from dogfit.checkpoints import load_kernels
from dogfit.convert import convert
from dogfit.errors import InputError
from tiny_checkpoints import random_tensor

schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="writes TensorFlow Lite files", exc_type=ImportError
)
SIZE = 9


def tensor(name, shape, dtype="FLOAT32", buffer=0, scale=None, zero=None, axis=0):
    made = schema.TensorT()
    made.name, made.shape, made.buffer = name.encode(), list(shape), buffer
    made.type = getattr(schema.TensorType, dtype)
    if scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = scale, zero
        made.quantization.quantizedDimension = axis
    return made


def operator(code, inputs, outputs, options=None, kind=0):
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
    made.builtinOptions, made.builtinOptionsType = options, kind
    return made


def depthwise(code, inputs, outputs, multiplier=1):
    options = schema.DepthwiseConv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.depthMultiplier = multiplier
    return operator(code, inputs, outputs, options, schema.BuiltinOptions.DepthwiseConv2DOptions)


def convolution(code, inputs, outputs):
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    return operator(code, inputs, outputs, options, schema.BuiltinOptions.Conv2DOptions)


def written(path, tensors, buffers, operators, outputs):
    """Write a graph whose input is tensor 0 and whose operator codes are those of `CODES`."""
    import flatbuffers

    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, operators, [0], outputs
    model = schema.ModelT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [], []
    for content in (b"", *buffers):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        model.buffers.append(buffer)
    for code in ("DEPTHWISE_CONV_2D", "CONV_2D", "DEQUANTIZE"):
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, code)
        made.version = 1
        model.operatorCodes.append(made)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def responses(path, channels):
    """Outputs of the interpreter for an impulse in each channel: `[channels, SIZE, SIZE, outputs]`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    seen = []
    for channel in range(channels):
        image = np.zeros((1, SIZE, SIZE, channels), np.float32)
        image[0, SIZE // 2, SIZE // 2, channel] = 1
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        seen.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(seen)


@pytest.mark.parametrize("stored", ["FLOAT32", "FLOAT16"])
def test_convert_tflite_depthwise(tmp_path, stored):
    """Kernels with a multiplier are those of the impulse's responses, turned as correlation turns them."""
    channels, multiplier, k = 4, 2, 5
    weight = random_tensor(1, k, k, channels * multiplier).astype(np.float16 if stored == "FLOAT16" else "f4")
    shape, out = weight.shape, (1, SIZE, SIZE, channels * multiplier)
    bias = np.zeros(channels * multiplier, np.float32)
    tensors = [
        tensor("x", (1, SIZE, SIZE, channels)),
        tensor("block1/depthwise;joined/name", shape, stored, 1),
        tensor("bias", bias.shape, buffer=2),
        tensor("y", out),
    ]
    operators = [depthwise(0, [0, 1, 2], [3], multiplier)]
    if stored == "FLOAT16":
        tensors.append(tensor("block1/real", shape))
        operators = [operator(2, [1], [4]), depthwise(0, [0, 4, 2], [3], multiplier)]
    path = written(tmp_path / "a.tflite", tensors, [weight.tobytes(), bias.tobytes()], operators, [3])
    got = load_file(convert(path).path)
    assert set(got) == {"block1/depthwise/depthwise_kernel", "block1/depthwise/bias"}
    kernel = got["block1/depthwise/depthwise_kernel"]
    assert kernel.shape == (k, k, channels, multiplier)
    seen = responses(path, channels)
    margin = slice(SIZE // 2 - k // 2, SIZE // 2 + k // 2 + 1)
    for channel in range(channels):
        of_channel = seen[channel, margin, margin, channel * multiplier : (channel + 1) * multiplier]
        np.testing.assert_allclose(of_channel[::-1, ::-1], kernel[:, :, channel], rtol=1e-6)


def quantized(weight, axis):
    """Whole numbers of each channel along an axis with their scales and zero points."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(others, keepdims=True) / 100
    zero = np.arange(scale.size).reshape(scale.shape)
    return np.round(weight / scale + zero).astype(np.int8), scale, zero


def test_convert_tflite_quantized_and_unnamed(tmp_path):
    """Whole numbers become what they stand for; a constant without a name is called after its layer."""
    dense, scale, zero = quantized(random_tensor(8, 1, 1, 3), 0)
    wide, wide_scale, wide_zero = quantized(random_tensor(1, 3, 3, 8), 3)
    tensors = [
        tensor("x", (1, SIZE, SIZE, 3)),
        tensor("arith.constant12", dense.shape, "INT8", 1, scale.ravel().tolist(), zero.ravel().tolist()),
        tensor("stem/conv", (1, SIZE, SIZE, 8)),
        tensor("tfl.pseudo_qconst", wide.shape, "INT8", 2, wide_scale.ravel(), wide_zero.ravel(), axis=3),
        tensor("block/conv", (1, SIZE, SIZE, 8)),
    ]
    operators = [convolution(1, [0, 1], [2]), depthwise(0, [2, 3], [4])]
    path = written(tmp_path / "a.tflite", tensors, [dense.tobytes(), wide.tobytes()], operators, [4])
    done = convert(path)
    got = load_file(done.path)
    assert set(got) == {"stem/conv/kernel", "block/conv/depthwise_kernel"}
    stem = (scale * (dense.astype(float) - zero)).transpose(1, 2, 3, 0)
    np.testing.assert_allclose(got["stem/conv/kernel"], stem, rtol=1e-6)
    real = (wide_scale * (wide.astype(float) - wide_zero))[0, :, :, :, None]
    np.testing.assert_allclose(got["block/conv/depthwise_kernel"], real, rtol=1e-6)
    kernels = load_kernels(done.path)
    assert [layer.name for layer in kernels.layers] == ["block/conv/depthwise_kernel"]
    np.testing.assert_array_equal(
        kernels.groups[3].kernels[3], got["block/conv/depthwise_kernel"][:, :, 3, 0]
    )


def test_convert_tflite_four_bits(tmp_path):
    """Two numbers share a byte, the first one in its lower half."""
    whole = (np.arange(72) % 16 - 8).reshape(1, 3, 3, 8)
    low, high = (whole.ravel()[start::2] % 16 for start in (0, 1))
    tensors = [
        tensor("x", (1, SIZE, SIZE, 8)),
        tensor("mix", whole.shape, "INT4", 1, [0.5], [0]),
        tensor("y", (1, SIZE, SIZE, 8)),
    ]
    content = (low + 16 * high).astype(np.uint8).tobytes()
    path = written(tmp_path / "a.tflite", tensors, [content], [depthwise(0, [0, 1], [2])], [2])
    got = load_file(convert(path).path)["mix/depthwise_kernel"]
    np.testing.assert_array_equal(got, whole[0, :, :, :, None] * 0.5)


def test_convert_tflite_grouped_convolution_is_depthwise(tmp_path):
    """A convolution with one input per group is a depthwise one, whatever its operator is called."""
    weight = random_tensor(6, 3, 3, 1)
    tensors = [
        tensor("x", (1, SIZE, SIZE, 6)),
        tensor("mix", weight.shape, buffer=1),
        tensor("y", (1, SIZE, SIZE, 6)),
    ]
    path = written(tmp_path / "a.tflite", tensors, [weight.tobytes()], [convolution(1, [0, 1], [2])], [2])
    got = load_file(convert(path).path)["mix/depthwise_kernel"]
    np.testing.assert_array_equal(got, np.moveaxis(weight, 0, 2))


def test_convert_tflite_says_what_it_leaves(tmp_path):
    """Whole numbers without a scale stand for nothing; a weight that two layers share is read once."""
    weight, raw = random_tensor(1, 3, 3, 2), np.ones((1, 3, 3, 2), np.int8)
    tensors = [
        *(tensor(name, (1, SIZE, SIZE, 2)) for name in ("x", "y", "z", "end")),
        tensor("raw", raw.shape, "INT8", 1),
        tensor("shared", weight.shape, buffer=2),
    ]
    operators = [depthwise(0, [0, 4], [1]), depthwise(0, [1, 5], [2]), depthwise(0, [2, 5], [3])]
    path = written(tmp_path / "a.tflite", tensors, [raw.tobytes(), weight.tobytes()], operators, [3])
    done = convert(path)
    assert set(load_file(done.path)) == {"shared/depthwise_kernel"}
    assert done.left == {"raw": "whole numbers without a scale, which are not converted"}


@pytest.mark.parametrize("content", [b"\x1c\0\0\0TFL3", b"\x1c\0\0\0TFL3" + bytes(100), b"hello world"])
def test_convert_tflite_damaged(tmp_path, content):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged TensorFlow Lite model|holds no tensors"):
        convert(path)
