"""Exported files give the classifier's probabilities without this package, and appear only when they do."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

from imgcls.data.augment import Preprocessing
from imgcls.errors import UserError
from imgcls.inference import export
from imgcls.inference.classifier import Classifier
from imgcls.inference.export import Members, to_onnx, to_pt2
from imgcls.models.family import FAMILIES, ModelConfig
from imgcls.models.plaincnn import PlainCNNConfig
from tests.inference.test_classifier import classifier, noise

pytestmark = pytest.mark.slow
Write = Callable[[Members, Path], None]
Floats = npt.NDArray[np.float32]
FORMATS: dict[str, Write] = {".onnx": to_onnx, ".pt2": to_pt2}
FAMILY_SIZES = {
    "quizdnn": 16, "separable": 16, "resnet18": 32, "mobilenet_v2": 32, "efficientnet_b0": 32, "densenet121": 32,
    "squeezenet1_1": 32, "convnext_tiny": 32, "vit_b_32": 64, "swin_t": 64, "maxvit_t": 64,
    "timm:test_efficientnet": 48, "timm:test_vit": 48,
}  # fmt: skip

OF_PT2 = ("separable", "resnet18", "timm:test_vit")
"""The ONNX file is made from the same program, so that a few are enough of it."""


@pytest.fixture(params=FORMATS)
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(path: Path, pixels: npt.NDArray[np.uint8]) -> Floats:
    """What the file gives for (N, S, S, C) images."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["probabilities"], {"images": pixels})[0])
    with torch.no_grad():
        return np.asarray(torch.export.load(path).module()(torch.from_numpy(pixels)).numpy())


def about(path: Path) -> dict[str, str]:
    """The texts in the file, by their names."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
    texts = {"classes": "", "preprocessing": ""}
    torch.export.load(path, extra_files=texts)
    return texts


def tiny(seed: int = 0, *, size: int = 16, std: float = 0.25) -> Classifier:
    made = classifier(PlainCNNConfig(num_blocks=1, channels=3, convs_per_block=1, dropout=0.5), size=size)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.5)
    return replace(made, preprocessing=Preprocessing(3, size, (0.4, 0.5, 0.6), (std,) * 3))


IMAGES = np.stack([noise(16, 16, seed) // (1 + seed % 4) for seed in range(7)])


@pytest.fixture(scope="module", params=FORMATS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny()` as a file."""
    path = tmp_path_factory.mktemp("exported") / f"new/folder/model{request.param}"
    FORMATS[request.param](tiny(), path)
    return path


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_file_gives_the_classifier_s_probabilities_for_any_number_of_images(exported: Path, count: int) -> None:
    model = tiny()
    found = run(exported, IMAGES[:count])
    expected = model.probabilities(list(IMAGES[:count]))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert model.probabilities(list(IMAGES)).std(0).max() > 0.01, "the images should differ"
    assert [child.name for child in exported.parent.iterdir()] == [exported.name]


