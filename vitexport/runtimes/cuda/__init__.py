"""CUDA: whether there is a usable GPU, and one narrow seam for device memory, streams and graphs."""

from __future__ import annotations

from vitexport.runtimes.cuda.memory import CudaMemory, open_memory
from vitexport.runtimes.cuda.probe import CudaState, GpuInfo, probe_cuda, require_gpu

__all__ = ["CudaMemory", "CudaState", "GpuInfo", "open_memory", "probe_cuda", "require_gpu"]
