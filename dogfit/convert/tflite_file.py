"""Weights of TensorFlow Lite models."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dogfit.convert.extras import import_extra
from dogfit.convert.weights import Weights
from dogfit.errors import InputError

MAGIC = b"TFL3"
"""Bytes 4 to 8 of a file."""
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
        if content[4:8] != MAGIC:
            raise ValueError("it does not start as one")
        model = schema.ModelT.InitFromPackedBuf(content)
        return _Graphs(schema, model, content).weights()
    except (OSError, ValueError, TypeError, IndexError, AttributeError, KeyError, struct.error) as error:
        raise InputError(f"{path}: damaged TensorFlow Lite model: {error}") from error


class _Graphs:
    """The graphs of one model, whose layers are read one after another."""

    def __init__(self, schema: Any, model: Any, content: bytes) -> None:
        self._schema, self._model, self._content = schema, model, content
        self._operators = {
            value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
        }
        self._types = {
            getattr(schema.TensorType, name): dtype
            for name, dtype in {
                "FLOAT32": "<f4",
                "FLOAT16": "<f2",
                "FLOAT64": "<f8",
                "INT8": "i1",
                "UINT8": "u1",
                "INT16": "<i2",
                "INT32": "<i4",
            }.items()
        }
        self._tensors: dict[str, np.ndarray] = {}
        self._left: dict[str, str] = {}

    def weights(self) -> Weights:
        """Read all layers."""
        for graph in self._model.subgraphs:
            for kind, operator, inputs in self._layers(graph):
                self._add(graph, kind, operator, inputs)
        return Weights(self._tensors, tuple(self._tensors), self._left)

    def _layers(self, graph: Any) -> Iterator[tuple[str, Any, list[Any]]]:
        """Yield kind, operator and input tensors of each layer with a weight.

        A weight may pass through operators that only change its type.
        """
        made_from: dict[int, int] = {}
        for operator in graph.operators or ():
            code = self._model.operatorCodes[operator.opcodeIndex]
            kind = self._operators.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")
            indices = [int(i) for i in operator.inputs if i >= 0]
            if kind in ("DEQUANTIZE", "DENSIFY"):
                made_from[int(operator.outputs[0])] = indices[0]
            elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and len(indices) > 1:
                yield kind, operator, [graph.tensors[made_from.get(i, i)] for i in indices]

    def _add(self, graph: Any, kind: str, operator: Any, inputs: list[Any]) -> None:
        """Keep weight and bias of a layer, unless they are computed or were seen before."""
        name = self._name(inputs[1], graph.tensors[operator.outputs[0]])
        try:
            weight = self._values(inputs[1])
        except _UnreadableError as error:
            self._left[name] = str(error)
            return
        if weight is None:
            return
        word, values = _keras(kind, weight, int(np.ravel(inputs[0].shape)[-1]))
        while f"{name}/{word}" in self._tensors:
            if np.array_equal(self._tensors[f"{name}/{word}"], values):
                return
            name += "_"
        self._tensors[f"{name}/{word}"] = values
        bias = self._values(inputs[2]) if len(inputs) > 2 else None
        if bias is not None:
            self._tensors[f"{name}/bias"] = bias

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
        shape = tuple(int(n) for n in tensor.shape)
        if tensor.type == self._schema.TensorType.INT4:
            pairs = np.frombuffer(stored, np.int8)
            values = np.stack([np.left_shift(pairs, 4) >> 4, pairs >> 4], 1).ravel()[: int(np.prod(shape))]
        elif tensor.type in self._types:
            values = np.frombuffer(stored, self._types[tensor.type])
        else:
            raise _UnreadableError(f"of type number {tensor.type}, which is not converted")
        return _dequantized(values.reshape(shape), tensor.quantization)


class _UnreadableError(Exception):
    """A constant is stored in a way that is not read; the message says which."""


def _dequantized(values: np.ndarray, quantization: Any) -> np.ndarray:
    """Real numbers: scale * (values - zero point), by channel or for all."""
    if values.dtype.kind == "f" or quantization is None or quantization.scale is None:
        return values
    shape = [1] * values.ndim
    shape[quantization.quantizedDimension if len(quantization.scale) > 1 else 0] = -1
    scale = np.reshape(np.asarray(quantization.scale, np.float64), shape)
    zero = np.reshape(np.asarray(quantization.zeroPoint, np.float64), shape)
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
