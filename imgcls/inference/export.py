"""A trained network as one file for other programs: ONNX, or PyTorch's own exported program (the door to onnx)."""

import contextlib
import copy
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import SMALL, Preprocessing
from imgcls.data.decode import Pixels
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier, exact_convolutions

Members = Classifier | Sequence[tuple[Classifier, float]]
"""One classifier, or several with the weights of their probabilities."""
INPUT, OUTPUT = "images", "probabilities"
TOLERANCE = 1e-4
"""By which a probability of the written file may differ from the classifier's."""
LARGE_CROP = 0.875
"""Share of the shorter side that `evaluation_pipeline` cuts from images above SMALL pixels where none is set."""
MOST_ONNX_BYTES = 1_500_000_000
"""Of weights in one ONNX file: its format ends at two gibibytes, and torch puts more than 1.5 into a second file."""


class Served(nn.Module):
    """From uint8 pixels to probabilities: normalisation, networks and the mean of their probabilities in one.

    It holds copies of the networks, on the CPU and in evaluation mode.

    Args:
        members: classifiers of the same classes and the same preprocessing but for means and deviations.
        weights: of their probabilities; their sum is 1.
    """

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(_copied(member.module) for member in members)
        for number, member in enumerate(members):
            for name in ("mean", "std"):
                values = torch.tensor(getattr(member.preprocessing, name)).view(1, -1, 1, 1) * 255
                self.register_buffer(f"{name}{number}", values)
        self._weights = tuple(weights)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, S, S, C) uint8 images to (N, num_classes) float32 probabilities."""
        values = images.permute(0, 3, 1, 2).to(torch.float32)
        total = torch.zeros(())
        for number, (network, weight) in enumerate(zip(self.networks, self._weights, strict=True)):
            mean, std = self.get_buffer(f"mean{number}"), self.get_buffer(f"std{number}")
            probs = network((values - mean) / std).softmax(1)
            total = probs if len(self._weights) == 1 else total + weight * probs
        return total


def to_onnx(members: Members, path: Path) -> None:
    """Write an ONNX file: `images`, (N, S, S, C) uint8, in; `probabilities`, (N, num_classes) float32, out.

    Any N. Its `metadata_props` hold `classes`, a JSON list in the order of the output, and `preprocessing`, a JSON
    object that says how an image is cut to S × S pixels; normalisation is inside. The file is run by onnxruntime on
    batches of 1 and 3 before it appears under its name; an error leaves what was there before.

    Args:
        members: a classifier, or several with weights of 0 or more, whose weighted mean is exported.
        path: ends in `.onnx`.

    Raises:
        UserError: packages are missing, the path does not serve, members do not fit together, the network is too large
            for the format, it cannot be exported, or the written file gives other probabilities than the classifier.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"exporting to ONNX needs the package {error.name}. Run: pip install 'imgcls[onnx]', or export to .pt2."
        ) from error
    used, weights = _fitting(members)
    size = sum(tensor.nbytes for member in used for tensor in member.module.state_dict().values())
    if size > MOST_ONNX_BYTES:
        raise UserError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds {MOST_ONNX_BYTES / 1e9:.1f} GB. Export to "
            ".pt2, which has no such limit."
        )
    with _written(path, ".onnx") as part, _failing("ONNX"):
        program = torch.onnx.export(
            Served(used, weights),
            (_example(used[0]),),
            dynamo=True,
            dynamic_shapes=_dynamic(),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # where on this machine the code stands that made it
        program.model.metadata_props.clear()
        program.model.metadata_props.update(_about(used, weights))
        program.save(part, external_data=False)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        _check(lambda pixels: session.run([OUTPUT], {INPUT: pixels})[0], used, weights, path)


def to_pt2(members: Members, path: Path) -> None:
    """Write a program of torch.export: (N, S, S, C) uint8 in, (N, num_classes) float32 probabilities out, for any N.

    `torch.export.load(path).module()` runs it on a CPU without this package. Nothing in the file is pickled. Its extra
    files are `classes`, a JSON list in the order of the output, and `preprocessing`, a JSON object that says how an
    image is cut to S × S pixels; normalisation is inside. The file is loaded and run on batches of 1 and 3 before it
    appears under its name; an error leaves what was there before.

    Args:
        members: a classifier, or several with weights of 0 or more, whose weighted mean is exported.
        path: ends in `.pt2`.

    Raises:
        UserError: the path does not serve, members do not fit together, the network cannot be exported, or the written
            file gives other probabilities than the classifier.
    """
    used, weights = _fitting(members)
    with _written(path, ".pt2") as part, _failing("a .pt2 file"):
        program = torch.export.export(Served(used, weights), (_example(used[0]),), dynamic_shapes=_dynamic())
        program.example_inputs = None  # the only thing that would be pickled
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # where on this machine the code stands that made it
        torch.export.save(program, part, extra_files=_about(used, weights))
        run = torch.export.load(part).module()
        _check(lambda pixels: run(torch.from_numpy(pixels)).numpy(), used, weights, path)


def _fitting(members: Members) -> tuple[list[Classifier], list[float]]:
    """The members with weights above 0, and those weights with a sum of 1."""
    pairs = [(members, 1.0)] if isinstance(members, Classifier) else list(members)
    if not pairs:
        raise UserError("found no model to export; expected one or more.")
    weights = [weight for _, weight in pairs]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise UserError(f"found the weights {weights}; expected numbers of 0 or more, not all 0.")
    first = pairs[0][0]
    for number, (member, _) in enumerate(pairs[1:], start=2):
        if member.classes != first.classes:
            raise UserError(
                f"model {number} has other classes, or in another order, than the first. Only models of the same "
                "classes in the same order go into one file."
            )
        ours, theirs = _seen(first.preprocessing), _seen(member.preprocessing)
        if ours != theirs:
            raise UserError(
                f"model {number} takes {_words(theirs)}, the first {_words(ours)}, but one file takes the same pixels "
                "for all. Export models of one image size, or each into a file of its own."
            )
    used = [(member, weight / sum(weights)) for member, weight in pairs if weight]
    return [member for member, _ in used], [weight for _, weight in used]


def _seen(steps: Preprocessing) -> tuple[int, int, float]:
    """Which pixels of an image a network sees: its side, its channels, the share of the shorter side."""
    return steps.image_size, steps.channels, steps.eval_crop or (1.0 if steps.image_size <= SMALL else LARGE_CROP)


def _words(seen: tuple[int, int, float]) -> str:
    return f"{seen[0]} × {seen[0]} pixels of {seen[1]} channels from {seen[2]:.4g} of the shorter side"


def _copied(network: nn.Module) -> nn.Module:
    """A copy on the CPU that asks for no gradients; the caller's network stays as it is."""
    return copy.deepcopy(network).cpu().float().requires_grad_(False)


def _example(member: Classifier) -> torch.Tensor:
    steps = member.preprocessing
    # Of two images: an example of one would fix the batch size at one.
    return torch.zeros(2, steps.image_size, steps.image_size, steps.channels, dtype=torch.uint8)


def _dynamic() -> dict[str, dict[int, Any]]:
    return {INPUT: {0: torch.export.Dim("batch", min=1)}}


def _about(members: Sequence[Classifier], weights: Sequence[float]) -> dict[str, str]:
    """What a user of the file has to know, as JSON texts."""
    size, channels, share = _seen(members[0].preprocessing)
    preprocessing = {
        "image_size": size,
        "channels": channels,
        "shorter_side": round(size / share),
        "before": [
            "decode and rotate as EXIF says, transparency over white",
            "RGB" if channels == 3 else "grey (ITU-R 601 luma)",
            f"shrink or enlarge the shorter side to {round(size / share)} pixels (averaging areas where it shrinks)",
            f"cut {size} x {size} pixels from the middle",
            f"stack as uint8 of the shape (N, {size}, {size}, {channels}), values 0 to 255",
        ],
        "inside": [
            {
                "family": member.config.family,
                "weight": weight,
                "mean": member.preprocessing.mean,
                "std": member.preprocessing.std,
            }
            for member, weight in zip(members, weights, strict=True)
        ],
    }
    about = {"classes": list(members[0].classes), "preprocessing": preprocessing}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}


