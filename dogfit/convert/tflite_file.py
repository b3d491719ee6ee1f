"""Weights of TensorFlow Lite models."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dogfit.convert.extras import import_extra
from dogfit.convert.weights import Weights
from dogfit.errors import InputError

# Types of constants that are read besides four-bit numbers, by their names in the schema.
_DTYPES = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "FLOAT64": "<f8",
    "INT8": "i1",
    "UINT8": "u1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
}
# Starts of names that a converter makes up for constants.
_ANONYMOUS = ("arith.constant", "tfl.", "jax2tf_", "dot_general", "XlaDotV2", "Const")


def read_tflite(path: Path) -> Weights:
    """Read the weights and biases of the layers in a TensorFlow Lite model, named and stored as by Keras.

    The operator that uses a weight says what it is: of a depthwise convolution it becomes
    `NAME/depthwise_kernel` of shape (height, width, channels, multiplier), of another one `NAME/kernel` of
    shape (height, width, inputs, outputs), of a dense layer (inputs, outputs). Quantized weights become the
    real numbers that they stand for.

    Args:
      path: the file.

    Returns:
      The tensors, and their order in the graph.

    Raises:
      InputError: if the file is damaged, or ai-edge-litert is not installed.
    """
    schema = import_extra("ai_edge_litert.schema_py_generated", "tflite", path)
    try:
        content = path.read_bytes()
        if not schema.Model.ModelBufferHasIdentifier(content, 0):
            raise ValueError("it does not start as one")
        return _Layers(schema, schema.ModelT.InitFromPackedBuf(content), content).read()
    except (OSError, ValueError, TypeError, IndexError, AttributeError, KeyError, struct.error) as error:
        raise InputError(f"{path}: damaged TensorFlow Lite model: {error}") from error


class _Layers:
    """Layers of the graphs of one model."""

    def __init__(self, schema: Any, model: Any, content: bytes) -> None:
        self._model, self._content = model, content
        self._operators, self._types = _names(schema.BuiltinOperator), _names(schema.TensorType)

    def read(self) -> Weights:
        """Read weights and biases; what layers share is read once."""
        tensors: dict[str, np.ndarray] = {}
        left: dict[str, str] = {}
        for graph in self._model.subgraphs:
            for kind, output, (image, *constants) in self._with_weights(graph):
                name = self._name(constants[0], output)
                try:
                    weight, *bias = (self._values(tensor) for tensor in constants)
                except _UnreadableError as error:
                    left[name] = str(error)
                    continue
                if weight is None:
                    continue
                word, weight = _keras(kind, weight, int(image.shape[-1]))
                while f"{name}/{word}" in tensors and not np.array_equal(tensors[f"{name}/{word}"], weight):
                    name += "_"
                tensors[f"{name}/{word}"] = weight
                if bias and bias[0] is not None:
                    tensors[f"{name}/bias"] = bias[0]
        return Weights(tensors, tuple(tensors), left)

    def _with_weights(self, graph: Any) -> Iterator[tuple[str, Any, list[Any]]]:
        """Yield kind, output and inputs of each layer; operators that only change a type are passed over."""
        source: dict[int, int] = {}
        for operator in graph.operators or ():
            code = self._model.operatorCodes[operator.opcodeIndex]
            kind = self._operators.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            inputs = [source.get(int(i), int(i)) for i in operator.inputs if i >= 0]
            if kind in ("DEQUANTIZE", "DENSIFY"):
                source[int(operator.outputs[0])] = inputs[0]
            elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and len(inputs) > 1:
                yield kind, graph.tensors[operator.outputs[0]], [graph.tensors[i] for i in inputs]

    def _name(self, weight: Any, output: Any) -> str:
        """Name of a layer: its weight's or, where a converter made that up, its output's.

        Operators that were joined have their names joined by semicolons.
        """
        own, out = ((t.name or b"").decode(errors="replace") for t in (weight, output))
        name = out if not own or own.startswith(_ANONYMOUS) else own
        return name.split(";")[0].strip("/") or "layer"

    def _values(self, tensor: Any) -> np.ndarray | None:
        """Real numbers of a constant; None for what is computed.

        Raises:
          _UnreadableError: if it is stored in a way that is not read.
        """
        buffer = self._model.buffers[tensor.buffer]
        if buffer.data is not None and len(buffer.data):
            stored = bytes(buffer.data)
        elif (buffer.offset or 0) > 1:
            stored = self._content[buffer.offset : buffer.offset + buffer.size]
        else:
            return None
        if tensor.sparsity is not None:
            raise _UnreadableError("sparse, which is not converted")
        kind = self._types.get(tensor.type, str(tensor.type))
        if kind == "INT4":
            pairs = np.frombuffer(stored, np.int8)
            values = np.stack([np.left_shift(pairs, 4) >> 4, pairs >> 4], 1).ravel()[: np.prod(tensor.shape)]
        elif kind in _DTYPES:
            values = np.frombuffer(stored, _DTYPES[kind])
        else:
            raise _UnreadableError(f"of type {kind}, which is not converted")
        return _dequantized(values.reshape(tensor.shape), tensor.quantization)


class _UnreadableError(Exception):
    """A constant is stored in a way that is not read; the message says which."""


def _names(enumeration: Any) -> dict[int, str]:
    """Numbers of an enumeration in the schema -> names."""
    return {number: name for name, number in vars(enumeration).items() if not name.startswith("_")}


def _dequantized(values: np.ndarray, quantization: Any) -> np.ndarray:
    """Real numbers: scale * (values - zero point), by channel or for all.

    Raises:
      _UnreadableError: if whole numbers have no scale.
    """
    if values.dtype.kind == "f":
        return values
    if quantization is None or quantization.scale is None:
        raise _UnreadableError("whole numbers without a scale, which are not converted")
    shape = [1] * values.ndim
    shape[quantization.quantizedDimension if len(quantization.scale) > 1 else 0] = -1
    scale = np.reshape(np.asarray(quantization.scale, np.float64), shape)
    zero = 0 if quantization.zeroPoint is None else np.reshape(quantization.zeroPoint, shape)
    return (scale * (values - zero)).astype(np.float32)


def _keras(kind: str, weight: np.ndarray, n_inputs: int) -> tuple[str, np.ndarray]:
    """Name and values of a weight in Keras' layout, given the channels that the layer takes."""
    if kind == "FULLY_CONNECTED":
        return "kernel", weight.T
    if kind == "DEPTHWISE_CONV_2D":
        return "depthwise_kernel", weight.reshape(*weight.shape[1:3], n_inputs, -1)
    # One input per group: channels lie together with their multiples, as in a depthwise convolution.
    if weight.shape[3] == 1 and n_inputs > 1:
        per_channel = np.moveaxis(weight[..., 0], 0, -1)
        return "depthwise_kernel", per_channel.reshape(*weight.shape[1:3], n_inputs, -1)
    return "kernel", weight.transpose(1, 2, 3, 0)
