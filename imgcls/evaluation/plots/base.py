"""What all figures share: colours, names of classes in any script, saving (the door to matplotlib; no pyplot)."""

import unicodedata
import warnings
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

matplotlib.use("Agg", force=False)

BLUE, ORANGE, GREY = "#2a6fb0", "#d9730d", "#666666"
COLOURS = (
    BLUE, ORANGE, "#2f9e5b", "#8b54b8", "#c8324f", "#8c6239", "#d667b0", "#1fa3b5", "#a3a11e", "#3d3d3d",
)  # fmt: skip
"""Of things that are told apart by their colour, such as families or runs, in this order."""
DPI = 110
"""Pixels an inch of a saved figure."""
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial Unicode MS",
)  # fmt: skip
"""Fonts for names in scripts that matplotlib's own font lacks, where the machine has them."""


def fonts() -> list[str]:
    """matplotlib's own font, then those of FALLBACK_FONTS that are installed."""
    installed = {font.name for font in fontManager.ttflist}
    return [*matplotlib.rcParams["font.family"], *(name for name in FALLBACK_FONTS if name in installed)]


def short(name: str, most: int = 24) -> str:
    """The name in one line, its middle left out where it is long: names often differ at the end."""
    line = " ".join(name.split())
    return line if len(line) <= most else f"{line[: most - 10].rstrip()}…{line[-9:].lstrip()}"


def fitting(text: str, columns: int) -> str:
    """The text in one line of so many columns at most (11 at least), of which a Chinese character takes two."""
    most = max(columns, 11)
    line = short(text, most)
    while sum(2 if is_wide(letter) else 1 for letter in line) > columns and most > 11:
        most -= 1
        line = short(text, most)
    return line


def is_wide(letter: str) -> bool:
    """Whether a letter takes the room of two, as Chinese ones do."""
    return unicodedata.east_asian_width(letter) in "WF"


def saying(text: str) -> Figure:
    """A figure that says why there is nothing to draw yet."""
    figure = Figure(figsize=(8, 2.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=GREY, parse_math=False)
    return figure


def plain(axes: Axes) -> None:
    """A grid behind, and no frame on the top and on the right."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(path, dpi=DPI)