@pytest.mark.parametrize(
    ("ending", "family"), [(".onnx", family) for family in FAMILY_SIZES] + [(".pt2", family) for family in OF_PT2]
)
def test_every_kind_of_family_is_exported(tmp_path: Path, ending: str, family: str) -> None:
    if family.startswith("timm:"):
        pytest.importorskip("timm")
    size = FAMILY_SIZES[family]
    config: ModelConfig = FAMILIES.get(family).config.model_validate({"family": family})
    model = classifier(config, size=size)
    path = tmp_path / f"model{ending}"
    FORMATS[ending](model, path)
    images = [noise(size, size, seed) // (1 + seed) for seed in range(4)]
    assert np.abs(run(path, np.stack(images)) - model.probabilities(images)).max() < 1e-4


def test_several_models_become_the_weighted_mean_of_their_probabilities(tmp_path: Path, ending: str) -> None:
    members = [(tiny(0), 3.0), (tiny(1, std=0.5), 1.0), (tiny(2), 0.0)]
    path = tmp_path / f"model{ending}"
    FORMATS[ending](members, path)
    first, second, _ = (member.probabilities(list(IMAGES)) for member, _ in members)
    assert np.abs(run(path, IMAGES) - (0.75 * first + 0.25 * second)).max() < 1e-5
    assert np.abs(first - second).max() > 0.05
    inside = json.loads(about(path)["preprocessing"])["inside"]
    assert [(one["weight"], one["std"][0]) for one in inside] == [(0.75, 0.25), (0.25, 0.5)]


def test_the_file_says_its_classes_and_what_to_do_before(exported: Path) -> None:
    texts = about(exported)
    assert json.loads(texts["classes"]) == ["a", "b c", "日本"]
    steps = json.loads(texts["preprocessing"])
    assert (steps["image_size"], steps["channels"], steps["shorter_side"]) == (16, 3, 16)
    assert len(steps["before"]) == 5
    assert steps["inside"][0]["mean"] == [0.4, 0.5, 0.6]


def test_images_cut_as_the_file_says_are_those_that_the_classifier_sees(tmp_path: Path) -> None:
    model, path = tiny(size=70), tmp_path / "model.pt2"
    to_pt2(model, path)
    side = json.loads(about(path)["preprocessing"])["shorter_side"]
    assert side == 80
    image = noise(side, 120)
    expected = model.probabilities([image])
    assert np.abs(run(path, image[None, 5:75, 25:95]) - expected).max() < 1e-5
    assert np.abs(run(path, image[None, :70, :70]) - expected).max() > 1e-4


def test_grey_images_have_one_channel(tmp_path: Path, ending: str) -> None:
    model = classifier(PlainCNNConfig(num_blocks=1, channels=2, convs_per_block=1), channels=1)
    path = tmp_path / f"model{ending}"
    FORMATS[ending](model, path)
    grey = IMAGES[:3, :, :, :1]
    assert np.abs(run(path, grey) - model.probabilities(list(grey))).max() < 1e-5


def test_nothing_is_pickled_and_nothing_tells_where_the_code_stood(exported: Path) -> None:
    here = str(Path(export.__file__).parent).encode()
    assert here not in exported.read_bytes()
    if exported.suffix == ".pt2":
        with zipfile.ZipFile(exported) as archive:
            contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        assert contents["data/sample_inputs/model.pt"] == b""
        config = json.loads(contents["data/weights/model_weights_config.json"])["config"]
        assert config
        assert not any(entry["use_pickle"] for entry in config.values())
        assert json.loads(contents["data/constants/model_constants_config.json"]) == {"config": {}}


def test_the_classifier_is_as_before(tmp_path: Path, ending: str) -> None:
    model = tiny()
    module = model.module.train()
    before = [(id(p), p.requires_grad, p.detach().clone().tolist()) for p in module.parameters()]
    FORMATS[ending](model, tmp_path / f"model{ending}")
    assert [(id(p), p.requires_grad, p.tolist()) for p in module.parameters()] == before
    assert all(layer.training for layer in module.modules())


# --- what is refused


def test_a_file_that_gives_other_probabilities_is_not_written(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"model{ending}"
    path.write_text("earlier")
    forward = export.Served.forward
    monkeypatch.setattr(export.Served, "forward", lambda self, images: forward(self, images) + 0.001)
    with pytest.raises(UserError, match=r"was not written: its probabilities differ from the classifier's by 0.001"):
        FORMATS[ending](tiny(), path)
    assert path.read_text() == "earlier"
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_exported_is_an_error_that_says_why(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_value(self: export.Served, images: torch.Tensor) -> torch.Tensor:
        return images.float() if images.float().mean().item() > 3 else self.networks[0](images)

    monkeypatch.setattr(export.Served, "forward", by_value)
    with pytest.raises(UserError, match=r"the network cannot be exported to .*: .*Choose the other format"):
        FORMATS[ending](tiny(), tmp_path / f"model{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["when it is loaded", "when it is run"])
def test_a_file_that_cannot_be_run_is_an_error_that_says_why(
    tmp_path: Path, ending: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no kernel for it")

    loaded: Any = SimpleNamespace(module=lambda: broken, run=broken)
    load = broken if where == "when it is loaded" else lambda *_args, **_options: loaded
    module, name = (onnxruntime, "InferenceSession") if ending == ".onnx" else (torch.export, "load")
    monkeypatch.setattr(module, name, load)
    with pytest.raises(UserError, match=r"cannot be exported to .*: RuntimeError: no kernel for it\. Choose the other"):
        FORMATS[ending](tiny(), tmp_path / f"model{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        to_onnx(tiny(), tmp_path / "model.onnx")
    assert str(caught.value) == (
        f"exporting to ONNX needs the package {package}. Run: pip install 'imgcls[onnx]', or export to .pt2."
    )


@pytest.mark.parametrize("name", ["model", "model.pt", "model.pt2.zip"])
def test_another_ending_is_refused(tmp_path: Path, ending: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"expected a file whose name ends in \{ending}\."):
        FORMATS[ending](tiny(), tmp_path / name)


def test_a_folder_in_the_way_is_an_error(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"model{ending}").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        FORMATS[ending](tiny(), tmp_path / f"model{ending}")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .* Choose another place"):
        FORMATS[ending](tiny(), tmp_path / f"file/model{ending}")


def test_weights_too_large_for_one_onnx_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_ONNX_BYTES", 10)
    with pytest.raises(UserError, match=r"one ONNX file holds 0.0 GB. Export to .pt2"):
        to_onnx(tiny(), tmp_path / "model.onnx")


def test_members_of_other_classes_or_sizes_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    other = replace(tiny(), classes=("b c", "a", "日本"))
    with pytest.raises(UserError, match="model 2 has other classes, or in another order, than the first"):
        FORMATS[ending]([(tiny(), 1), (other, 1)], path)
    with pytest.raises(UserError, match=r"model 2 takes 24 × 24 pixels .* the first 16 × 16 pixels .* one image size"):
        FORMATS[ending]([(tiny(), 1), (tiny(size=24), 1)], path)
    with pytest.raises(UserError, match="found no model to export"):
        FORMATS[ending]([], path)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_weights_that_are_no_shares_are_refused(tmp_path: Path, weights: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="expected numbers of 0 or more, not all 0"):
        to_pt2([(tiny(seed), weight) for seed, weight in enumerate(weights)], tmp_path / "model.pt2")


def test_a_process_without_this_package_runs_the_files(tmp_path: Path) -> None:
    model = tiny()
    to_pt2(model, tmp_path / "model.pt2")
    to_onnx(model, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    program = """
import sys
sys.modules["imgcls"] = None
import numpy as np, onnxruntime, torch
images = np.load("images.npy")
np.save("pt2.npy", torch.export.load("model.pt2").module()(torch.from_numpy(images)).detach().numpy())
np.save("onnx.npy", onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0])
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=120)
    expected = model.probabilities(list(IMAGES))
    for name in ("pt2", "onnx"):
        assert np.abs(np.load(tmp_path / f"{name}.npy") - expected).max() < 1e-5
