"""Dead nodes, identities, repeated subexpressions and unused weights go."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["CleanUp"]


class CleanUp(ir.passes.InPlacePass):
    """Remove what no output needs and merge what is computed twice.

    Requires a valid graph; ensures that every node and initializer is used and none is an Identity between nodes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run onnx-ir's own passes."""
        passes = ir.passes.Sequential(
            common.IdentityEliminationPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.TopologicalSortPass(),
        )
        return ir.passes.PassResult(model, modified=passes(model).modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing unused is left."""
        outputs = {id(value) for value in model.graph.outputs}
        dead = [n.name for n in model.graph if not any(o.uses() or id(o) in outputs for o in n.outputs)]
        if dead:
            raise ir.passes.PostconditionError(f"Expected no dead nodes, found {dead[:3]}.")
