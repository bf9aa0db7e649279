"""Which of ONNX's operators the TensorRT parsers lack."""

from __future__ import annotations

__all__ = ["NEWER_THAN_10_3", "UNSUPPORTED"]

# What TensorRT-RTX 1.7's OnnxParser.supports_operator() answers no to, of ONNX's own operators. TensorRT 11 has the
# same parser. A test compares this list with the installed parser.
UNSUPPORTED = frozenset(
    {
        "AffineGrid",
        "Bernoulli",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "SwiGLU",
        "TfIdfVectorizer",
        "Unique",
    }
)

# Operators the parser learned after 10.3: those newer than ONNX 1.16 (10.3's), and the ones its changelog dates later
# (window functions 10.4, STFT 10.5).
NEWER_THAN_10_3 = frozenset(
    {
        "Attention",
        "BlackmanWindow",
        "CausalConvWithState",
        "HammingWindow",
        "HannWindow",
        "LinearAttention",
        "RMSNormalization",
        "RotaryEmbedding",
        "STFT",
        "Swish",
        "TensorScatter",
    }
)
