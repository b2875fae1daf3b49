"""The command line: how words are split, what the small verbs print, and the exit codes."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

import imgcls
from imgcls import cli as cli_module
from imgcls.cli import cli, main, parse_words
from imgcls.errors import UserError

DIGITS = """\
data:
  source: digits
  val_fraction: 0.2
  test_fraction: 0.2
  split_seed: 0
  fold: null
  split_from: null
  tiny_classes: error
  classes: null
  channels: 1
  balance: none
  balance_beta: null
  on_bad_image: error
  check: quick
  device: cpu
  num_workers: auto
  prefetch: auto
  store_budget: 20.0
augment:
  image_size: 16
  preset: light
  horizontal_flip: false
  pipeline: null
  mixup: 0.0
  cutmix: 0.0
  mix_prob: 1.0
  eval_crop: auto
  normalize: dataset
model:
  family: plaincnn
  weights: none
  freeze_depth: 0
  freeze_norms: false
  max_parameters: null
  min_receptive_field: null
  max_macs: null
  activation: relu
  norm: batch
  attention: none
  init: default
  num_blocks: 3
  convs_per_block: 2
  channels: 24
  growth: double
  kernel_size: 3
  dense_width: 0
  dropout: 0.2
optim:
  optimizer: adamw
  lr: 0.003
  weight_decay: 0.02
  decay_norms_and_biases: true
  l1: 0.0
  clip_norm: null
  layer_decay: 1.0
  momentum: 0.9
  nesterov: false
  beta2: 0.999
  alpha: 0.99
  eps: 1.0e-08
  schedule: cosine
  warmup_epochs: 1.0
  final_lr_ratio: 0.0
  gamma: null
  step_epochs: 10
  milestones: []
  power: 1.0
  cycle_rise: 0.3
  cycle_start: 0.04
  cycle_anneal: cosine
  cycle_momentum: null
  plateau_monitor: val/loss
  plateau_patience: 5
train:
  epochs: 25
  batch_size: 64
  seed: 0
  device: auto
  plan: auto
  micro_batch: auto
  loss: cross_entropy
  focal_gamma: 2.0
  label_smoothing: 0.0
  averaging: none
  ema_decay: 0.999
  swa_start: 0.75
  monitor: val/acc
  patience: null
  unfreeze: {}
  cache_features: auto
  checkpoint_minutes: 10.0
  keep_best: 0
  on_nan: stop
  processes: 1
  sync_batch_norm: false
  output_dir: outputs
evaluate:
  top_k: 3
search:
  space: {}
  sampler: tpe
  pruner: median
  objectives:
  - val/acc
  trials: null
  time_limit: null
  allocation: equal
  workers: 1
  seed: 0
