"""The verb `export`: a model as one file for other programs."""

from pathlib import Path

from imgcls.errors import UserError
from imgcls.inference.ensemble import Ensemble
from imgcls.inference.export import to_onnx, to_pt2
from imgcls.jobs.console import Console
from imgcls.jobs.open_model import open_model

WRITERS = {".onnx": to_onnx, ".pt2": to_pt2}


def run_export(model: str, output: Path, console: Console) -> None:
    """Write a model to a file, which is checked to give the same probabilities before it appears.

    Args:
        model: as for `open_model`.
        output: ends in .onnx or .pt2 (a program of torch.export).
        console: where to tell it.

    Raises:
        UserError: there is no such model, the ending is another one, packages are missing, it votes, its members take
            images of different sizes, or it cannot be exported.
    """
    if output.suffix not in WRITERS:
        raise UserError(f"found {output.name!r} as the file to write; expected one that ends in .onnx or .pt2.")
    opened = open_model(model, console)
    if isinstance(opened.model, Ensemble) and opened.model.combine == "vote":
        raise UserError("the models of this ensemble vote, which no export can. Evaluate one with --combine mean.")
    members = (
        list(zip(opened.model.members, opened.model.weights, strict=True))
        if isinstance(opened.model, Ensemble)
        else opened.model
    )
    WRITERS[output.suffix](members, output)
    size = output.stat().st_size / 1e6
    console.say(f"written and checked: {output} ({size:,.1f} MB), uint8 images (N, S, S, C) in, probabilities out")
