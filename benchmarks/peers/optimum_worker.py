"""optimum-onnx. The job's model is a Hugging Face checkpoint directory; the defaults of its ``main_export``."""

from __future__ import annotations

import shutil
from pathlib import Path

from optimum.exporters.onnx import main_export

from benchmarks.peers.job import Job, work


def _run(job: Job) -> None:
    folder = Path(job.out).parent / "optimum"
    main_export(
        job.model, folder, task="image-classification", opset=20, library_name="transformers", do_validation=False
    )
    (folder / "model.onnx").replace(job.out)
    shutil.rmtree(folder)


if __name__ == "__main__":
    work(_run, ("optimum-onnx", "torch", "transformers"))
