"""Who feeds batches in `lab bench data`: the lab's loader and PyTorch's DataLoader over the same files."""

import atexit
import json
import time
from pathlib import Path

BATCH = 128


def stored(batch: dict) -> dict:
    """The function of the encoded set: pixels as they are."""
    return {"image": batch["image"]}


def prepare(data_dir: str, place: Path, size: int) -> None:
    """The icons at `size` pixels as an encoded set and as a folder of PNG files, a folder a class."""
    from PIL import Image

    from lab.data import encode
    from lab.data.loader import open_source

    icons = open_source({"name": "icons", "size": size}, "train", data_dir)
    encode.write(icons, stored, place / "records" / "train")
    names = icons.info["class_names"]
    for i in range(len(icons)):
        file = place / "folder" / names[icons.arrays["label"][i]] / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(icons.arrays["image"][i, ..., 0]).save(file)


def lab(spec: dict):
    """The lab's loader, batches put on the device: what it is, and run(batches)."""
    import jax

    from lab.data import loader

    config = {"records": {"name": "encoded", "path": "records"}, "folder": {"name": "folder", "path": "folder", "channels": 1}}
    config["folder"] |= {"size": spec["size"], "eval_share": 0.001}
    began = time.perf_counter()
    source = loader.open_source(config[spec["files"]], "train", spec["place"])
    if spec["how"] == "memory":
        feed = loader.Loader(source, BATCH, [0])
    else:
        loader.decode = lambda source: None  # as if memory could not hold it
        feed = loader.Loader(source, BATCH, [0], workers=spec["how"])

    def run(batches):
        for _ in range(batches):
            jax.block_until_ready(jax.device_put(next(feed)))

    atexit.register(feed.close)
    run(1)
    return {"examples": len(source), "first_batch_s": round(time.perf_counter() - began, 2)}, run


def torch(spec: dict):
    """PyTorch's DataLoader over a dataset that reads one example at a time: what it is, and run(batches)."""
    import numpy as np
    from array_record.python.array_record_module import ArrayRecordReader
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Records(Dataset):
        """The records of the encoded set: checksum, label and pixels."""

        def __init__(self):
            card = json.loads((Path(spec["place"]) / "records" / "train" / "card.json").read_text())
            assert list(card["made"]["fields"]) == ["label", "image"]
            self.shape, self.readers = card["made"]["fields"]["image"]["shape"], {}
            self.rows = [(s["name"], i + 1) for s in card["shards"] for i in range(s["examples"])]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            name, row = self.rows[i]
            if name not in self.readers:
                path = Path(spec["place"]) / "records" / "train" / name
                self.readers[name] = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            record = self.readers[name].read([row])[0]
            image = np.frombuffer(record, np.uint8, int(np.prod(self.shape)), 8).reshape(self.shape)
            return {"image": image.copy(), "label": np.frombuffer(record, np.int32, 1, 4)[0]}

    class Folder(Dataset):
        """The PNG files."""

        def __init__(self):
            files = sorted((Path(spec["place"]) / "folder").rglob("*.png"))
            names = sorted({f.parent.name for f in files})
            self.rows = [(str(f), names.index(f.parent.name)) for f in files]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            path, label = self.rows[i]
            return {"image": np.array(Image.open(path))[..., None], "label": label}

    began = time.perf_counter()
    data = {"records": Records, "folder": Folder}[spec["files"]]()

    def forever():
        batches = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        while True:
            yield from batches

    feed = forever()

    def run(batches):
        for _ in range(batches):
            next(feed)

    run(1)
    return {"examples": len(data), "first_batch_s": round(time.perf_counter() - began, 2)}, run
