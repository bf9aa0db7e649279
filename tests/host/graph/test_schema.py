"""Which types ONNX permits, read from its schemas."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from vitexport.host.graph.schema import first_opset, permits_input, permits_output

BFLOAT16, FLOAT16, FP8 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT8E4M3FN


@pytest.mark.parametrize(
    ("operator", "dtype", "first"),
    [
        ("Conv", BFLOAT16, 22),
        ("ConstantOfShape", BFLOAT16, 20),
        ("MatMul", BFLOAT16, 17),
        ("LayerNormalization", BFLOAT16, 17),
        ("Conv", FLOAT16, 17),
        ("QuantizeLinear", FP8, 19),
        ("DequantizeLinear", FLOAT16, 19),
        ("MatMul", ir.DataType.BOOL, None),
    ],
)
def test_a_result_may_be_of_a_type_from_an_opset_on(operator: str, dtype: ir.DataType, first: int | None) -> None:
    assert first_opset(17, lambda opset: permits_output(operator, opset, 0, dtype)) == first


def test_an_input_may_be_fixed_although_the_others_are_not() -> None:
    assert [permits_input("Resize", 20, index, FLOAT16) for index in range(4)] == [True, True, False, False]


def test_further_inputs_are_of_the_last_declared_type() -> None:
    assert permits_input("Concat", 20, 5, BFLOAT16)
    assert not permits_input("Conv", 20, 2, BFLOAT16)


def test_an_operator_without_a_schema_is_left_to_its_runtime() -> None:
    assert permits_input("Gelu", 17, 0, BFLOAT16)
    assert permits_output("BiasGelu", 20, 0, BFLOAT16, "com.microsoft")
