"""Over 14,000 real icons that ship inside the mkdocs-material wheel: class = icon set, caption = words of the file name.

Built once per size with progress, as ArrayRecord through tensorflow-datasets; every file is checked against its checksum when
opened, and the set is built again if anything is damaged.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from lab.data._greys import Greys
from lab.data.icons import raster
from lab.data.stored import quiet_tfds, writing
from lab.data.world import check_extras
from lab.errors import UserError
from lab.files import sha256

MANIFEST = "manifest.json"
EXTRAS = ("tokens",)
VIEWS = (1, 2, 8)


def _folder(data_dir: str, size: int, sets: tuple[str, ...]) -> Path:
    if not isinstance(size, int) or not 4 <= size <= 1024:
        raise UserError(f"config key data.size={size!r} must be a whole number from 4 to 1024")
    raster.files(sets)
    tag = "-".join(s[:3] for s in sorted(sets))
    return Path(data_dir) / "icons" / f"{size}px-{tag}"


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def damage(folder: Path) -> str | None:
    """What is wrong with a built set, in words; None when every file has its checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["origin"] != raster.origin():
            return f"it was made from {manifest['origin']}, installed is {raster.origin()}"
        have, want = _sums(folder), manifest["sums"]
    except FileNotFoundError:
        return "it is not complete"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    wrong = sorted(n for n in want.keys() | have.keys() if have.get(n) != want.get(n))
    return f"{wrong[0]} does not have its checksum" if wrong else None


def build(data_dir: str, size: int, sets: tuple[str, ...] = raster.SETS) -> Path:
    """Build the set unless a sound one is there; returns its folder. Safe against kills and a second builder."""
    folder = _folder(data_dir, size, sets)
    with writing(folder, "set --config.run.data_dir=FOLDER"):
        wrong = damage(folder)
        if wrong is None:
            return folder
        if folder.exists():
            print(f"icons at {size} px are built again: {wrong}", file=sys.stderr)
            shutil.rmtree(folder)
        for stale in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        with quiet_tfds():
            from lab.data.icons.builder import Icons

            made = Icons(size=size, sets=sets, data_dir=str(temporary))
            made.download_and_prepare()
        sums = _sums(temporary)
        manifest = {"origin": raster.origin(), "path": Path(made.data_dir).relative_to(temporary).as_posix(), "sums": sums}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        os.rename(temporary, folder)
    return folder


def verify(data_dir: str, size: int, sets: tuple[str, ...] = raster.SETS) -> str:
    """'sound', or a UserError that says what is wrong and how to mend it."""
    folder = _folder(data_dir, size, sets)
    if wrong := damage(folder):
        raise UserError(f"icons in {str(folder)!r}: {wrong}; mend with: lab data build icons size={size} --data-dir {data_dir}")
    return f"{folder}: sound"


def _views(images: np.ndarray, n: int) -> list[np.ndarray]:
    """The first n of: images [i, y, x, 1] as drawn, mirrored, and both in their three other quarter turns."""
    return [np.rot90(x, turns, axes=(1, 2)) for turns in range(4) for x in (images, images[:, :, ::-1])][:n]


class Source:
    """Icons of `sets` at `size` pixels: image uint8 [size, size, 1] black on white, label = set, caption.

    extras: 'tokens' (int32 [size, size], the nearest of `levels` greys of every pixel). Pictures of tokens are made by the palette in
      info, whose `rms_error` is the root mean square, in steps of 255, of what they lack of the icons.
    views: how every icon is shown, each view an example of its own: 1, as drawn; 2, mirrored too; 8, in all symmetries of the square, so
      that long runs hardly repeat any: symmetric icons look alike from several sides.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        size: int,
        sets: tuple[str, ...] = raster.SETS,
        extras: tuple[str, ...] = (),
        levels: int = 4,
        views: int = 1,
    ):
        check_extras(extras, EXTRAS)
        if views not in VIEWS:
            raise UserError(f"config key data.views={views!r} must be one of: {', '.join(map(str, VIEWS))}")
        greys = Greys(levels)
        folder = build(data_dir, size, tuple(sets))
        path = folder / json.loads((folder / MANIFEST).read_text())["path"]
        with quiet_tfds() as tfds:
            builder = tfds.builder_from_directory(path)
            rows = builder.as_data_source(split=split)
            items = rows.__getitems__(list(range(len(rows))))
        self.arrays = {
            "image": np.concatenate(_views(np.stack([r["image"] for r in items]), views)),
            "label": np.tile(np.array([r["label"] for r in items], np.int32), views),
        }
        self._captions = [r["caption"] if isinstance(r["caption"], str) else r["caption"].decode() for r in items] * views
        names = sorted(sets)
        self.dims, told = {"image": size, "channels": 1, "classes": len(names)}, {}
        if "tokens" in extras:
            self.arrays["tokens"] = greys.tokens(self.arrays["image"])
            self.dims |= greys.dims(size)
            told = {"palette": greys.palette.tolist(), "rms_error": greys.rms(self.arrays["image"])}
        # of the content, not of the files: zip and record layout may differ between machines
        content = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in self.arrays.values()))
        self.info = {
            **{"image": [size, size, 1], "classes": len(names), "class_names": names, "examples": len(self)},
            **{"fingerprint": content.hexdigest()[:32], "origin": raster.origin(), "best_loss": None, **told},
        }

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, i: int) -> dict:
        return {**{k: v[i] for k, v in self.arrays.items()}, "caption": self._captions[i]}
