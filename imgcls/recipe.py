"""One Recipe is the stages' config classes put together: loaded, overridden, compared, flattened, described."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails

import imgcls.data
import imgcls.models  # noqa: F401  (both register their plug-ins)
from imgcls.data.augment import AugmentConfig
from imgcls.data.source import SOURCES, DataConfig
from imgcls.errors import UserError
from imgcls.evaluation.gates import PromoteConfig
from imgcls.evaluation.metrics import EvaluateConfig
from imgcls.models.family import FAMILIES, ModelConfig
from imgcls.plugins import nearest
from imgcls.sections import Section
from imgcls.training.fit import TrainConfig
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import AUTO
from imgcls.tuning.space import SearchConfig

PACKAGE = Path(__file__).resolve().parent
BUILT_IN = (PACKAGE / "experiments", PACKAGE.parent / "experiments")
"""Where the recipes that come with the package lie: in a wheel, and in a checkout."""


class Recipe(Section):
    """All that decides what a training gives."""

    data: SerializeAsAny[DataConfig]
    """Where the images come from and how they are split."""
    augment: AugmentConfig
    """How images are sized, varied and normalised."""
    model: SerializeAsAny[ModelConfig]
    """The network."""
    optim: OptimConfig
    """How the weights are updated."""
    train: TrainConfig
    """How long, where and from which seed."""
    evaluate: EvaluateConfig
    """What is measured."""
    search: SearchConfig
    """What a sweep searches, and how; a training does not read it."""
    promote: PromoteConfig
    """What a model must show before it may replace the champion; a training does not read it."""

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Section -> field -> value, JSON-ready."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value."""
        return {f"{section}.{name}": v for section, fields in self.as_dict().items() for name, v in fields.items()}

    def to_yaml(self) -> str:
        """A recipe file that loads to this recipe."""
        text: str = yaml.dump(self.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return text

    def replace(self, values: Mapping[str, Any]) -> "Recipe":
        """This recipe with other values, by dotted name."""
        raw = self.as_dict()
        _override(raw, values)
        return _build(raw, "recipe", {})


@dataclass(frozen=True)
class Resolved:
    """A recipe with what is worth telling about how it came about.

    Attributes:
        recipe: the recipe.
        name: the file's name without its ending, or the built-in recipe's name.
        notices: sentences for the user, such as fields that an override made void.
    """

    recipe: Recipe
    name: str
    notices: tuple[str, ...] = ()


_SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig, "augment": AugmentConfig, "model": ModelConfig, "optim": OptimConfig, "train": TrainConfig,
    "evaluate": EvaluateConfig, "search": SearchConfig, "promote": PromoteConfig,
}  # fmt: skip
_CHOOSERS = {"data": "source", "model": "family"}
"""Sections whose class depends on one of their fields."""
_SOURCE_FIELDS = {"root": "folder", "table": "csv", "parquet": "parquet"}
"""Fields of `data` that, given alone, choose the source where the recipe's own has no such field."""


