"""Planning every attention of a graph in the form that was asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize.calibration.calibrate import ImageFeeds
from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.planning.attention import AttentionPlan, attention_tensors, plan_attention
from vitexport.host.quantize.planning.attention_scales import (
    AttentionScales,
    centred,
    centred_at_means,
    fit_attention_scales,
)
from vitexport.host.quantize.planning.layers import QuantizedLayer
from vitexport.host.quantize.planning.plan import TensorPlan
from vitexport.host.quantize.scheme import QdqScheme
from vitexport.recipe.settings import QuantizeSettings, Target

__all__ = ["AttentionPlanner", "form_remark"]


class AttentionPlanner:
    """Fits and plans the attentions of one graph; does nothing where attention stays float.

    Args:
        model: The float graph; it stays as it is.
        layers: Its layers.
        settings: The form of attention.
        scheme: What the target computes.
        where: Name of the model for messages.

    Attributes:
        tensors: Query, key and value by attention name; empty where attention stays float.

    Raises:
        QuantizeError: Attention is to be quantized and no attention of the graph can be.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[QuantizedLayer],
        settings: QuantizeSettings,
        scheme: QdqScheme,
        *,
        where: str,
    ) -> None:
        self._model = model
        self._form = settings.attention
        self._scheme = scheme
        self._attentions = find_attention(model)
        consumers = {layer.linear.block: layer for layer in layers if layer.linear.role == "proj"}
        self._consumers = {one.name: consumers[one.block] for one in self._attentions if one.block in consumers}
        self._scales: Mapping[str, AttentionScales] = {}
        self.tensors = {} if self._form == "float" else attention_tensors(model)
        if self._form != "float" and not self.tensors:
            raise QuantizeError(
                f"Expected attentions whose query, key and value can be quantized in '{where}', found none.",
                f"Leave out `attention: {self._form}`.",
            )

    def leave_out(self, names: Collection[str]) -> None:
        """Let the attentions of these names stay float."""
        self.tensors = {name: tensors for name, tensors in self.tensors.items() if name not in names}

    def fit(
        self,
        collected: Mapping[str, TensorStatistics],
        feeds: ImageFeeds,
        images: Sequence[int],
        *,
        class_token: bool,
    ) -> dict[str, TensorStatistics]:
        """Choose where probabilities are clipped and values are centred.

        Args:
            collected: Statistics of :attr:`tensors` and of every layer's input.
            feeds: Calibration images.
            images: Which of them calibrate.
            class_token: Whether the error in row 0 counts for more.

        Returns:
            The same statistics, those of attention's outputs centred where the values will be.
        """
        if self._form == "int8" and self.tensors:
            importance = {name: np.square(layer.weight()).sum(axis=1) for name, layer in self._consumers.items()}
            self._scales = fit_attention_scales(
                self._model, self.tensors, collected, importance, feeds, images, self._scheme, class_token
            )
        else:
            self._scales = centred_at_means(self.tensors, collected)
        outputs = {name: self._consumers[name].input_name for name in self._scales if name in self._consumers}
        moved = {
            tensor: centred(collected[tensor], self._scales[name].centre)
            for name, tensor in outputs.items()
            if tensor in collected and collected[tensor].channels == len(self._scales[name].centre)
        }
        return {**collected, **moved}

    def plan(
        self, plans: Sequence[TensorPlan], collected: Mapping[str, TensorStatistics], images: int
    ) -> tuple[AttentionPlan, ...]:
        """Return the plan of every attention; call :meth:`fit` first.

        Args:
            plans: Of the layers' inputs.
            collected: Statistics before any transform.
            images: How many images they come from.
        """
        after = {plan.layers[0].linear.block: plan.choice for plan in plans if plan.kind == "value"}
        blocks = {one.name: one.block for one in self._attentions}
        chosen = {tensors[2]: after.get(blocks[name]) for name, tensors in self.tensors.items()}
        values = {name: (choice.channel_scale, choice.shift) for name, choice in chosen.items() if choice is not None}
        return plan_attention(
            self._model,
            self.tensors,
            collected,
            values,
            self._scales,
            self._scheme,
            rows=self._form == "int8-rows",
            images=images,
        )


def form_remark(settings: QuantizeSettings) -> str:
    """Return in words how the target executes the form of attention that was asked for; empty for float."""
    if settings.attention == "float":
        return ""
    return _REMARKS.get((settings.target, settings.attention), "ONNX Runtime runs every form as separate kernels")


_REMARKS: dict[tuple[Target, str], str] = {
    ("tensorrt", "int8"): "TensorRT fuses this form (head size 16, 32 or 64, at most 512 tokens)",
    ("tensorrt", "int8-rows"): "TensorRT runs this form as separate kernels",
    ("tensorrt", "fp8"): "TensorRT fuses this form where the GPU has FP8",
}
