"""How much of the bare model's speed survives HTTP: /predict under load against the model alone.

    python -m benchmarks.serve_load MODEL|BUNDLE IMAGES [--clients 32] [--seconds 60] [--batch 8] [--name NAME]

The model alone is what ``vitexport bench`` measures: runs of one full batch, no decoding, no preprocessing, with the
runtime's own choice of threads. It is measured before and after the load, on the same machine. The load client shares
the cores with the server; its CPU time is reported. All traffic stays on 127.0.0.1. With a name, the figures replace
those of that name in ``results/serve.json`` and in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.http_load import HOST, LoadResult, hammer, image_request
from benchmarks.suites.paths import BENCHMARKS_PAGE, RESULTS
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.tables import replace_table, save_results
from vitexport.inputs.images import list_images


def main() -> None:
    """Measure and print."""
    parser = command_parser("serve_load", __doc__)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", help="keep the figures under this name")
    options = parser.parse_args()

    requests = [image_request(path.read_bytes()) for path in list_images(options.images, limit=128)]
    before = _bare_in_process(options.model, options.batch)
    command = [sys.executable, "-m", "vitexport.cli", "serve", options.model, "--port", "0"]
    command += ["--max-batch", str(options.batch), "--workers", str(options.workers)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "on http://" in line)
        port = int(re.findall(r":(\d+);", line)[0])
        asyncio.run(hammer(port, requests, clients=options.clients, seconds=10))  # warm-up, allocators included
        memory = [_metric(port, "process_resident_memory_bytes")]
        cpu = [_metric(port, "process_cpu_seconds_total")]
        client_cpu = _cpu()
        load = asyncio.run(hammer(port, requests, clients=options.clients, seconds=options.seconds))
        client_cpu = _cpu() - client_cpu
        memory.append(_metric(port, "process_resident_memory_bytes"))
        cpu.append(_metric(port, "process_cpu_seconds_total"))

        async def stop_under_load() -> LoadResult:
            task = asyncio.create_task(hammer(port, requests, clients=options.clients, seconds=15))
            await asyncio.sleep(3)
            server.send_signal(signal.SIGTERM)
            return await task

        stopped = asyncio.run(stop_under_load())
        code = server.wait()
    after = _bare_in_process(options.model, options.batch)
    rate = len(load.seconds) / load.wall
    reference = (before[0] + after[0]) / 2
    result = {
        "clients": options.clients,
        "seconds": round(load.wall, 1),
        "batch": options.batch,
        "answers": dict(load.statuses),
        "lost": load.lost,
        "images_per_second": round(rate, 1),
        "bare_images_per_second": [round(before[0], 1), round(after[0], 1)],
        "images_per_cpu_second": round(len(load.seconds) / (cpu[1] - cpu[0]), 1),
        "bare_images_per_cpu_second": [round(before[1], 1), round(after[1], 1)],
        "ratio": round(rate / reference, 3),
        "p50_ms": round(load.percentile_ms(50), 1),
        "p99_ms": round(load.percentile_ms(99), 1),
        "server_cpu_seconds": round(cpu[1] - cpu[0], 1),
        "client_cpu_seconds": round(client_cpu, 1),
        "memory_mib": [round(value / 2**20, 1) for value in memory],
        "sigterm": {"lost": stopped.lost, "answered": dict(stopped.statuses), "exit_code": code},
    }
    print(json.dumps(result, indent=2))
    if options.name:
        _keep(options.name, result)


def _keep(name: str, result: dict[str, Any]) -> None:
    kept = json.loads((RESULTS / "serve.json").read_text())["rows"] if (RESULTS / "serve.json").is_file() else []
    row = {
        "model": name,
        "clients": result["clients"],
        "batch": result["batch"],
        "images/s": result["images_per_second"],
        "of the model alone": result["ratio"],
        "of it, per CPU second": round(
            result["images_per_cpu_second"] * 2 / sum(result["bare_images_per_cpu_second"]), 3
        ),
        "p50 ms": result["p50_ms"],
        "p99 ms": result["p99_ms"],
        "answers": ", ".join(f"{count} x {status}" for status, count in result["answers"].items()),
        "lost": result["lost"],
        "memory MiB before, after": ", ".join(str(value) for value in result["memory_mib"]),
        "lost at SIGTERM": result["sigterm"]["lost"],
    }
    rows = [*(one for one in kept if one["model"] != name), row]
    content = save_results("serve", rows, ("onnxruntime", "starlette", "uvicorn", "Pillow"))
    replace_table(BENCHMARKS_PAGE, "serve", content)


def _bare_in_process(model: str, batch: int) -> tuple[float, float]:
    command = module_command("suites.bare_model", model, batch, 8)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment())
    rate, cpu_rate = done.stdout.split()
    return float(rate), float(cpu_rate)


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as response:
        text = response.read().decode()
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
