"""What a job tells a person: a progress bar on a terminal, one line an epoch elsewhere."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from imgcls.tables import Row
from imgcls.training.loop import Step


class Console:
    """Prints a job's progress.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._bar: Any = None  # a tqdm, whose type parameter says nothing here
        self._begin, self._done = time.monotonic(), 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is printed."""
        return self._quiet

    @property
    def shows_bars(self) -> bool:
        """Whether there is a terminal to draw progress on."""
        return self._terminal

    def say(self, text: str) -> None:
        """A line of text; a bar stays below it."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def count(self, what: str, done: int, total: int, *, unit: str = "images") -> None:
        """Progress of a stage that counts images, or another unit; shown on a terminal only."""
        if not self._terminal:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", leave=False, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.clear()

    def counter(self, what: str) -> Callable[[int, int], None]:
        """`count` of a stage, as a function of what is done and the total."""
        return lambda done, total: self.count(what, done, total)

    def step(self, step: Step, *, epochs: int) -> None:
        """Progress of a training; shown on a terminal only."""
        if not self._terminal:
            return
        done = (step.epoch - 1) * step.num_batches + step.batch
        if self._bar is None:
            form = "{desc} {percentage:3.0f}%|{bar}| ETA {remaining}{postfix}"
            total = epochs * step.num_batches
            self._bar = tqdm(total=total, initial=done - 1, bar_format=form, leave=False, dynamic_ncols=True)
        figures = "" if step.loss is None else f"loss {step.loss:.3f} acc {step.acc:.3f} "
        if figures or not self._bar.postfix:
            self._bar.set_postfix_str(f"{figures}{step.images_per_s:,.0f} images/s", refresh=False)
        self._bar.set_description_str(f"epoch {step.epoch}/{epochs}", refresh=False)
        self._bar.update(done - self._bar.n)

    def begin_training(self, *, done: int = 0) -> None:
        """Start the clock of the estimate, with so many epochs done."""
        self._begin, self._done = time.monotonic(), done

    def row(self, row: Row, *, epochs: int) -> None:
        """The line of an epoch."""
        spent = (time.monotonic() - self._begin) / (row["epoch"] - self._done)
        left = spent * (epochs - row["epoch"])
        val = ""
        if "val/loss" in row:
            val = f"val loss {row['val/loss']:.4f} acc {row['val/acc']:.4f} f1 {row['val/f1']:.4f}  "
        self.say(
            f"epoch {row['epoch']:>3.0f}/{epochs}  train loss {row['train/loss']:.4f} acc {row['train/acc']:.4f}  {val}"
            f"{row['images_per_s']:,.0f} images/s  ETA {timedelta(seconds=round(left))}"
        )

    def clear(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
