"""Clips as folders of frames, in the order of their numbers: a clip is a folder that holds images, its class the folder above it."""

import hashlib
import json
import re
from pathlib import PurePosixPath

import numpy as np

from lab.data import pixels
from lab.data.folder import check_split, find_folder, find_images, held_out, in_order
from lab.data.stored import digests
from lab.data.world import check
from lab.errors import UserError


def numbered(name: str) -> list:
    """Sorts frame2 before frame10."""
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)]


def spread(have: int, n: int) -> list[int]:
    """`n` of `have` frames, evenly spaced, the first and the last among them where n > 1."""
    return np.round(np.linspace(0, have - 1, n)).astype(int).tolist() if n > 1 else [0]


class Source:
    """Clips: image uint8 [frames, size, size, channels], evenly spaced frames of each, and label = class.

    `path` is absolute or within data_dir, laid out as path/class/clip/0001.png or path/clip/0001.png (one class 'all'). Clips of fewer
    frames are left out and counted in info. A share of about `eval_share` is held out, by a hash of each clip's name.
    """

    def __init__(self, split: str, data_dir: str, path: str, size: int, frames: int = 8, channels: int = 3, eval_share: float = 0.05):
        pixels.check(size, channels)
        check("frames", frames, 1, 1024)
        check_split(split, eval_share)
        self.folder, self.size, self.channels = find_folder(data_dir, path), size, channels
        names = find_images(self.folder)
        clips: dict[str, list[str]] = {}
        for name in names:
            clips.setdefault(str(PurePosixPath(name).parent), []).append(name)
        if "." in clips:
            raise UserError(
                f"image {clips['.'][0]!r} in {str(self.folder)!r} lies in no clip; expected clip/0001.png or class/clip/0001.png"
            )
        kept = {c: sorted(f, key=numbered) for c, f in clips.items() if len(f) >= frames}
        mine = [c for c in sorted(kept) if held_out(c, eval_share) == (split == "eval")]
        if not mine:
            raise UserError(
                f"config key data.frames={frames} with data.eval_share={eval_share} leaves no clip of {len(clips)} in {str(self.folder)!r} for {split}"
            )
        self._clips = [[kept[c][k] for k in spread(len(kept[c]), frames)] for c in mine]
        of = {c: PurePosixPath(c).parts[0] if "/" in c else "all" for c in kept}
        classes = in_order(set(of.values()))
        self.labels = np.array([classes.index(of[c]) for c in mine], np.int32)
        self.dims = {"frames": frames, "side": size, "channels": channels, "classes": len(classes)}
        content = json.dumps([digests(self.folder, names, data_dir), frames], sort_keys=True)
        self.info = {
            **{"movie": [frames, size, size, channels], "classes": len(classes), "class_names": classes, "examples": len(self)},
            **{"fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32], "origin": f"frames {self.folder.resolve().name}"},
            **{"best_loss": None, "too_short": len(clips) - len(kept)},
        }

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, i: int) -> dict:
        paths = [str(self.folder / name) for name in self._clips[i]]
        shots = [pixels.decode(p, self.size, self.channels, p) for p in paths]
        return {"image": np.stack(shots), "label": self.labels[i]}

    def picture(self, i: int) -> np.ndarray:
        """The frames of a clip beside one another, uint8 [size, frames size, channels]."""
        return np.concatenate(list(self[i]["image"]), 1)
