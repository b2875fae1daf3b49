"""Pipelines written in a recipe: albumentations' transforms by name, checked against its own signatures."""

import inspect
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import albumentations as A
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from imgcls.data.augment.pipeline import Pipeline, middle, store_size
from imgcls.data.decode import Pixels
from imgcls.errors import UserError
from imgcls.plugins import nearest

Steps = list[dict[str, dict[str, Any]]]
"""One {name: arguments} a transform, in the order in which they are applied."""

_COMPOSITIONS = ("OneOf", "SomeOf", "Sequential", "RandomOrder")
_BASES = ("BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", "BaseCompose")
_REASONS = {
    "normalisation is augment.normalize": ("Normalize", "ToFloat", "FromFloat"),
    "images become tensors behind the pipeline": ("ToTensorV2", "ToTensor3D"),
    "the number of channels is data.channels": ("ToRGB",),
    "it needs Python code": ("Lambda",),
    "it needs bounding boxes": (
        "AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "RandomCropNearBBox", "RandomSizedBBoxSafeCrop",
    ),
    "it needs masks": ("ConstrainedCoarseDropout", "CropNonEmptyMaskIfExists", "MaskDropout"),
    "it needs other images; to mix images there are augment.mixup and augment.cutmix": (
        "FDA", "HistogramMatching", "Mosaic", "OverlayElements", "PixelDistributionAdaptation",
    ),
    "it needs a text and a font": ("TextImage",),
    "batches are mixed by augment.mixup": ("MixUp",),
    "batches are mixed by augment.cutmix": ("CutMix",),
    "a list of steps is one already; inside another composition use Sequential": ("Compose", "ReplayCompose"),
    "use OneOf": ("OneOrOther",),
    "it hands its transforms images of other channels than the network's": ("SelectiveChannelTransform",),
}  # fmt: skip
_REFUSED = {name: reason for reason, names in _REASONS.items() for name in names}


def _classes() -> dict[str, Any]:
    """Every transform and composition that albumentations has, by its name."""
    kinds = (A.BasicTransform, A.BaseCompose)
    found = {name: value for name, value in vars(A).items() if inspect.isclass(value) and issubclass(value, kinds)}
    return {name: found[name] for name in sorted(found) if name not in _BASES}


_CLASSES = _classes()
_REFUSED |= {name: "it takes volumes" for name, cls in _CLASSES.items() if issubclass(cls, A.Transform3D)}
KNOWN = tuple(name for name in _CLASSES if name not in _REFUSED)
"""The names that a recipe may use."""
SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "anyOf": [
            {"enum": list(KNOWN)},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "propertyNames": {"enum": list(KNOWN)},
                "additionalProperties": {"type": ["object", "null"]},
            },
        ]
    },
}
"""The JSON schema of a written pipeline."""
_ADVICE = ("is a special case of", "is a specialized version of", "is an alias for", "is very slow")
"""Warnings that tell of another transform; all others tell of arguments that are replaced, and are errors here."""
_OF_COMPOSITIONS: dict[str, TypeAdapter[Any]] = {
    "p": TypeAdapter(Annotated[float, Field(ge=0, le=1, strict=True)]),
    "n": TypeAdapter(Annotated[int, Field(ge=1, strict=True)]),
    "replace": TypeAdapter(Annotated[bool, Field(strict=True)]),
}
"""albumentations checks the arguments of its transforms, but not those of its compositions."""


class _Fault(Exception):
    """What is wrong with a step, and the step."""

    def __init__(self, step: object, message: str) -> None:
        super().__init__(message)
        self.step = step


