"""The order of the passes that make a canonical Vision Transformer graph."""

from __future__ import annotations

import onnx_ir as ir

from vitexport.host.graph.passes.attention_scale import AttentionScale
from vitexport.host.graph.passes.clean_up import CleanUp
from vitexport.host.graph.passes.fold_constants import FoldConstants
from vitexport.host.graph.passes.fold_uniform import FoldUniform
from vitexport.host.graph.passes.layer_scale import LayerScale
from vitexport.host.graph.passes.linear_form import LinearForm
from vitexport.host.graph.passes.merge_qkv import MergeQkv
from vitexport.host.graph.passes.read_tokens import ReadTokens
from vitexport.host.graph.passes.softmax_guards import SoftmaxGuards
from vitexport.host.graph.passes.split_qkv import SplitQkv
from vitexport.host.graph.passes.window_mask import WindowMask
from vitexport.host.graph.scopes import ModuleNames

__all__ = ["canonical_passes", "canonicalize"]


def canonical_passes() -> tuple[ir.passes.InPlacePass, ...]:
    """Return the passes in the order they rely on each other."""
    return (
        FoldConstants(),
        FoldUniform(),
        SoftmaxGuards(),
        WindowMask(),
        LinearForm(),
        CleanUp(),
        LayerScale(),
        SplitQkv(),
        MergeQkv(),
        AttentionScale(),
        ReadTokens(),
        CleanUp(),
        ModuleNames(),
    )


def canonicalize(model: ir.Model) -> tuple[str, ...]:
    """Bring a graph into the canonical form, in place.

    Args:
        model: A graph with shapes on its values.

    Returns:
        Names of the passes that changed something.
    """
    return tuple(type(step).__name__ for step in canonical_passes() if step(model).modified)
