"""Commands on one model: explain, export."""

import sys
from pathlib import Path

import click

from imgcls.cli.root import cli


@cli.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", required=True, metavar="MODEL", help="Run id, runs:/<id>, models:/<name>@<alias> or a folder.")
@click.option("--target", metavar="CLASS", help="The class to explain; default is the predicted one of each image.")
@click.option("--stage", metavar="NAME", help="Where the map is read; default is the last place that is a map.")
@click.option(
    "--output", default="explanations.png", show_default=True, type=click.Path(path_type=Path, dir_okay=False),
    help="The figure.",
)  # fmt: skip
def explain(images: tuple[str, ...], model: str, target: str | None, stage: str | None, output: Path) -> None:
    """Draw where a model looked in some images (Grad-CAM), as a file and in a run of its own.

    \b
    imgcls explain cat.jpg dog.jpg --model models:/animals@champion
    imgcls explain cat.jpg --model 0123456789abcdef0123456789abcdef --target dog --stage layer3

    Exit codes: as for `imgcls train`.
    """
    from imgcls.jobs.console import Console
    from imgcls.jobs.explain import run_explain
    from imgcls.jobs.signals import Signals

    with Signals(ends_process=True) as signals:
        result = run_explain(images, Console(), signals, model=model, target=target, stage=stage, output=output)
    if result.unsent is not None:
        sys.exit(3)


@cli.command()
@click.argument("model", metavar="MODEL")
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def export(model: str, output: Path) -> None:
    """Write a model as one file: .onnx (extra `onnx`) or .pt2 (torch.export).

    Images of the network's size go in, uint8 (N, S, S, C); probabilities come out. Class names and preprocessing are in
    the file. It is run and compared with the model before it appears.

    \b
    imgcls export models:/animals@champion animals.onnx
    imgcls export 0123456789abcdef0123456789abcdef animals.pt2
    """
    from imgcls.jobs.console import Console
    from imgcls.jobs.export import run_export

    run_export(model, output, Console())
