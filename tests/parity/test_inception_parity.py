"""Inception-v3's features are those of the published network, written anew in PyTorch from its list of layers, on random weights."""

import numpy as np
import pytest
from worlds import splits

from lab.errors import UserError
from lab.evals import distance
from lab.evals._inception import Inception

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
F = torch.nn.functional

# block: branch: the convolutions (name, channels out, kernel, stride, padding) that follow one another
ONE, THREE, FIVE, HALF = (1, 1, 0), (3, 1, 1), (5, 1, 2), (3, 2, 0)
WIDE, TALL, WIDE3, TALL3 = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0)), ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))


def conv(name, out, how):
    return name, out, *how


def a(pool):
    return [
        [conv("branch1x1", 64, ONE)],
        [conv("branch5x5_1", 48, ONE), conv("branch5x5_2", 64, FIVE)],
        [conv("branch3x3dbl_1", 64, ONE), conv("branch3x3dbl_2", 96, THREE), conv("branch3x3dbl_3", 96, THREE)],
        ["mean", conv("branch_pool", pool, ONE)],
    ]


def c(n):
    seven = [("7x7_1", n, ONE), ("7x7_2", n, WIDE), ("7x7_3", 192, TALL)]
    twice = [("7x7dbl_1", n, ONE), ("7x7dbl_2", n, TALL), ("7x7dbl_3", n, WIDE), ("7x7dbl_4", n, TALL), ("7x7dbl_5", 192, WIDE)]
    return [
        [conv("branch1x1", 192, ONE)],
        [conv(f"branch{k}", out, how) for k, out, how in seven],
        [conv(f"branch{k}", out, how) for k, out, how in twice],
        ["mean", conv("branch_pool", 192, ONE)],
    ]


def e(pool):
    three = conv("branch3x3_1", 384, ONE)
    twice = [conv("branch3x3dbl_1", 448, ONE), conv("branch3x3dbl_2", 384, THREE)]
    return [
        [conv("branch1x1", 320, ONE)],
        [three, conv("branch3x3_2a", 384, WIDE3)],
        [three, conv("branch3x3_2b", 384, TALL3)],
        [*twice, conv("branch3x3dbl_3a", 384, WIDE3)],
        [*twice, conv("branch3x3dbl_3b", 384, TALL3)],
        [pool, conv("branch_pool", 192, ONE)],
    ]


B = [
    [conv("branch3x3", 384, HALF)],
    [conv("branch3x3dbl_1", 64, ONE), conv("branch3x3dbl_2", 96, THREE), conv("branch3x3dbl_3", 96, HALF)],
    ["halve"],
]
SEVEN = [("7x7x3_1", 192, ONE), ("7x7x3_2", 192, WIDE), ("7x7x3_3", 192, TALL), ("7x7x3_4", 192, HALF)]
D = [
    [conv("branch3x3_1", 192, ONE), conv("branch3x3_2", 320, HALF)],
    [conv(f"branch{k}", out, how) for k, out, how in SEVEN],
    ["halve"],
]


def blocks(fid):
    """The whole network: the stem's convolutions and pools, then the blocks."""
    yield "", [[conv("Conv2d_1a_3x3", 32, HALF), conv("Conv2d_2a_3x3", 32, (3, 1, 0)), conv("Conv2d_2b_3x3", 64, THREE), "halve"]]
    yield "", [[conv("Conv2d_3b_1x1", 80, ONE), conv("Conv2d_4a_3x3", 192, (3, 1, 0)), "halve"]]
    yield from zip(("Mixed_5b", "Mixed_5c", "Mixed_5d"), (a(32), a(64), a(64)), strict=True)
    yield "Mixed_6a", B
    yield from zip(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), (c(128), c(160), c(160), c(192)), strict=True)
    yield "Mixed_7a", D
    yield "Mixed_7b", e("mean")
    yield "Mixed_7c", e("max" if fid else "mean")