promote:
  min_metrics: {}
  min_gain: 0.0
  significance: 0.05
  max_recall_fall: 0.02
  max_ece: null
  max_model_mb: null
  max_latency_ms: null
  require_same_data: true
  require_installable: true
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def exit_code(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of the whole program with these words."""
    monkeypatch.setattr(sys, "argv", ["imgcls", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "recipe", "texts"),
    [
        ([], None, {}),
        (["mine.yaml"], "mine.yaml", {}),
        (["--optim.lr", "0.1"], None, {"optim.lr": "0.1"}),
        (["--optim.lr=0.1", "mine.yaml"], "mine.yaml", {"optim.lr": "0.1"}),
        (["--optim.lr", "-1"], None, {"optim.lr": "-1"}),
        (["--optim.lr", "--x.y"], None, {"optim.lr": "--x.y"}),
        (["--data.root=/a=b", "--train.seed", ""], None, {"data.root": "/a=b", "train.seed": ""}),
        (["--optim.lr="], None, {"optim.lr": ""}),
        (["a b", "--data.root", "my photos"], "a b", {"data.root": "my photos"}),
    ],
)
def test_words_are_a_recipe_and_fields_in_any_order(
    words: list[str], recipe: str | None, texts: dict[str, str]
) -> None:
    assert parse_words(tuple(words)) == (recipe, texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "1"], "unknown option --lr; expected --section.field VALUE, such as --optim.lr 0.01."),
        (["--"], "unknown option --; expected --section.field VALUE, such as --optim.lr 0.01."),
        (["-x"], "unknown option -x; expected --section.field VALUE, such as --optim.lr 0.01."),
        (["--optim.lr"], "--optim.lr has no value; expected --optim.lr VALUE."),
        (["--a.b", "1", "--a.b=2"], "--a.b is given twice: '1' and '2'. Give it once."),
        (["a", "b"], "found two recipes, 'a' and 'b'; expected one. Fields begin with --."),
    ],
)
def test_words_that_do_not_fit_are_an_error(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_words(tuple(words))
    assert str(caught.value) == message


def test_version_is_printed() -> None:
    assert (run("--version").output, run("--version").exit_code) == (f"imgcls, version {imgcls.__version__}\n", 0)


def test_help_names_every_verb() -> None:
    result = run("-h")
    assert result.exit_code == 0
    assert [name for name in cli.commands if f"\n  {name} " not in result.output] == []


def test_recipe_show_prints_every_field() -> None:
    assert (run("recipe", "show").output, run("recipe", "show", "digits").output) == (DIGITS, DIGITS)


def test_recipe_show_takes_overrides_and_tells_what_they_left_out() -> None:
    result = run("recipe", "show", "--model.family", "resnet18", "--optim.lr=1e-2", "--train.patience", "4")
    note = "# note: model.family is now resnet18, which has no model.num_blocks, model.channels: left out\n"
    assert result.exit_code == 0
    assert result.output.startswith(note)
    shown = yaml.safe_load(result.output)
    assert shown["model"]["family"] == "resnet18"
    assert not {"num_blocks", "channels"} & set(shown["model"])
    assert (shown["optim"]["lr"], shown["train"]["patience"]) == (0.01, 4)


def test_what_recipe_show_prints_is_a_recipe() -> None:
    Path("mine.yaml").write_text(run("recipe", "show", "--model.family", "resnet18").output)
    assert run("recipe", "diff", "mine.yaml", "mine.yaml").output == "no difference\n"
    assert (
        run("recipe", "show", "mine.yaml").output
        == run("recipe", "show", "--model.family=resnet18").output.split("\n", 1)[1]
    )


def test_recipe_diff_prints_a_table() -> None:
    Path("a.yaml").write_text("optim: {lr: 0.1}\ntrain: {epochs: 5}\n")
    Path("b.yaml").write_text("optim: {lr: 0.25}\ntrain: {epochs: 5, patience: 2}\nmodel: {family: resnet18}\n")
    result = run("recipe", "diff", "a.yaml", "b.yaml")
    assert result.exit_code == 0
    assert result.output == (
        "field                  a.yaml    b.yaml\n"
        "model.family           plaincnn  resnet18\n"
        "model.activation       relu      -\n"
        "model.norm             batch     -\n"
        "model.attention        none      -\n"
        "model.init             default   -\n"
        "model.num_blocks       3         -\n"
        "model.convs_per_block  2         -\n"
        "model.channels         32        -\n"
        "model.growth           double    -\n"
        "model.kernel_size      3         -\n"
        "model.dense_width      0         -\n"
        "model.dropout          0.2       auto\n"
        "optim.lr               0.1       0.25\n"
        "train.patience         -         2\n"
        "model.stem             -         imagenet\n"
    )


def test_recipe_diff_takes_a_recipe_that_waits_for_a_root() -> None:
    lines = run("recipe", "diff", "digits", "folder").output.splitlines()
    assert lines[:2] == ["field                    digits    folder", "data.source              digits    folder"]


def test_recipe_schema_is_json() -> None:
    import json

    from imgcls.recipe import json_schema

    assert run("recipe", "schema").output == json.dumps(json_schema(), indent=2) + "\n"


def test_data_preview_writes_a_picture_and_says_where() -> None:
    result = run("data", "preview", "digits", "--augment.image_size", "8", "--out", "small.png", "--train.seed=2")
    assert (result.output, result.exit_code) == (f"wrote {Path.cwd()}/small.png\n", 0)
    assert run("data", "preview", "--out=small.png").output == f"wrote {Path.cwd()}/small.png\n"
    assert run("data", "preview").output == f"wrote {Path.cwd()}/preview.png\n"
    assert sorted(path.name for path in Path().iterdir()) == ["preview.png", "small.png"]


def test_an_unknown_command_is_an_error_that_names_it() -> None:
    result = run("tarin")
    assert result.exit_code == 2
    assert "No such command 'tarin'" in result.stderr


@pytest.mark.parametrize("port", ["0", "70000", "x"])
def test_a_port_out_of_range_is_an_error(port: str) -> None:
    result = run("ui", "--port", port)
    assert result.exit_code == 2
    assert "--port" in result.stderr


# --- main


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["recipe", "show", "-h"], 0),
        (["tarin"], 2),
        (["recipe", "diff", "a"], 2),
        (["train", "a", "b"], 2),
        (["data", "preview", "--out", "a.jpg"], 2),
        (["data", "preview", "--optim.lrr", "1"], 2),
    ],
)
def test_main_ends_with_the_exit_code_of_what_happened(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(monkeypatch, *words) == code


@pytest.mark.parametrize("words", [["--debug", "train", "a", "b"], ["train", "a", "b", "--debug"]])
def test_main_shows_a_traceback_where_debug_is_given_before_or_behind_the_verb(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, *words) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("Traceback")
    assert captured.endswith("\nimgcls: error: found two recipes, 'a' and 'b'; expected one. Fields begin with --.\n")


class _Stopped(BaseException):
    signum = 15


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (click.Abort(), 130), (_Stopped(), 143), (SystemExit(3), 3)]
)
def test_main_turns_a_stop_into_its_exit_code(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(cli_module.cli, "main", stop)
    monkeypatch.setattr("os._exit", sys.exit)  # it ends at once after a stop; here it would end the tests
    assert exit_code(monkeypatch) == code


def test_main_lets_a_bug_keep_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli_module.cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["imgcls"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_training_whose_run_is_not_complete_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    import imgcls.jobs.train as job

    class Result:
        unsent = Path("outputs")

    given: list[Any] = []

    def run_training(resolved: Any, *_rest: Any) -> type[Result]:
        given.append(resolved.recipe.optim.lr)
        return Result

    monkeypatch.setattr(job, "run_training", run_training)
    assert exit_code(monkeypatch, "train", "--optim.lr", "1e-2") == 3
    assert given == [0.01]


@pytest.mark.parametrize(
    ("outcome", "unsent", "code"),
    [("promoted", None, 0), ("champion", None, 0), ("forced", "outputs", 3), ("refused", None, 4), ("refused", "x", 4)],
)
def test_a_promotion_ends_with_4_where_the_gates_refuse(
    outcome: str, unsent: str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imgcls.jobs.promote as job

    given: dict[str, Any] = {}

    def run_promote(run: str, *_rest: Any, **options: Any) -> Any:
        given.update(options, run=run)
        return SimpleNamespace(outcome=outcome, unsent=unsent)

    monkeypatch.setattr(job, "run_promote", run_promote)
    words = ["promote", "--run", "abc", "--promote.min_gain=0.1", "--name", "animals", "--force", "it leaks"]
    assert exit_code(monkeypatch, *words) == code
    assert given == {
        "run": "abc", "name": "animals", "alias": "champion", "force": "it leaks", "texts": {"promote.min_gain": "0.1"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "--name", "animals"], "Missing option '--run'"),
        (["promote", "--run", "abc"], "Missing option '--name'"),
        (["registry", "rollback", "animals"], "Missing option '--reason'"),
        (["registry", "show"], "Missing argument 'NAME'"),
    ],
)
def test_a_promotion_and_a_rollback_say_what_they_need(words: list[str], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_recipe_beside_the_run_to_promote_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "promote", "digits", "--run", "abc", "--name", "animals") == 2
    assert "found 'digits' beside the run to promote, which has its own recipe" in capsys.readouterr().err


def test_a_full_disk_is_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device", "outputs/a")

    monkeypatch.setattr(cli_module.cli, "main", full)
    assert exit_code(monkeypatch) == 2
    expected = "imgcls: error: the disk is full (outputs/a): No space left on device. Free space and run again.\n"
    assert capsys.readouterr().err == expected