@contextlib.contextmanager
def _written(path: Path, ending: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all went well."""
    if path.suffix != ending:
        raise UserError(f"cannot export to {path}: expected a file whose name ends in {ending}.")
    if path.is_dir():
        raise UserError(f"cannot export to {path}: it is a folder. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            part = Path(folder) / path.name
            yield part
            part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}. Choose another place, or free disk space.") from error


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Makes an error of the exporter, which has many kinds, one of the user's: the network does not suit it."""
    try:
        with warnings.catch_warnings():
            # torch and onnxscript call things of each other that they are about to drop; nothing for a user to mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (OSError, UserError):
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the network cannot be exported to {what}: {type(error).__name__}: {line}. Choose the other format, or "
            "another network."
        ) from error


@torch.no_grad()
def _check(
    run: Callable[[Pixels], npt.NDArray[np.float32]],
    members: Sequence[Classifier],
    weights: Sequence[float],
    path: Path,
) -> None:
    """Compare what the file gives with what the classifiers give, on batches of one and of three images."""
    pixels = _samples(members[0].preprocessing)
    expected = np.zeros((len(pixels), len(members[0].classes)), np.float64)
    for member, weight in zip(members, weights, strict=True):
        with member.module.evaluating(), exact_convolutions():
            device = next(member.module.parameters()).device
            inputs = member.preprocessing.to_input(torch.from_numpy(pixels).to(device))
            expected += weight * member.module(inputs).float().softmax(1).cpu().numpy()
    for rows in (pixels[:1], pixels[1:]):
        found = np.asarray(run(rows))
        wanted = expected[:1] if len(rows) == 1 else expected[1:]
        if found.shape != wanted.shape:
            raise UserError(
                f"{path} was not written: it gives {found.shape} for {len(rows)} images, not {wanted.shape}."
            )
        worst = float(np.abs(found - wanted).max())
        if not worst <= TOLERANCE:  # so that NaN counts as wrong
            raise UserError(
                f"{path} was not written: its probabilities differ from the classifier's by {worst:.2g}, more than "
                f"{TOLERANCE:g}. Choose the other format, and report the network's family."
            )


def _samples(steps: Preprocessing) -> Pixels:
    """(4, S, S, C) images unlike each other: noise, which is mean grey to a network, and coarse patches of colours."""
    generator = np.random.default_rng(0)
    size, channels = steps.image_size, steps.channels
    coarse = generator.integers(0, 256, (3, 4, 4, channels), dtype=np.uint8)
    places = np.arange(size) * 4 // size
    noise = generator.integers(0, 256, (1, size, size, channels), dtype=np.uint8)
    return np.concatenate([coarse[:, places][:, :, places], noise])
