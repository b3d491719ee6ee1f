"""Weights of ONNX models."""

from pathlib import Path
from typing import Any

import numpy as np

from dogfit.convert.extras import import_extra
from dogfit.convert.weights import Weights
from dogfit.errors import InputError

# Operators whose second input is a weight.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Names that an exporter makes up for weights that it has changed.
_ANONYMOUS = ("onnx::",)


def read_onnx(path: Path) -> Weights:
    """Read the initializers and constants of an ONNX graph.

    A weight whose name an exporter has made up is named after the node that uses it, which tells its place in
    the network.

    Args:
      path: the file; tensors that it keeps in files of their own are found beside it.

    Returns:
      The tensors, and their order in the graph.

    Raises:
      InputError: if the file is damaged, or onnx is not installed.
    """
    onnx = import_extra("onnx", "onnx", path)
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path)).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        stored |= {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value" and attribute.t.dims
        }
        names = _names(graph, stored)
        tensors = {names[name]: np.asarray(onnx.numpy_helper.to_array(t)) for name, t in stored.items()}
    except (DecodeError, OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: damaged ONNX model: {error}") from error
    used = [name for node in graph.node for name in node.input if name in stored]
    return Weights(tensors, tuple(dict.fromkeys(names[name] for name in used)))


def _names(graph: Any, stored: dict[str, Any]) -> dict[str, str]:
    """Name of each tensor in the graph -> name to give it."""
    names = {name: name for name in stored}
    taken = set(names)
    for node in graph.node:
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in stored:
            own, path = node.input[1], node.name.strip("/")
            name = f"{path.rpartition('/')[0] or path}/weight"
            if own.startswith(_ANONYMOUS) and path and name not in taken:
                names[own] = name
                taken.add(name)
    return names
