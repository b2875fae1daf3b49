"""MLflow's pages in a real browser, with runs of the real command line: what a user sees of what imgcls logs.

Each test leaves a screenshot of where it ended in the folder that IMGCLS_SCREENSHOTS names, else in its own.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, StorageState, expect, sync_playwright

from imgcls.tracking.promotion import move_alias
from imgcls.tracking.registry import CHAMPION, Version, read_alias, register
from imgcls.tracking.store import connect
from tests.e2e.conftest import Child, Runs, all_gone, free_port, imgcls, open_runs

pytestmark = [pytest.mark.slow, pytest.mark.browser]

EXPERIMENT = "digits at 8 px"
SMALL = ("--model.num_blocks", "1", "--model.channels", "4", "--augment.image_size", "8", "--train.epochs", "2")
RATES = ("0.003", "0.01")
REASON = "the first of its name"
WIDE, HIGH = 1440, 900
PATIENCE_MS = 30_000
SEEN = ("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "_mlflow_model_registry_promo_modal_dismissed_v1")
"""Where MLflow's pages remember that they have shown their assistant and what is new in the registry, which they do at
the first visit, over what this is about."""


@dataclass(frozen=True)
class Site:
    """The pages of a store with two runs of one experiment, the better one of which serves.

    Attributes:
        link: what `imgcls ui` printed.
        store: the store behind them.
        best: the run with the greater `best/val_acc`.
        other: the other one.
        version: the registered model's.
    """

    link: str
    store: Runs
    best: Any
    other: Any
    version: Version


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's program; the tests are left out where there is none, but not in continuous integration."""
    found = shutil.which("chromium")
    if found is None:
        reason = "found no chromium on the PATH, expected one to look at MLflow's pages with; apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def site(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert chromium  # looked for before trainings are run for it
    folder = tmp_path_factory.mktemp("browser")
    store = open_runs(f"sqlite:///{folder}/runs.db")
    store.client.create_experiment(EXPERIMENT, artifact_location=str(folder / "artifacts"))
    given = {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    children: list[Child] = []
    try:
        for rate in RATES:
            words = imgcls("train", "digits", *SMALL, "--optim.lr", rate)
            children.append(Child(words, folder / f"rate{rate}", fresh=False, **given))
        for child in children:
            assert child.wait() == 0, child.err
        other, best = sorted(store.of(EXPERIMENT), key=lambda run: run.data.metrics["best/val_acc"])
        version = _promote(best.info.run_id, given)
        server = Child(imgcls("ui", "--no-open", "--port", str(free_port())), folder / "ui", fresh=False, **given)
        children.append(server)
        yield Site(server.wait_for(r"http://\S+")[0], store, best, other, version)
        family = server.family()
        server.process.send_signal(signal.SIGINT)
        server.wait()
        assert all_gone(family)
    finally:
        for child in children:
            child.end()


def _promote(run_id: str, given: dict[str, str]) -> Version:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        store = connect()
        version = register(store, run_id, "digits")
        move_alias(store, "digits", CHAMPION, version.version, expected=None, reason=REASON)
        return read_alias(store, "digits")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser that finds nothing but this machine."""
    words = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=words)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("IMGCLS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser: Browser, site: Site, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of one who has been here before, at the link that `imgcls ui` printed."""
    server = site.link.partition("/#")[0]
    seen: StorageState = {
        "origins": [{"origin": server, "localStorage": [{"name": name, "value": "true"} for name in SEEN]}]
    }
    context = browser.new_context(viewport={"width": WIDE, "height": HIGH}, storage_state=seen)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    try:
        one = context.new_page()
        one.goto(site.link)
        yield one
        one.screenshot(path=screenshots / f"{request.node.name.removeprefix('test_')}.png")
    finally:
        context.close()


@pytest.fixture
def cell(page: Page) -> Callable[[Any, str], Locator]:
    """The cell of a run's row in the runs table, by MLflow's name of the column."""

    def find(run: Any, column: str) -> Locator:
        return page.locator(f".ag-row[row-id='{run.info.run_id}'] [col-id='{column}']")

    return find


def test_the_runs_table_opens_with_what_distinguishes_training_runs(
    site: Site, page: Page, cell: Callable[[Any, str], Locator]
) -> None:
    for run in (site.best, site.other):
        expect(page.get_by_role("link", name=run.info.run_name, exact=True)).to_be_visible()
        for name in ("best/val_acc", "best/val_f1", "best/epoch"):
            shown = cell(run, f"metrics.`{name}`")
            expect(shown).to_be_visible()
            assert float(shown.inner_text()) == pytest.approx(run.data.metrics[name], rel=1e-6)
        for name in ("model.family", "optim.lr", "train.epochs"):
            expect(cell(run, f"params.`{name}`")).to_have_text(run.data.params[name])
        expect(cell(run, "tags.`imgcls.verb`")).to_have_text("train")
    for heading in ("best/val_acc", "best/val_f1", "model.family", "optim.lr", "imgcls.verb"):
        expect(page.locator(".ag-header-cell").filter(has_text=heading)).to_be_in_viewport()


def test_two_runs_are_compared_by_the_params_that_differ_and_by_their_metrics(site: Site, page: Page) -> None:
    for run in (site.best, site.other):
        page.locator(f".ag-row[row-id='{run.info.run_id}'] .ag-selection-checkbox input").check(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()
    page.set_viewport_size({"width": WIDE, "height": 2 * HIGH})
    names = page.get_by_role("row").filter(has_text="Run Name:")
    expect(names).to_contain_text(site.best.info.run_name)
    expect(names).to_contain_text(site.other.info.run_name)
    param = page.get_by_role("rowheader", name=re.compile(r"^(data|augment|model|optim|train|evaluate)\."))
    params = page.get_by_role("row").filter(has=param)
    expect(params.filter(has_text="model.family")).to_be_visible()
    for section in range(2):  # params, metrics
        page.get_by_role("switch").nth(section).click()  # show what differs only
    expect(params.filter(has_text="model.family")).to_be_hidden()
    assert [row.inner_text().split()[0] for row in params.all()] == ["optim.lr"]
    for rate in RATES:
        expect(params).to_contain_text(rate)
    expect(page.get_by_role("link", name="best/val_acc")).to_be_visible()
    for run in (site.best, site.other):
        expect(page.get_by_text(str(round(run.data.metrics["best/val_acc"], 3)), exact=True).first).to_be_visible()
    page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment").scroll_into_view_if_needed()


def test_a_runs_figure_is_drawn_in_its_artifacts(site: Site, page: Page, tmp_path: Path) -> None:
    with Image.open(site.store.download(site.best, "plots/confusion_val.png", tmp_path / "figure")) as figure:
        width, height = figure.size
    page.get_by_role("link", name=site.best.info.run_name, exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("plots", exact=True).click()
    page.get_by_text("confusion_val.png", exact=True).click()
    shown = page.get_by_role("img", name="plots/confusion_val.png")
    expect(shown).to_be_in_viewport()
    expect(shown).to_have_js_property("naturalWidth", width)
    expect(shown).to_have_js_property("naturalHeight", height)
    box = shown.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) > HIGH / 3, "too small to read"


def test_the_registered_model_shows_its_alias_and_why_it_serves(site: Site, page: Page, screenshots: Path) -> None:
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("link", name=site.version.name, exact=True).click()
    line = page.get_by_role("row").filter(has=page.get_by_role("link", name="Version 1", exact=True))
    expect(line).to_contain_text(f"@ {CHAMPION}")
    expect(line).to_contain_text(f"promotion: {CHAMPION}")
    page.screenshot(path=screenshots / "the_registered_model.png")
    page.get_by_role("link", name="Version 1", exact=True).click()
    expect(page.get_by_role("heading", name="Version 1", exact=True)).to_be_visible()
    expect(page.get_by_text(f"@ {CHAMPION}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=site.best.info.run_name, exact=True)).to_be_visible()
    tags = {"promotion": CHAMPION, **dict(site.version.tags)}
    assert tags["promotion.reason"] == REASON
    for name, value in tags.items():
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
        expect(row).to_contain_text(value)
