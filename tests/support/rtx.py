"""Ask TensorRT-RTX itself, without any of our checks in between."""

from __future__ import annotations

from pathlib import Path

from vitexport.runtimes.tensorrt.api import load_api


def parses_and_builds(model: Path, capability: str = "") -> tuple[bool, str]:
    """Parse and build with a batch profile where the batch is dynamic; return success and the first reason."""
    api = load_api("tensorrt-rtx")
    trt = api.module
    builder = trt.Builder(api.logger)
    network = builder.create_network(api.network_flags)
    parser = trt.OnnxParser(network, api.logger)
    with api.messages() as messages:
        if not parser.parse_from_file(str(model)):
            return False, parser.get_error(0).desc()
        config = builder.create_builder_config()
        if capability:
            config.num_compute_capabilities = 1
            config.set_compute_capability(api.member("ComputeCapability", f"SM{capability.replace('.', '')}"), 0)
        tensor = network.get_input(0)
        shape = tuple(tensor.shape)
        if shape[0] < 0 and all(size > 0 for size in shape[1:]):
            profile = builder.create_optimization_profile()
            profile.set_shape(tensor.name, *[(2, *shape[1:])] * 3)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
    return plan is not None, "; ".join(messages)
