"""Precision, recall, density and coverage are the published formulas; each falls for its own fault and not for the other's."""

from types import SimpleNamespace

import numpy as np
import pytest
from worlds import splits

from lab.errors import UserError
from lab.evals import neighbours
from lab.evals.neighbours import cover, radii
from lab.evals.support import Judge


def direct(real, samples, k):
    """The four numbers by the definitions, one pair at a time."""
    distance = lambda a, b: np.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)))  # noqa: E731
    ball = lambda x: [sorted(distance(a, b) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]  # noqa: E731
    mine, theirs, n, m = ball(real), ball(samples), len(real), len(samples)
    inside = [[distance(x, y) for y in samples] for x in real]
    precision = sum(any(inside[i][j] <= mine[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(inside[i][j] <= theirs[j] for j in range(m)) for i in range(n)) / n
    density = sum(inside[i][j] < mine[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(any(inside[i][j] < mine[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("rows", [8, 1024])
def test_the_four_are_what_they_are_defined_by(k, rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    rng = np.random.default_rng(k)
    real, samples = rng.standard_normal((40, 3)), 1.2 * rng.standard_normal((25, 3)) + 1.0
    found = cover(real, samples, k)
    assert found[:4] == pytest.approx(direct(real, samples, k), abs=1e-12)
    assert 0 < found.precision < 1
    assert 0 < found.coverage < 1
    assert found[:4] == cover(real, samples, k, reach=radii(real, k))[:4]
    assert found.precise.mean() == found.precision


def test_an_independent_library_of_neighbours_gives_the_same():
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    real, samples, k = rng.standard_normal((300, 4)), rng.standard_normal((200, 4)) + 0.5, 5
    reach = cKDTree(real).query(real, k + 1)[0][:, -1]
    np.testing.assert_allclose(radii(real, k), reach, rtol=1e-12)
    hits = [cKDTree(samples).query_ball_point(x, r) for x, r in zip(real, reach, strict=True)]
    found = cover(real, samples, k)
    assert found.density == pytest.approx(sum(map(len, hits)) / (k * 200), abs=1e-6)
    assert found.coverage == pytest.approx(np.mean([len(h) > 0 for h in hits]), abs=1e-6)
    assert found.precision == pytest.approx(len({j for h in hits for j in h}) / 200, abs=1e-6)


def test_a_set_covers_itself():
    x = np.random.default_rng(0).standard_normal((60, 5))
    # each lies in its own ball and in as many others as it is one of the k - 1 nearest of; those at the edge count for recall alone
    assert cover(x, x, 4)[:4] == (1.0, 1.0, 1.0, 1.0)
    assert cover(x, x + 100, 4)[:4] == (0.0, 0.0, 0.0, 0.0)


def test_equal_distributions_have_the_values_that_are_expected():
    rng, k, n, m = np.random.default_rng(0), 4, 80, 60
    found = np.array([cover(rng.standard_normal((n, 3)), rng.standard_normal((m, 3)), k)[2:4] for _ in range(200)])
    i = np.arange(k)
    truth = 1.0, 1 - np.prod((n - 1 - i) / (n + m - 1 - i))
    assert (np.abs(found.mean(0) - truth) < 4 * found.std(0) / np.sqrt(200)).all()


def subject(images):
    """What a judge is called with."""
    return SimpleNamespace(samples={"image": np.asarray(images, np.float32)})


@pytest.fixture(scope="module")
def mixture():
    """The two splits of a mixture of two classes, a judge, and fresh pictures with their labels."""
    real, train = splits("mixture", size=4, channels=1, classes=2)
    items = [train[i] for i in range(3000, 3400)]
    fresh = np.stack([x["image"] for x in items])
    return Judge(real, train, components=8, n=400, floors=4), fresh, np.array([x["label"] for x in items])


def test_fresh_pictures_reach_the_ceiling(mixture):
    judge, fresh, _ = mixture
    found = judge(subject(fresh))
    for name in ("precision", "recall", "density", "coverage"):
        ceiling, std = found[f"support_{name}_ceiling"], found[f"support_{name}_ceiling_std"]
        assert abs(found[f"support_{name}"] - ceiling) < 6 * std + 0.02, name
    assert found["support_precision_low"] < found["support_precision"] < found["support_precision_high"]
    assert all(isinstance(v, float) and k.startswith("support_") for k, v in found.items())


def test_a_class_that_is_never_shown_costs_variety_and_not_fidelity(mixture):
    judge, fresh, label = mixture
    one = fresh[label == 0]
    dropped = judge(subject(np.concatenate([one, one + 1e-3 * np.random.default_rng(0).standard_normal(one.shape)])[: len(fresh)]))
    for name in ("recall", "coverage"):
        assert dropped[f"support_{name}"] < 0.7 * dropped[f"support_{name}_ceiling"], name
    for name in ("precision", "density"):
        assert dropped[f"support_{name}"] > 0.9 * dropped[f"support_{name}_ceiling"], name


def test_noise_and_a_mean_picture_cost_what_they_should(mixture):
    judge, fresh, _ = mixture
    rng = np.random.default_rng(0)
    noise = judge(subject(8 * rng.standard_normal(fresh.shape)))
    assert noise["support_precision"] < 0.1 < noise["support_precision_ceiling"]
    assert noise["support_coverage"] < 0.1 < noise["support_coverage_ceiling"]
    same = judge(subject(fresh[:1] + 1e-4 * rng.standard_normal(fresh.shape)))
    assert same["support_coverage"] < 0.1
    assert same["support_recall"] < 0.1


def test_copies_are_not_told(mixture):
    judge, _, _ = mixture
    train = splits("mixture", size=4, channels=1, classes=2)[1]
    found = judge(subject(np.stack([train[i]["image"] for i in range(400)])))  # `novelty` is for these
    assert found["support_precision"] > 0.9 * found["support_precision_ceiling"]
    assert found["support_recall"] > 0.9 * found["support_recall_ceiling"]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"k": 0}, "support.k=0 must be a whole number from 1 to 1023"),
        ({"n": 8, "k": 8}, "support.k=8 must be a whole number from 1 to 7"),
        ({"features": "pac"}, r"support.features 'pac' is unknown \(nearest: 'pca'\)"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(UserError, match=said):
        Judge(*splits("mixture", size=4, channels=1, classes=2), **options)


def test_too_few_samples_are_named(mixture):
    with pytest.raises(UserError, match="needs at least 6 samples; there are 3"):
        mixture[0](subject(mixture[1][:3]))
