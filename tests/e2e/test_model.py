"""The logged model, loaded as a server would: in a process that knows MLflow and torch but not imgcls."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from imgcls.tables import Predictions
from tests.e2e.conftest import CHECKOUT, Finished, Spawn

pytestmark = pytest.mark.slow

SCRIPT = """
import base64, importlib.util, json, sys
from pathlib import Path

checkout, model_folder, data, out = sys.argv[1:]
sys.path = [entry for entry in sys.path if entry and Path(entry).resolve() != Path(checkout)]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
spec = importlib.util.find_spec("imgcls")  # an editable install may leave a folder without code behind
assert spec is None or spec.origin is None, spec
try:
    import imgcls.inference
except ImportError:
    pass
else:
    raise AssertionError("imgcls is importable, so this test shows nothing")
for name in [name for name in sys.modules if name.partition(".")[0] == "imgcls"]:
    del sys.modules[name]

import mlflow
import numpy as np
import pandas as pd

model = mlflow.pyfunc.load_model(model_folder)
files = sorted(Path(data).glob("*.png"))
encoded = [path.read_bytes() for path in files]
pixels = np.load(Path(data) / "pixels.npy")
inputs = {
    "bytes": pd.DataFrame({"image": encoded}),
    "text": pd.DataFrame({"image": [base64.b64encode(each).decode() for each in encoded]}),
    "array": {"image": pixels},
    "column": pd.DataFrame({"image": pd.Series(list(pixels), dtype=object)}),
}
answers = {}
for kind, value in inputs.items():
    table = model.predict(value)
    answers[kind] = {name: np.stack(table[name]).tolist() for name in table.columns}
table = model.predict(pd.DataFrame({"image": [encoded[0], encoded[1][:60]]}))
answers["corrupt"] = table.to_dict("records")
import imgcls
answers["code"] = imgcls.__file__
Path(out).write_text(json.dumps(answers))
"""

PICKLE_ENDINGS = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".ckpt"}


@pytest.fixture
def model_folder(digits: Finished, tmp_path: Path) -> Path:
    [model] = digits.runs.models(digits.run)
    return Path(shutil.copytree(model.artifact_location.removeprefix("file://"), tmp_path / "model"))


def test_without_imgcls_it_predicts_what_the_run_predicted(
    digits: Finished, model_folder: Path, spawn: Spawn, tmp_path: Path
) -> None:
    predictions = Predictions.from_parquet(digits.runs.download(digits.run, "predictions/val.parquet", tmp_path))
    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    pixels = scans[[int(name.rpartition("/")[2]) for name in predictions.ids]]
    data, script, out = tmp_path / "data", tmp_path / "load.py", tmp_path / "answers.json"
    data.mkdir()
    np.save(data / "pixels.npy", pixels)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(data / f"{number:04d}.png")
    script.write_text(SCRIPT)
    words = ("python", "-P", str(script), str(CHECKOUT), str(model_folder), str(data), str(out))
    child = spawn(*words, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", PYTHONPATH="")
    assert child.wait() == 0, child.err
    answers = json.loads(out.read_text())
    assert Path(answers["code"]).is_relative_to(model_folder), "the package's copy inside the model"
    top = np.argsort(-predictions.probs, axis=1, kind="stable")[:, :3]
    for kind in ("bytes", "text", "array", "column"):
        answer = answers[kind]
        assert list(answer) == ["label", "probability", "top_labels", "top_probabilities", "error"], kind
        assert answer["error"] == [None] * len(pixels), kind
        assert answer["label"] == [predictions.classes[k] for k in predictions.predicted], kind
        np.testing.assert_allclose(answer["probability"], predictions.probs.max(1), atol=1e-5)
        np.testing.assert_allclose(
            answer["top_probabilities"], np.take_along_axis(predictions.probs, top, axis=1), atol=1e-5
        )
        assert [row[0] for row in answer["top_labels"]] == answer["label"], kind
    good, corrupt = answers["corrupt"]
    assert (good["label"], good["error"]) == (answers["bytes"]["label"][0], None)
    assert corrupt["label"] is corrupt["probability"] is None
    assert "cannot be decoded" in corrupt["error"]


def test_the_model_holds_no_pickle_and_no_image(model_folder: Path) -> None:
    files = [path for path in model_folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix == ".safetensors"] == ["model.safetensors"]
    for path in files:
        assert path.suffix not in PICKLE_ENDINGS, path
        head = path.read_bytes()[:2]
        assert not (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")), f"{path} is a pickle"
        assert head != b"PK", f"{path} is a zip, as torch.save writes"
        assert path.suffix in {".py", ".yaml", ".yml", ".txt", ".json", ".safetensors", ""}, path
    assert not list(model_folder.rglob("__pycache__"))


def test_the_model_says_what_it_needs_and_what_it_takes(model_folder: Path) -> None:
    requirements = (model_folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in requirements)
    assert not any(line.startswith("imgcls") for line in requirements)
    about = (model_folder / "MLmodel").read_text()
    assert '"name": "image"' in about
    assert '"type": "any"' in about
    assert "base64 text, or (H, W[, 3]) pixels" in " ".join(about.split()), "what the signature cannot say"
    example = json.loads((model_folder / "serving_input_example.json").read_text())
    [[image]] = example["dataframe_split"]["data"]
    assert Image.open(io.BytesIO(base64.b64decode(image))).getcolors() == [(32 * 32, (128,) * 3)], "no user's image"
