"""The SVG icons inside the mkdocs-material wheel, and their rasters."""

import hashlib
import importlib.metadata
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from lab.errors import UserError, unknown

SETS = ("fontawesome", "material", "octicons", "simple")


def files(sets: tuple[str, ...]) -> list[tuple[str, str, Path]]:
    """(set, name within the set, path) of every icon, sorted; needs the `icons` extra."""
    for s in sets:
        if s not in SETS:
            raise unknown("config key data.sets: set", s, SETS)
    for package, module in (("mkdocs-material", "material"), ("resvg-py", "resvg_py")):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"source 'icons' needs the package {package}; install the extra: pip install '.[icons]'")
    root = Path(importlib.util.find_spec("material").origin).parent / "templates" / ".icons"
    found = [(s, p.relative_to(root / s).with_suffix("").as_posix(), p) for s in sorted(set(sets)) for p in (root / s).rglob("*.svg")]
    return sorted(found)


def origin() -> str:
    """Names and versions of what the icons are made from."""
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("mkdocs-material", "resvg-py"))


def held_out(kind: str, name: str) -> bool:
    """Whether an icon is in split eval: by a hash of its name, about one in twenty."""
    return int(hashlib.sha256(f"{kind}/{name}".encode()).hexdigest(), 16) % 20 == 0


def caption(name: str) -> str:
    """The words of a file name: 'brands/arrow-up-24' -> 'arrow up'. Pixel sizes of octicons are left out."""
    words = re.split(r"[-_ ]+", name.rsplit("/", 1)[-1])
    return " ".join(words[:-1] if len(words) > 1 and words[-1] in ("12", "16", "24", "48", "96") else words)


def raster(path: Path, size: int) -> np.ndarray:
    """One icon, black on white, centred and anti-aliased: uint8 [size, size, 1]."""
    import resvg_py

    svg = path.read_text()
    box = re.search(r'viewBox="([^"]+)"', svg)
    width, height = map(float, box.group(1).split()[2:]) if box else (1.0, 1.0)
    scale = size / max(width, height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=w, height=h, background="#ffffff", skip_system_fonts=True)
    png = Image.open(io.BytesIO(bytes(drawn)))
    canvas = Image.new("L", (size, size), 255)
    grey = png.convert("L")
    canvas.paste(grey, ((size - grey.width) // 2, (size - grey.height) // 2))
    return np.asarray(canvas, np.uint8)[..., None]
