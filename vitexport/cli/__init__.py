"""The command line: ``vitexport COMMAND``. Commands are imported when they are used, so ``--help`` stays fast.

Exit codes: 0 ok, 1 error, 2 usage (also a wrong recipe), 3 verification failed.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from typing import Any, cast

import click

from vitexport import __version__
from vitexport.errors import RecipeError, VitexportError

__all__ = ["COMMANDS", "main"]


# name -> (module:attribute, one line for the overview)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("vitexport.cli.run:run", "Carry out a recipe: export, simplify, quantize, verify, benchmark, report."),
    "export": ("vitexport.cli.stages:export", "Export a PyTorch Vision Transformer to ONNX."),
    "simplify": ("vitexport.cli.stages:simplify", "Simplify an exported ONNX model to the canonical ViT graph."),
    "quantize": ("vitexport.cli.stages:quantize", "Quantize an ONNX model with calibration images."),
    "labels": ("vitexport.cli.labels:labels", "Show how the labels of images match a model's classes."),
    "verify": ("vitexport.cli.verify:verify", "Check on this machine that a bundle answers as PyTorch did."),
    "evaluate": ("vitexport.cli.evaluate:evaluate", "Score models on labelled images: top-1, mAP and F1, or error."),
    "bench": ("vitexport.cli.bench:bench", "Measure latency and throughput."),
    "predict": ("vitexport.cli.predict:predict", "Classify images."),
    "inspect": ("vitexport.cli.inspect:inspect", "Show what a model file, engine or bundle holds."),
    "lint": ("vitexport.cli.lint:lint", "Find what an inference compiler will reject or run slowly."),
    "build-engine": ("vitexport.cli.build_engine:build_engine", "Build a TensorRT engine and audit what it does."),
    "refit": ("vitexport.cli.refit:refit", "Put the weights into a weight-stripped engine, or new ones."),
    "trtexec": ("vitexport.cli.trtexec:trtexec", "Print the equivalent trtexec command line."),
    "bisect": ("vitexport.cli.bisect:bisect", "Find the layer where a variant loses accuracy."),
    "diagnose": ("vitexport.cli.diagnose:diagnose", "Predict what will be hard to quantize or to run in fp16."),
    "serve": ("vitexport.cli.serve:serve", "Serve a bundle over HTTP."),
    "triton": ("vitexport.cli.triton:triton", "Write a Triton model repository."),
    "deepstream": ("vitexport.cli.deepstream:deepstream", "Write a DeepStream nvinfer configuration."),
    "kit": ("vitexport.cli.kit:kit", "Pack what a device needs into one archive."),
    "models": ("vitexport.cli.models:models", "List the supported model families."),
    "doctor": ("vitexport.cli.doctor:doctor", "Say what this machine can do and what to install for the rest."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands by import path, and turns errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = f" Did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(f"No such command '{args[0]}'.{suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        format_before = warnings.formatwarning
        warnings.formatwarning = _in_words
        try:
            return super().invoke(ctx)
        except VitexportError as error:
            click.echo(f"Error: {error.message}", err=True)
            if error.hint:
                click.echo(f"  {error.hint}", err=True)
            ctx.exit(2 if isinstance(error, RecipeError) else 1)
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(f"Error: '{error.filename}': {error.strerror}", err=True)
            click.echo("  Check that the path exists and that you may write there.", err=True)
            ctx.exit(1)
        finally:
            warnings.formatwarning = format_before


def _in_words(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: object = None) -> str:
    """Format a warning; of this package without the line of its code, which tells a user nothing."""
    if category.__module__.startswith("vitexport."):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.version_option(__version__, prog_name="vitexport")
def main() -> None:
    """Take a Vision Transformer from PyTorch to production, with proof that what runs there matches PyTorch.

    Example: vitexport run recipes/quickstart.yaml -o out/quickstart
    """
