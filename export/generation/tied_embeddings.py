"""Store embeddings that are both the first and the last weights of a model once."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def share_embeddings(model: onnx.ModelProto) -> bool:
    """Let the last matrix product of a graph read the embeddings, if it has a transposed copy of them.

    A model with tied embeddings is traced with such a copy. The product becomes a ``Gemm``, which transposes its weights itself.

    Args:
        model: The graph; its output ``logits`` has two axes. It is changed in place.

    Returns:
        Whether there was a copy, which is removed.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in weights}
    uses = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or uses.count(node.input[1]) > 1:
            continue
        copy = weights[node.input[1]]
        for name in looked_up:
            if list(weights[name].dims) == list(reversed(copy.dims)) and _transposed(weights[name], copy):
                node.op_type, node.input[1] = "Gemm", name
                node.attribute.append(onnx.helper.make_attribute("transB", 1))
                model.graph.initializer.remove(copy)
                return True
    return False


def _transposed(tensor: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return bool(np.array_equal(numpy_helper.to_array(tensor).T, numpy_helper.to_array(other)))