def resolve(
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Resolved:
    """The recipe of a file, a built-in name or a mapping, with fields overridden by their dotted names.

    Args:
        recipe: a YAML file, the name of a built-in recipe, sections as a mapping, or None / "auto" for `folder` where
            `data.root`, `data.table` or `data.parquet` is given and `digits` elsewhere.
        overrides: dotted name -> value.
        texts: dotted name -> value as it was typed, read as YAML.
        partial: let fields that have no default be missing, as in a recipe that waits for `data.root`; for comparing
            only.

    Raises:
        UserError: no such recipe, no YAML, an unknown section or field, or a value of a wrong type or out of range.
    """
    texts = dict(texts or {})
    given = {**(overrides or {}), **{name: parse_value(text, name) for name, text in texts.items()}}
    if recipe is None or recipe == "auto":
        recipe = "folder" if {f"data.{field}" for field in _SOURCE_FIELDS} & given.keys() else "digits"
    if isinstance(recipe, Mapping):
        name, origin, raw = "inline", "recipe", _sections("the recipe", recipe)
    else:
        path = _find(str(recipe))
        name, origin, raw = path.stem, f"recipe {path}", _read(path)
    notices = _override(raw, given)
    return Resolved(_build(raw, origin, texts, partial=partial), name, tuple(notices))


def diff(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) of the fields that differ; a field that one lacks is None there."""
    left, right = a.flat(), b.flat()
    names = [*left, *(name for name in right if name not in left)]
    return [(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def built_in() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted({path.stem for folder in BUILT_IN for path in folder.glob("*.yaml")})


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    properties: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name, base in _SECTIONS.items():
        classes = [base]
        if name == "data":
            classes = [SOURCES.get(key).config for key in SOURCES.names()]
        elif name == "model":
            classes = list(dict.fromkeys(FAMILIES.get(key).config for key in FAMILIES.names()))
        schemas = [{**cls.model_json_schema(), "title": cls.__name__} for cls in classes]
        for schema in schemas:
            groups.update(schema.pop("$defs", {}))
            schema.pop("required", None)  # what a file leaves out can be given on the command line
        about = Recipe.model_fields[name].description
        properties[name] = {"description": about, **(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "imgcls recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "$defs": groups,
    }


def parse_value(text: str, name: str) -> Any:
    """A value typed on a command line, read as YAML (1.2: `1e-3` is a number, `yes` a word).

    Raises:
        UserError: the text is no YAML.
    """
    try:
        value = _load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{name}: found {text!r}, which is no YAML value: {problem}. Put it in quotes.") from error
    # In a word without quotes, YAML takes what stands behind ` #` for a comment; a shell has no comments in a word.
    is_plain = isinstance(value, str) and value != "" and text.strip().startswith(value)
    return text.strip() if is_plain else value


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    for folder in BUILT_IN:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    guess = nearest(name, built_in())
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise UserError(
        f"there is no recipe {name!r}: no such file ({path.absolute()}), and the built-in recipes are "
        f"{', '.join(built_in())}.{hint}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = _load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} cannot be read: {error}. Expected a text file in UTF-8.") from error
    except yaml.YAMLError as error:
        raise UserError(f"the recipe {path} is no YAML: {error}\nMend it there.") from error
    return _sections(f"the recipe {path}", {} if raw is None else raw)


def _sections(origin: str, raw: object) -> dict[str, Any]:
    """The recipe's sections, copied."""
    if not isinstance(raw, Mapping) or not all(isinstance(fields, Mapping | None) for fields in raw.values()):
        raise UserError(
            f"{origin} is not made of sections; expected lines like `optim:` with indented fields like "
            f"`lr: 0.01` below. Sections: {', '.join(_SECTIONS)}."
        )
    return {str(name): dict(fields or {}) for name, fields in raw.items()}


def _override(raw: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Put dotted values into the sections; tells which fields of the file another source or family made void."""
    notices = []
    for field, source in _SOURCE_FIELDS.items():
        if f"data.{field}" in given and "data.source" not in given:
            if field in _class_of("data", raw.get("data", {})).model_fields:
                continue
            notices.append(f"data.{field} is given, so data.source is {source}")
            given = {"data.source": source, **given}
    for section, chooser in _CHOOSERS.items():
        chosen = given.get(f"{section}.{chooser}")
        fields = raw.get(section, {})
        if chosen is None or chosen == fields.get(chooser, _SECTIONS[section].model_fields[chooser].default):
            continue
        known = _class_of(section, {chooser: chosen}).model_fields
        void = [name for name in fields if name not in known]
        raw[section] = {name: value for name, value in fields.items() if name in known}
        if void:
            names = ", ".join(f"{section}.{name}" for name in void)
            notices.append(f"{section}.{chooser} is now {chosen}, which has no {names}: left out")
    for dotted, value in given.items():
        *parents, last = dotted.split(".")
        if not parents or not last or not all(parents):
            raise UserError(f"unknown recipe field {dotted!r}; expected section.field, such as optim.lr.")
        target = raw
        for parent in parents:
            if target.get(parent) == AUTO:
                target[parent] = {}  # a field of a group that is `auto` as a whole, such as train.plan
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"unknown recipe field {dotted!r}: {parent} is a value, not a group of fields.")
        target[last] = value
    return notices


def _class_of(section: str, fields: Mapping[str, Any]) -> type[Section]:
    """The config class of a section, which for data and model depends on the source or family in it."""
    if section not in _CHOOSERS:
        return _SECTIONS[section]
    chooser = _CHOOSERS[section]
    name = fields.get(chooser, _SECTIONS[section].model_fields[chooser].default)
    if not isinstance(name, str):
        raise UserError(f"{section}.{chooser}: found {name!r}, expected a name.")
    try:
        return SOURCES.get(name).config if section == "data" else FAMILIES.get(name).config
    except UserError as error:
        raise UserError(f"{section}.{chooser}: {error}") from error


def _build(raw: Mapping[str, Any], origin: str, texts: Mapping[str, str], *, partial: bool = False) -> Recipe:
    for section in raw:
        if section not in _SECTIONS:
            guess = nearest(section, _SECTIONS)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise UserError(f"{origin}: unknown section {section!r}; known: {', '.join(_SECTIONS)}.{hint}")
    built: dict[str, Section] = {}
    problems: list[str] = []
    for section in _SECTIONS:
        fields = dict(raw.get(section, {}))
        cls = _class_of(section, fields)
        try:
            built[section] = _validate(cls, section, fields, texts)
        except ValidationError as error:
            if partial and all(problem["type"] == "missing" for problem in error.errors()):
                built[section] = cls.model_construct(**fields)
            else:
                problems += _explain(section, cls, error)
    if problems:
        raise UserError(f"{origin}: " + "\n".join(problems))
    return Recipe.model_construct(**built)  # type: ignore[arg-type]


def _validate(cls: type[Section], section: str, fields: dict[str, Any], texts: Mapping[str, str]) -> Section:
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        # A folder called 123 or a class called true: a text field takes what was typed as it was typed.
        typed = [
            str(problem["loc"][0])
            for problem in error.errors()
            if problem["type"] == "string_type" and texts.get(f"{section}.{problem['loc'][0]}")
        ]
        if not typed:
            raise
        return cls.model_validate({**fields, **{name: texts[f"{section}.{name}"] for name in typed}})


def _explain(section: str, cls: type[Section], error: ValidationError) -> list[str]:
    """One sentence a field: its name, what was found, what is allowed, the nearest known name."""
    by_field: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors():
        by_field.setdefault(_place(cls, problem), []).append(problem)
    sentences = []
    for name, problems in by_field.items():
        dotted = f"{section}.{name}" if name else section
        first = problems[0]
        if first["type"] == "extra_forbidden" and "." in name:
            group, field = name.split(".")
            inside = list(_group(cls, group).model_fields)
            guess = nearest(field, inside)
            hint = f" Did you mean '{section}.{group}.{guess}'?" if guess else ""
            sentences.append(f"unknown field {dotted!r}; fields of {section}.{group}: {', '.join(inside)}.{hint}")
        elif first["type"] == "extra_forbidden":
            everything = [f"{key}.{field}" for key in _SECTIONS for field in _SECTIONS[key].model_fields]
            elsewhere = next((other for other in everything if other.split(".")[1] == name), None)
            guess = elsewhere or nearest(dotted, [*everything, *(f"{section}.{field}" for field in cls.model_fields)])
            hint = f" Did you mean {guess!r}?" if guess else ""
            known = ", ".join(cls.model_fields)
            sentences.append(f"unknown field {dotted!r}; fields of {section} ({cls.__name__}): {known}.{hint}")
        elif first["type"] == "missing":
            about = cls.model_fields[name].description or ""
            sentences.append(f"{dotted} is missing and has no default. {about} Give it with --{dotted} VALUE.")
        else:
            allowed = " or ".join(dict.fromkeys(_allowed(problem) for problem in problems))
            guess = _nearest_choice(problems)
            hint = f" Did you mean {guess!r}?" if guess else ""
            found = f"found {first['input']!r}, " if name else ""
            end = "" if allowed.endswith("?") else "."
            sentences.append(f"{dotted}: {found}{allowed}{end}{hint}")
    return sentences


def _place(cls: type[Section], problem: ErrorDetails) -> str:
    """The field that a problem is about; that of a group of fields with a dot."""
    field, *inside = map(str, problem["loc"] or ("",))
    return f"{field}.{inside[0]}" if inside and _group(cls, field) is not Section else field


def _group(cls: type[Section], field: str) -> type[Section]:
    """The class of a field that is a group of fields; Section itself where it is none."""
    kind = cls.model_fields[field].annotation if field in cls.model_fields else None
    return kind if isinstance(kind, type) and issubclass(kind, Section) else Section


def _allowed(problem: ErrorDetails) -> str:
    message = re.sub(r"^Value error, ", "", problem["msg"]).rstrip(".")
    return re.sub(r"^\w+ should (?:be|have)", "expected", message)


def _nearest_choice(problems: list[ErrorDetails]) -> str | None:
    for problem in problems:
        if problem["type"] == "literal_error" and isinstance(problem["input"], str):
            choices = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
            return nearest(problem["input"], choices)
    return None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `1e-3` is a number, and only true and false are booleans; a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Inside single quotes YAML folds line breaks, of which Unicode has more than PyYAML brings back.
    broken = text.splitlines() not in ([], [text])
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if broken else None)


def _load(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: the text is no YAML, or has a tag that its value does not fit, or is nested too deep.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # PyYAML's constructors
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def _core_schema() -> None:
    patterns = [
        ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
        (
            "tag:yaml.org,2002:float",
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
            "-+0123456789.",
        ),
        ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ]
    for cls in (_Loader, _Dumper):
        cls.yaml_implicit_resolvers = {}
        for tag, pattern, first in patterns:
            cls.add_implicit_resolver(tag, re.compile(pattern), list(first))


_core_schema()
_Dumper.add_representer(str, _represent_text)