def network(x, fid, weights, rng):
    """Features of x [B, 3, 299, 299]; tensors that are not there yet are drawn, as random ones of the published shapes."""

    def one(name, x, out, kernel, stride, padding):
        h, w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if f"{name}.conv.weight" not in weights:
            weights[f"{name}.conv.weight"] = rng.normal(0, (2 / (x.shape[1] * h * w)) ** 0.5, (out, x.shape[1], h, w))
            for k, (low, high) in {
                "weight": (0.8, 1.2),
                "bias": (-0.2, 0.2),
                "running_mean": (-0.2, 0.2),
                "running_var": (0.5, 1.5),
            }.items():
                weights[f"{name}.bn.{k}"] = rng.uniform(low, high, out)
        t = {k: torch.tensor(weights[f"{name}.{k}"]) for k in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
        y = F.conv2d(x, t["conv.weight"], stride=stride, padding=padding)
        return F.relu(F.batch_norm(y, t["bn.running_mean"], t["bn.running_var"], t["bn.weight"], t["bn.bias"], eps=0.001))

    pools = {
        "mean": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=not fid),
        "max": lambda x: F.max_pool2d(x, 3, 1, 1),
        "halve": lambda x: F.max_pool2d(x, 3, 2),
    }
    for block, branches in blocks(fid):
        outs = []
        for branch in branches:
            y = x
            for step in branch:
                y = pools[step](y) if isinstance(step, str) else one(f"{block}.{step[0]}".lstrip("."), y, *step[1:])
            outs.append(y)
        x = torch.cat(outs, 1)
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Weights that fit both networks, and pictures [B, h, w, 3] in [-1, 1]."""
    rng, weights = np.random.default_rng(0), {}
    images = rng.uniform(-1, 1, (2, 40, 33, 3)).astype(np.float32)
    network(seen(images), True, weights, rng)
    return weights, images, tmp_path_factory.mktemp("inception")


def seen(images):
    x = torch.tensor(images.transpose(0, 3, 1, 2)).double()
    return F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)


def saved(folder, weights, classes, name="inception.safetensors", **changes):
    from safetensors.numpy import save_file

    out = {k: v.astype(np.float32) for k, v in weights.items()}
    out |= {"fc.weight": np.zeros((classes, 2048), np.float32), "AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1), np.float32)}
    out |= {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64), **changes}
    save_file({k: v for k, v in out.items() if v is not None}, folder / name)
    return str(folder / name)


def test_there_are_as_many_numbers_as_are_published(drawn):
    weights, _, _ = drawn
    # torchvision's, less its auxiliary head and its classes; moments of norms are no parameters there
    norms = sum(len(v) for k, v in weights.items() if k.endswith("running_mean"))
    assert sum(v.size for v in weights.values()) - 2 * norms == 27_161_264 - 3_326_696 - 2_049_000


@pytest.mark.parametrize("classes", [1008, 1000])
def test_features_are_those_of_the_published_network(drawn, classes):
    weights, images, folder = drawn
    found = Inception(saved(folder, weights, classes))(images)
    truth, other = (network(seen(images), fid, weights, None).numpy() for fid in (classes == 1008, classes != 1008))
    assert found.shape == (2, 2048)
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    assert np.linalg.norm(found - truth) < 1e-4 * np.linalg.norm(truth - truth.mean())
    assert np.linalg.norm(found - other) > 1e-2 * np.linalg.norm(other)  # the two are not the same


def test_files_of_another_network_are_named(drawn):
    weights, _, folder = drawn
    seven, one = "Mixed_6c.branch7x7_2", "Mixed_5b.branch1x1"
    for classes, changes, said in (
        (10, {}, "has 10 classes; expected 1008"),
        (1008, {f"{seven}.bn.weight": None}, f"no tensor '{seven}.bn.weight'"),
        (1008, {f"{seven}.conv.weight": None}, f"no tensor '{seven}.conv.weight'"),
        (1008, {f"{one}.bn.bias": np.zeros(63, np.float32)}, "of other shapes"),
        (1008, {f"{one}.conv.weight": np.zeros((64, 5, 1, 1), np.float32)}, "of other shapes"),
    ):
        with pytest.raises(UserError, match=said):
            Inception(saved(folder, weights, classes, **changes))
    for file, said in (
        (str(folder / "none.safetensors"), "damaged or no safetensors file"),
        (str(folder / "pt_inception-2015-12-05.pth"), "safetensors.torch as s; s.save_file"),
    ):
        with pytest.raises(UserError, match=said):
            Inception(file)
    source = splits("mixture", size=4, channels=1, classes=2)
    with pytest.raises(UserError, match="is a pickle"):
        distance.Judge(*source, features="pt_inception-2015-12-05.pth")
