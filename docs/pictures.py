"""Draw the pictures of the README and the tutorial: ``python docs/pictures.py [NAME ...]``, or ``make pictures``.

Each is a figure of a part of `gpumlp reproduce`, trained anew. Those of MNIST look for its files as all data sets do.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpumlp.recipes import Context, Outcome, load_recipe
from gpumlp.recipes.kinds import run_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent / "pictures"


@dataclass(frozen=True)
class Picture:
    """Which figure of which part a file holds.

    Attributes:
        report, part: of `gpumlp reproduce`.
        caption: what the caption of the figure begins with.
        quick: whether the part is run as in a quick run.
        dpi: of a PNG file.
    """

    report: str
    part: str
    caption: str = ""
    quick: bool = False
    dpi: int = 100


# many points make a large SVG: those pictures are PNG
PICTURES = {
    "probability.png": Picture("upf", "cross-entropy", "Probability"),
    "momentum.svg": Picture("upf", "momentum-plain"),
    "rings.png": Picture("tnm112", "deep-momentum", "Decision regions"),
    "fit.png": Picture("sdm274", "minibatch", "The fit"),
    "test-losses.svg": Picture("ee6132", "activations", "Loss on the test", quick=True),
    "inactive-neurons.svg": Picture("ee6132", "inactive-neurons", quick=True),
}


@cache
def outcome_of(report: str, part: str, quick: bool) -> Outcome:
    """Run a part, and before it the parts that it needs."""
    recipe = load_recipe(report)
    wanted = recipe.part(part)
    needed = {name: outcome_of(report, name, quick) for name in wanted.needs}
    return run_part(Context(recipe, wanted, quick, needed=needed))


def draw(name: str, folder: Path = FOLDER) -> Path:
    """Write the picture of that name, on white, the same bytes for the same figure; return its path.

    Raises:
        ValueError: the part has no such figure.
    """
    import matplotlib

    picture = PICTURES[name]
    drawn = outcome_of(picture.report, picture.part, picture.quick).figures
    found = next((d for d in drawn if d.caption.startswith(picture.caption)), None)
    if found is None:
        captions = "; ".join(d.caption for d in drawn)
        raise ValueError(f"{name}: no figure begins with {picture.caption!r}; there are: {captions}")
    path = folder / name
    if path.suffix == ".svg":
        # letters as outlines look alike everywhere
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gpumlp"}):
            found.figure.savefig(path, facecolor="white", metadata={"Date": None})
    else:
        write_png(found.figure, path, picture.dpi)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB; {found.caption}")
    return path


def write_png(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure on white as PNG with a palette of 128 colours, a third of the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", dpi=dpi)
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or PICTURES:
        draw(chosen)