class WrittenPipeline(Pipeline):
    """The pipeline of a recipe. What does not end at (size, size) is brought to it.

    Args:
        steps: as `checked` gives them.
        size: pixels on each side of the network's input; what is missing of the steps' own sizes.
        channels: 1 or 3, of the images.

    Raises:
        UserError: a transform does not work on images of so many channels, or does not keep them uint8.
    """

    def __init__(self, steps: Steps, *, size: int, channels: int) -> None:
        transforms = [_build(step, size) for step in steps]
        height = store_size(size)
        image = np.random.default_rng(0).integers(0, 256, (height, height + size // 2, channels), dtype=np.uint8)
        for transform in transforms:
            image = _rehearse(transform, image)
        super().__init__(transforms)
        self._size, self._middle = size, Pipeline(middle(size))

    def __call__(self, image: Pixels) -> Pixels:
        """The transformed image, (size, size, C) uint8.

        Raises:
            UserError: a transform fails on this image.
        """
        try:
            result = super().__call__(image)
        except Exception as error:
            raise UserError(
                f"augment.pipeline fails on an image of {_shape(image)}: {_first_line(error)}. Change the transform "
                "that takes no such image, or resize images before it."
            ) from error
        return result if result.shape[:2] == (self._size, self._size) else self._middle(result)


def checked(value: object, *, size: int) -> Steps:
    """A pipeline as it was written, in the one form {name: arguments}, every name and argument checked.

    Args:
        value: a list of {name: arguments}, {name: null} or name.
        size: pixels, in place of sizes that are left out.

    Raises:
        ValidationError: with the first step that is not as it must be.
        ValueError: it is no list.
    """
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of transforms, such as [{HorizontalFlip: {p: 0.5}}]")
    steps: Steps = []
    for number, item in enumerate(value):
        try:
            steps.append(_plain_step(item))
            _build(steps[-1], size)
        except _Fault as fault:
            kind = PydanticCustomError("transform", "{text}", {"text": str(fault)})
            raise ValidationError.from_exception_data(
                "pipeline", [{"type": kind, "loc": (number,), "input": fault.step}]
            ) from fault
    return steps


def _plain_step(step: object) -> dict[str, dict[str, Any]]:
    if not isinstance(step, str) and (not isinstance(step, Mapping) or len(step) != 1):
        raise _Fault(step, "expected one transform with its arguments, such as {HorizontalFlip: {p: 0.5}}")
    name, arguments = (step, None) if isinstance(step, str) else next(iter(step.items()))
    if not isinstance(name, str) or not isinstance(arguments, Mapping | None):
        raise _Fault(step, "expected a name and its arguments by name, such as {HorizontalFlip: {p: 0.5}}")
    _class_of(name, step)
    plain = {str(key): _plain(argument, step) for key, argument in (arguments or {}).items()}
    if name in _COMPOSITIONS and isinstance(plain.get("transforms"), list):
        plain["transforms"] = [_plain_step(inner) for inner in plain["transforms"]]
    return {name: plain}


def _plain(value: object, step: object) -> Any:
    """The value as JSON has it, so that a recipe's file and a run's parameters can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(item, step) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, step) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _Fault(step, f"{value!r} is no number, text, truth value, list or mapping")


def _class_of(name: str, step: object) -> Any:
    if name in _REFUSED:
        raise _Fault(step, f"{name} cannot stand in a recipe: {_REFUSED[name]}")
    if name not in _CLASSES:
        guess = nearest(name, KNOWN)
        hint = f". Did you mean {guess!r}?" if guess else f"; known: {', '.join(KNOWN)}"
        raise _Fault(step, f"albumentations {A.__version__} has no transform {name!r}{hint}")
    return _CLASSES[name]


def _build(step: dict[str, dict[str, Any]], size: int) -> Any:
    """The transform of a step in its plain form."""
    [(name, arguments)] = step.items()
    cls = _class_of(name, step)
    parameters = {key: value for key, value in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    for key in arguments:
        if key not in parameters:
            guess = nearest(key, parameters)
            hint = f". Did you mean {guess!r}?" if guess else ""
            raise _Fault(step, f"{name} has no argument {key!r}; it has {', '.join(parameters)}{hint}")
    filled = {**_sizes(parameters, arguments, size), **arguments}
    if name in _COMPOSITIONS:
        filled = _composed(name, step, filled, size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            transform = cls(**filled)
        except Exception as error:
            raise _Fault(step, f"{name}: {_reason(error)}") from error
    serious = [text for text in map(str, (item.message for item in told)) if not any(a in text for a in _ADVICE)]
    if serious:
        raise _Fault(step, f"{name}: {serious[0].rstrip('.')}")
    return transform


def _composed(name: str, step: object, arguments: dict[str, Any], size: int) -> dict[str, Any]:
    inner = arguments.get("transforms")
    if not isinstance(inner, list) or not inner:
        raise _Fault(step, f"{name} needs a list of transforms: {{{name}: {{transforms: [{{HorizontalFlip: {{}}}}]}}}}")
    for key, value in arguments.items():
        if key in _OF_COMPOSITIONS:
            try:
                _OF_COMPOSITIONS[key].validate_python(value)
            except ValidationError as error:
                raise _Fault(step, f"{name}: {key}: {_allowed(error.errors()[0])}") from error
    transforms = [_build(each, size) for each in inner]
    if name == "OneOf" and not any(transform.p for transform in transforms):
        raise _Fault(step, "OneOf: every transform in it has p 0, so there is none to choose")
    return {**arguments, "transforms": transforms}


def _sizes(parameters: Mapping[str, Any], arguments: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The network's size for what says a size and was left out."""
    found: dict[str, Any] = {}
    if "size" in parameters:
        found["size"] = (size, size)
    for name in ("height", "width"):
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            found[name] = size
    if "max_size_hw" in parameters and arguments.get("max_size_hw") is None:
        found["max_size"] = size
    for name in ("height", "width"):
        if f"min_{name}" in parameters and arguments.get(f"pad_{name}_divisor") is None:
            found[f"min_{name}"] = size  # albumentations' own default is 1024
        elif f"min_{name}" in parameters:
            found[f"min_{name}"] = None
    return found


def _rehearse(transform: Any, image: Pixels) -> Pixels:
    """What the transform, and each inside it, makes of an image."""
    if isinstance(transform, A.BaseCompose):
        results = []
        for inner in transform.transforms:
            results.append(_rehearse(inner, image))
            if not isinstance(transform, A.OneOf):
                image = results[-1]
        return results[-1]
    name = type(transform).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations tells so of images that it leaves as they are
            result: Pixels = transform(image=image, force_apply=True)["image"]
    except Exception as error:
        raise UserError(
            f"augment.pipeline: {name} fails on an image of {_shape(image)}: {_first_line(error)}. Change it, remove "
            "it, or set data.channels."
        ) from error
    if result.dtype != np.uint8 or result.shape[2:] != image.shape[2:]:
        raise UserError(
            f"augment.pipeline: {name} makes {result.dtype} {_shape(result)} of uint8 {_shape(image)}; expected uint8 "
            f"and {image.shape[2]} channel{'s' * (image.shape[2] != 1)}. Change or remove it."
        )
    return result


def _shape(image: Pixels) -> str:
    height, width, *channels = image.shape
    return f"{width}x{height} pixels and {channels[0] if channels else 1} channel{'s' * (channels != [1])}"


def _first_line(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return (text if len(text) <= 300 else text[:297] + "…").rstrip(".")


def _reason(error: Exception) -> str:
    """Why albumentations refuses arguments, in one sentence."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return _first_line(error)
    by_argument: dict[str, list[ErrorDetails]] = {}
    for problem in cause.errors():
        by_argument.setdefault(str(problem["loc"][0]) if problem["loc"] else "", []).append(problem)
    return "; ".join(_sentence(name, problems) for name, problems in by_argument.items())


def _sentence(name: str, problems: Sequence[ErrorDetails]) -> str:
    allowed = " or ".join(dict.fromkeys(_allowed(problem) for problem in problems))
    if not name:
        return allowed
    if problems[0]["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: found {problems[0]['input']!r}, {allowed}"


def _allowed(problem: ErrorDetails) -> str:
    message = re.sub(r"^Value error, ", "", problem["msg"]).rstrip(".")
    return re.sub(r"^\w+ should (?:be|have)", "expected", message)
