"""Any tensorflow-datasets set with images that lies built in data_dir, read without tensorflow.

Labels are its feature `label`, captions its feature `caption`; a set without labels has one class 'all'. What the set calls
validation or test is held out, else the last 5% of train.
"""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lab.data import pixels
from lab.data.stored import digests, quiet_tfds
from lab.errors import UserError, nearest, unknown

HELD_OUT = ("eval", "validation", "test")  # validation first: the labels of many a test split are secret


def _command(dataset: str, data_dir: str) -> str:
    name = dataset.replace("'", "")
    code = f"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    return f'python -c "{code}.download_and_prepare()"'


def _folder(dataset: str, data_dir: str) -> Path:
    """The newest version of a built set `name`, `name/config` or `name:version` in data_dir."""
    name, _, version = dataset.partition(":")
    root = Path(data_dir) / name
    built = {p.parent.name: p.parent for p in root.glob("*/features.json") if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)}
    if version and built and version not in built:
        raise unknown(f"config key data.dataset={dataset!r}: version", version, built)
    if built:
        return built[version or max(built, key=lambda v: [int(n) for n in v.split(".")])]
    if configs := sorted({f"{name}/{p.parent.parent.name}" for p in root.glob("*/*/features.json")}):
        raise unknown("config key data.dataset", dataset, configs)
    have = [p.name for p in Path(data_dir).glob("[!.]*") if p.is_dir()]
    raise UserError(
        f"config key data.dataset={dataset!r} is not built in run.data_dir={str(data_dir)!r}{nearest(name, have)}; "
        f"build it, where tensorflow is installed, with: {_command(dataset, data_dir)}"
    )


def _split(splits: Any, split: str, dataset: str) -> str:
    if split not in ("train", "eval"):
        raise unknown("split", split, ("train", "eval"))
    if "train" not in splits:
        raise UserError(f"config key data.dataset={dataset!r} has no split 'train'; it has: {', '.join(splits)}")
    held = next((s for s in HELD_OUT if s in splits), None)
    return {"train": "train" if held else "train[:95%]", "eval": held or "train[95%:]"}[split]


class Source:
    """A built set, such as dataset='mnist': image uint8 [size, size, channels], label, and a caption where it has them."""

    def __init__(self, split: str, data_dir: str, dataset: str, size: int, channels: int):
        pixels.check(size, channels)
        folder = _folder(dataset, data_dir)
        self.dataset, self.size, self.channels = dataset, size, channels
        with quiet_tfds() as tfds:
            try:
                builder = tfds.builder_from_directory(folder)
            except Exception as e:
                raise _damaged(folder, e) from e
            features = dict(builder.info.features.items())
            if "image" not in features:
                raise UserError(f"config key data.dataset={dataset!r} has no feature 'image'; it has: {', '.join(features)}")
            part = _split(builder.info.splits, split, dataset)
            # an encoded image is decoded here as a folder's is; tfds' own decoding differs with the packages that are installed
            self._encoded = isinstance(features["image"], tfds.features.Image)
            try:
                self._items = builder.as_data_source(split=part, decoders={"image": tfds.decode.SkipDecoding()} if self._encoded else None)
            except NotImplementedError as e:
                stored = builder.info.file_format.value
                raise UserError(
                    f"config key data.dataset={dataset!r} is stored in {str(folder)!r} as {stored}, which only tensorflow reads; "
                    f"move it away and build it with: {_command(dataset, data_dir)}"
                ) from e
            except Exception as e:
                raise _damaged(folder, e) from e
            self._label = isinstance(features.get("label"), tfds.features.ClassLabel)
            if "label" in features and not self._label:
                raise UserError(
                    f"config key data.dataset={dataset!r}: feature 'label' is {type(features['label']).__name__}, not ClassLabel"
                )
            self._caption = isinstance(features.get("caption"), tfds.features.Text)
            names = [str(n) for n in features["label"].names] if self._label else ["all"]
        if not len(self._items):
            raise UserError(f"config key data.dataset={dataset!r}: its split {part!r} is empty")
        self.dims = {"image": size, "channels": channels, "classes": len(names)}
        # of the files of all splits, not of the pixels: cheap for large sets, the same for every copy of one build
        files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "dataset_info.json")
        content = json.dumps([part, digests(folder, files, data_dir)], sort_keys=True)
        self.info = {
            **{"image": [size, size, channels], "classes": len(names), "class_names": names, "examples": len(self._items)},
            **{"fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32], "origin": f"tfds {builder.info.full_name}"},
            "best_loss": None,
        }

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> dict:
        name = f"{self.dataset}[{i}]"
        try:
            item = self._items[i]
        except Exception as e:
            raise _damaged(name, e) from e
        if item["image"] is None:  # how a shard that was cut off reads
            raise UserError(f"{name!r} cannot be read: its shard is damaged")
        label = item["label"] if self._label else 0
        out = {"image": self._image(item["image"], name), "label": np.int32(label)}
        return {**out, "caption": _text(item["caption"])} if self._caption else out

    def _image(self, stored: Any, name: str) -> np.ndarray:
        if self._encoded:
            return pixels.decode(io.BytesIO(stored), self.size, self.channels, name)
        try:
            return pixels.square(Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored), self.size, self.channels)
        except TypeError as e:
            raise UserError(f"image {name!r} of shape {stored.shape} and type {stored.dtype} is not grey or colour of 8 bits") from e


def _damaged(what: object, e: Exception) -> UserError:
    return UserError(f"{str(what)!r} cannot be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}")


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
