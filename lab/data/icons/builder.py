"""The tensorflow-datasets builder of the icons; importing it imports tfds."""

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import track

from lab.data.icons import raster
from lab.log import console


class Icons(tfds.core.GeneratorBasedBuilder):
    """Icons of some sets at one size, split by a hash of the icon's name: about one in twenty is held out."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # no metadata files beside the code

    def __init__(self, *, size: int, sets: tuple[str, ...], **kwargs):
        self.size, self.sets = size, tuple(sorted(sets))
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(self.size, self.size, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=self.sets),
            "caption": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description=self.__doc__)

    def dataset_info_from_configs(self, **kwargs):
        """Info from code alone: the parent looks for README and citation files in the package."""
        return tfds.core.DatasetInfo(builder=self, **kwargs)

    def _split_generators(self, dl_manager):
        rows = {"train": [], "eval": []}
        for kind, name, path in track(raster.files(self.sets), f"drawing icons at {self.size} px", console=console):
            image = raster.raster(path, self.size)
            if image.min() == image.max():
                continue  # nothing to see at this size
            row = {"image": image, "label": kind, "caption": raster.caption(name)}
            rows["eval" if raster.held_out(kind, name) else "train"].append((f"{kind}/{name}", row))
        return {split: iter(found) for split, found in rows.items()}

    def _generate_examples(self):
        raise AssertionError("the splits are generated together")
