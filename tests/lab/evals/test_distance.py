"""Distances are exact on Gaussians and mixtures of known moments; floors are what theory says; what differs stands above them."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.linalg
from worlds import splits

from lab.data import field, mixture
from lab.errors import UserError
from lab.evals import distances
from lab.evals._features import flat, principal
from lab.evals.distance import Judge
from lab.evals.distances import directions, frechet, frechet_of, kernel, mmd, moments, sliced


def subject(images):
    """What a judge is called with."""
    return SimpleNamespace(samples={"image": np.asarray(images, np.float32), "label": np.zeros(len(images), np.int32)})


def covariance(rng, d, rank):
    """A random covariance of a rank."""
    a = rng.standard_normal((d, rank))
    return a @ a.T / rank


def circulant(power):
    """Covariance of a field's pixels in row order, [H W, H W]."""
    n = power.size
    f = np.fft.fft2(np.eye(n).reshape(n, *power.shape), norm="ortho").reshape(n, n)
    return np.real(f.conj() @ np.diag(power.ravel()) @ f.T)


def moment_tensors(weights, means, covs):
    """E[x], E[x x'], E[x x x] of a mixture of Gaussians: exact."""
    first, second, third = 0, 0, 0
    for w, m, c in zip(weights, means, covs, strict=True):
        first = first + w * m
        second = second + w * (c + np.outer(m, m))
        mixed = sum(np.einsum(f"{a},{b}->ijk", m, c) for a, b in (("i", "jk"), ("j", "ik"), ("k", "ij")))
        third = third + w * (np.einsum("i,j,k->ijk", m, m, m) + mixed)
    return first, second, third


def exact_kernel(p, q):
    """Squared MMD under (x.y / d + 1)^3 by the binomial theorem: sum_r C(3, r) / d^r |M_r(p) - M_r(q)|^2."""
    d = len(p[0])
    return sum(c / d**r * np.sum((a - b) ** 2) for r, c, a, b in zip((1, 2, 3), (3, 3, 1), p, q, strict=True))


def test_moments_are_unbiased():
    x = np.random.default_rng(0).standard_normal((7, 3)) + 2
    np.testing.assert_allclose(moments(x)[0], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments(x)[1], np.cov(x, rowvar=False), rtol=1e-12)


def test_frechet_of_one_dimension_is_by_hand():
    assert frechet(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == pytest.approx(4 + 1)
    assert frechet(np.zeros(2), np.diag([1.0, 4.0]), np.zeros(2), np.diag([9.0, 4.0])) == pytest.approx(4)


@pytest.mark.parametrize("ranks", [(6, 6), (3, 6), (2, 3), (0, 4), (0, 0)])
def test_frechet_is_bures_distance_at_every_rank(ranks):
    rng = np.random.default_rng(0)
    a, b = (covariance(rng, 6, r) if r else np.zeros((6, 6)) for r in ranks)
    m, n = rng.standard_normal((2, 6))
    value, vector = scipy.linalg.eigh(a)
    root = vector * np.sqrt(value.clip(0)) @ vector.T
    truth = np.sum((m - n) ** 2) + np.trace(a + b) - 2 * np.sqrt(scipy.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    assert frechet(m, a, n, b) == pytest.approx(truth, rel=1e-6)
    assert frechet(m, a, n, b) == pytest.approx(frechet(n, b, m, a), rel=1e-12)


def test_frechet_is_the_published_formula_with_the_root_of_a_product():
    # as the code of arXiv 1706.08500 has it: sqrtm of the product of covariances by numpy, of full rank
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((90, 12)) @ rng.standard_normal((12, 12)), rng.standard_normal((70, 12)) + 0.3
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    truth = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root))
    assert frechet_of(x, y) == pytest.approx(truth, rel=1e-6)


def test_frechet_of_singular_covariances_in_different_planes_is_exact():
    # spans that are orthogonal share nothing; equal ones are at distance 0, to rounding and not to its root
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    a, b = q[:, :10] @ np.diag(np.arange(1.0, 11)) @ q[:, :10].T, q[:, 10:30] @ q[:, 10:30].T
    assert frechet(np.zeros(40), a, np.zeros(40), b) == pytest.approx(55 + 20, rel=1e-13)
    assert frechet(np.zeros(40), a, np.zeros(40), a) < 1e-12
    assert frechet(np.zeros(40), a, np.zeros(40), 4 * a) == pytest.approx(55, rel=1e-13)
    few = rng.standard_normal((5, 40))
    assert frechet_of(few, few) < 1e-12
    assert frechet_of(few, 2 * few) == pytest.approx(np.sum(few.mean(0) ** 2) + np.trace(moments(few)[1]), rel=1e-12)


def test_frechet_of_fields_is_their_exact_w2():
    a, b = field.spectrum(6, 1.0), field.spectrum(6, 3.0)
    zero = np.zeros(36)
    assert frechet(zero, circulant(a), zero, circulant(b)) == pytest.approx(field.wasserstein(a, b) ** 2, rel=1e-12)
    x, y = (np.asarray(splits(size=6, exponent=e)[0].generate(jax.random.key(i), 10000)["image"]) for i, e in enumerate((1.0, 3.0)))
    assert frechet_of(flat(x), flat(y)) == pytest.approx(field.wasserstein(a, b) ** 2, rel=0.02)


def test_frechet_between_mixtures_is_that_of_their_moments():
    s = splits("mixture", size=3, channels=1, classes=2, rank=2)[0]
    m = s.mixture
    w = np.exp(m.log_weight)
    mean = w @ m.mean
    cov = np.einsum("k,krd,kr,kre->de", w, m.basis, m.value, m.basis) + m.noise * np.eye(9)
    cov += np.einsum("k,kd,ke->de", w, m.mean - mean, m.mean - mean)
    x, _ = mixture.sample(m, np.random.default_rng(0), 40000)
    assert frechet_of(x, np.random.default_rng(1).standard_normal((40000, 9)) + 1) == pytest.approx(
        frechet(mean, cov, np.ones(9), np.eye(9)), rel=0.02
    )


def floor_in_theory(value, n, m):
    """Expected Fréchet distance of two samples of one Gaussian with eigenvalues `value`, to second order in the errors."""
    pairs = np.outer(value, value) / (value[:, None] + value)
    second = 0.5 * (pairs.sum() + np.trace(pairs))
    return value.sum() * (1 / n + 1 / m) + second * (1 / (n - 1) + 1 / (m - 1))


@pytest.mark.parametrize("n, m", [(200, 200), (400, 400), (800, 200)])
def test_the_bias_of_frechet_falls_as_theory_says(n, m):
    value = field.spectrum(4, 2.0).ravel()
    rng = np.random.default_rng(0)
    got = [frechet_of(*(np.sqrt(value) * rng.standard_normal((k, 16)) for k in (n, m))) for _ in range(60)]
    truth = floor_in_theory(value, n, m)
    # terms of third order are of relative size d / n
    assert np.mean(got) == pytest.approx(truth, abs=4 * np.std(got) / np.sqrt(60) + truth * 16 / min(n, m))
    assert np.mean(got) > 0.5 * truth


def test_kernel_is_unbiased_between_gaussians():
    scale, rng = np.array([0.6, 0.4, 0.2]), np.random.default_rng(0)
    for shift in (0.0, 0.4):
        truth = exact_kernel(*(moment_tensors([1], [np.full(3, s)], [np.diag(scale**2)]) for s in (0.0, shift)))
        sets = [(scale * rng.standard_normal((30, 3)), scale * rng.standard_normal((20, 3)) + shift) for _ in range(400)]
        value = np.array([kernel(x, y).value for x, y in sets])
        assert (truth == 0) == (shift == 0)
        assert abs(value.mean() - truth) < 4 * value.std() / np.sqrt(400)


def exact_parts(points, p, q, n, m):
    """Squared MMD between weights p and q on the same points, and the two parts of its estimate's variance, by enumeration."""
    k = (points @ points.T / points.shape[1] + 1) ** 3
    f, h = k @ p, k @ q
    first = sum(4 * (w @ (f - h) ** 2 - (w @ (f - h)) ** 2) / size for w, size in ((p, n), (q, m)))
    e = lambda a, b: a @ (k - (k @ b)[:, None] - a @ k + a @ k @ b) ** 2 @ b  # noqa: E731
    second = 2 * e(p, p) / (n * (n - 1)) + 2 * e(q, q) / (m * (m - 1)) + 4 * e(p, q) / (n * m)
    return (p - q) @ k @ (p - q), first, second


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("n, m", [(12, 12), (8, 25)])
def test_kernel_knows_both_parts_of_its_variance(equal, n, m):
    rng, count = np.random.default_rng(0), 2500
    points, (p, q) = rng.uniform(-1, 1, (6, 3)), rng.dirichlet(np.ones(6), 2)
    q = p if equal else q
    truth = exact_parts(points, p, q, n, m)
    got = np.array([mmd(points[rng.choice(6, n, p=p)], points[rng.choice(6, m, p=q)]) for _ in range(count)])
    for k in range(3):
        assert abs(got[:, k].mean() - truth[k]) < 4 * got[:, k].std() / np.sqrt(count)
    square = (got[:, 0] - truth[0]) ** 2
    assert abs(square.mean() - truth[1] - truth[2]) < 4 * square.std() / np.sqrt(count)
    # the part that tells equal distributions is known to 8% at 4 errors, so a wrong factor would show
    assert got[:, 2].std() / np.sqrt(count) < 0.02 * truth[2]
    errors = np.sqrt(np.maximum(got[:, 1], 0) + np.maximum(got[:, 2], 0))
    assert 0.95 < np.sqrt(np.mean(errors**2) / (truth[1] + truth[2])) < 1.5


def test_kernel_between_mixtures_is_that_of_their_third_moments():
    rng = np.random.default_rng(3)
    weights, means = [0.3, 0.7], rng.standard_normal((2, 2))
    factors = rng.standard_normal((2, 2, 2))
    covs = factors @ factors.swapaxes(1, 2)

    def draw(n):
        k = rng.choice(2, n, p=weights)
        return means[k] + np.einsum("nij,nj->ni", factors[k], rng.standard_normal((n, 2)))

    mean, cov = np.average(means, axis=0, weights=weights), np.eye(2)
    truth = exact_kernel(moment_tensors(weights, means, covs), moment_tensors([1], [mean], [cov]))
    got = kernel(draw(4000), rng.multivariate_normal(mean, cov, 3000))
    assert abs(got.value - truth) < 4 * got.error
    assert truth > 4 * got.error


def test_kernel_is_the_sum_it_is_defined_by(monkeypatch):
    monkeypatch.setattr(distances, "ROWS", 4)
    x, y = np.random.default_rng(0).standard_normal((2, 9, 5))
    y = y[:7]
    k = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    xx = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    yy = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    assert kernel(x, y).value == pytest.approx(xx + yy - 2 * np.mean([k(a, b) for a in x for b in y]), rel=1e-12)


def test_directions_are_units_that_never_change():
    v = directions(5, 7)
    np.testing.assert_allclose(np.linalg.norm(v, axis=0), 1)
    np.testing.assert_array_equal(v, directions(5, 7))
    assert not np.allclose(v, directions(5, 7, seed=1))


def test_sliced_is_exact_where_w2_is():
    x = np.random.default_rng(0).standard_normal((50, 4))
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    v = directions(4, 32)
    # a shift moves every projection rigidly; a set repeated is the same distribution, at any size
    assert sliced(x, x + shift, 32) == pytest.approx(np.sqrt(np.mean((shift @ v) ** 2)), rel=1e-12)
    assert sliced(x, np.repeat(x, 3, 0), 32) == pytest.approx(0, abs=1e-12)
    assert sliced(np.repeat(x, 2, 0), np.repeat(x + shift, 3, 0), 32) == pytest.approx(sliced(x, x + shift, 32), rel=1e-12)
    # by hand: {0} to {-1, 0, 2} costs (1 + 0 + 4) / 3; {0, 1} to {0, 0, 3}: [0, 1/3] 0, to 1/2 0, to 2/3 1, to 1 4
    assert sliced(np.zeros((1, 1)), np.array([[-1.0], [0.0], [2.0]]), 1) == pytest.approx(np.sqrt(5 / 3))
    assert sliced(np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [3.0]]), 1) == pytest.approx(np.sqrt(1 / 6 + 4 / 3))


def test_sliced_between_gaussians_is_that_of_their_projections():
    rng = np.random.default_rng(2)
    a, b, m = covariance(rng, 4, 4), covariance(rng, 4, 2), np.array([0.5, 0.0, -1.0, 0.0])
    v = directions(4, 64)
    deviation = [np.sqrt(np.einsum("ip,ij,jp->p", v, c, v)) for c in (a, b)]
    truth = np.sqrt(np.mean((m @ v) ** 2 + (deviation[0] - deviation[1]) ** 2))
    x, y = rng.multivariate_normal(np.zeros(4), a, 20000), rng.multivariate_normal(m, b, 30000)
    assert sliced(x, y, 64) == pytest.approx(truth, rel=0.01)


def test_components_are_those_of_most_variance():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    for n in (2000, 8):  # more or fewer than dimensions
        x = rng.standard_normal((n, 12)) * 2.0 ** -np.arange(12) @ q.T + 5
        got, truth = principal(x, 4), np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:4].T
        np.testing.assert_allclose(np.abs(np.sum(got * truth, 0)), 1, atol=1e-9)
        np.testing.assert_allclose(got.T @ got, np.eye(4), atol=1e-9)
    wide = rng.standard_normal((90, 70)) * 0.8 ** np.arange(70)  # a few of many
    for x in (wide, wide.T):
        got, truth = principal(x, 5), np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:5].T
        np.testing.assert_allclose(np.abs(np.sum(got * truth, 0)), 1, atol=1e-9)
    x = rng.standard_normal((8, 12))
    assert principal(x, 12).shape == (12, 7)  # 8 points span 7 dimensions
    assert abs(principal(rng.standard_normal((2000, 12)) * 2.0 ** -np.arange(12) @ q.T, 1)[:, 0] @ q[:, 0]) > 0.99


def draws(n, key=0, name="field", **options):
    """Fresh examples of a world."""
    return np.asarray(splits(name, **options)[0].generate(jax.random.key(key), n)["image"])


@pytest.mark.parametrize("features", ["raw", "pca", lambda x: x.reshape(len(x), -1)[:, ::2], np.eye(64)[:, ::7]])
def test_fresh_draws_are_at_the_floor_and_others_above_it(features):
    judge = Judge(*splits(size=8), features=features, components=10, n=1000, projections=64, floors=3)
    fresh, shifted, rough = (judge(subject(x)) for x in (draws(500, size=8), draws(500, size=8) + 0.3, draws(500, size=8, exponent=0.0)))
    for name in ("frechet", "kernel", "sliced"):
        floor = fresh[f"distance_{name}_floor"]
        assert floor == shifted[f"distance_{name}_floor"]
        if name == "kernel":
            assert abs(fresh["distance_kernel"]) < 4 * fresh["distance_kernel_error"]
            for wrong in (shifted, rough):
                assert wrong["distance_kernel"] > 4 * wrong["distance_kernel_error"]
        else:
            assert fresh[f"distance_{name}"] == pytest.approx(floor, rel=0.3)
            assert min(w[f"distance_{name}"] for w in (shifted, rough)) > 1.3 * max(floor, fresh[f"distance_{name}"])


def test_the_floor_is_what_theory_says():
    real, train = splits(size=8)
    judge = Judge(real, train, features="raw", n=1000, projections=8, floors=4)
    got = judge(subject(draws(2000, size=8)))
    truth = floor_in_theory(real.power.ravel(), 2000, 1000)
    assert got["distance_frechet_floor"] == pytest.approx(truth, rel=0.1)
    assert abs(got["distance_frechet"] - got["distance_frechet_floor"]) < 5 * got["distance_frechet_floor_std"] < 0.5 * truth
    assert got["distance_frechet_floor"] < 0.7 * judge(subject(draws(500, size=8)))["distance_frechet_floor"]


class Few:
    """Random uint8 pictures in memory."""

    def __init__(self, n, seed):
        self.images = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), np.uint8)
        self.info = {"image": [4, 4, 1]}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": np.int32(0)}


def test_pixels_of_eight_bits_are_read_in_the_models_range():
    real = Few(50, 0)
    judge = Judge(real, Few(50, 1), features="raw")
    same = judge(subject(real.images / 127.5 - 1))
    assert same["distance_frechet"] < 1e-6
    assert same["distance_sliced"] < 1e-6


def test_a_floor_wants_as_many_other_real_pictures():
    x = subject(np.random.default_rng(0).uniform(-1, 1, (30, 4, 4, 1)))
    held = Judge(Few(80, 0), Few(20, 1), n=50)(x)
    trained = Judge(Few(50, 0), Few(40, 1), n=50)(x)
    neither = Judge(Few(50, 0), Few(20, 1), n=50)(x)
    assert {"distance_frechet_floor", "distance_kernel_floor", "distance_sliced_floor"} < set(held) == set(trained)
    assert held["distance_frechet_floor"] > 0
    assert trained["distance_frechet_floor"] > 0
    assert {k for k in held if k.endswith("floor")} == set(held) - set(neither)
    several = Judge(Few(50 + 60, 0), Few(20, 1), n=50)(x)
    assert {k for k in several if k.endswith("floor_std")} == set(several) - set(held)
    assert min(several[k] for k in several if k.endswith("floor_std")) > 0
    assert all(k.startswith("distance_") and isinstance(v, float) for k, v in held.items())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"features": "rwa"}, r"distance.features 'rwa' is unknown \(nearest: 'raw'\)"),
        (
            {"features": "raw", "source": {"size": 128}},
            "distance.features='raw' has 16384 numbers a picture; expected at most 4096, or 'pca'",
        ),
        ({"components": 0}, "distance.components=0 must be a whole number from 1"),
        ({"n": 3.5}, "distance.n=3.5 must be a whole number"),
        ({"source": {"name": "tree"}}, "judges pictures, which source 'tree' has not; its keys: tokens, label"),
    ],
)
def test_bad_options_are_named(options, said):
    given = splits(**{"name": "field", **options.pop("source", {})})
    with pytest.raises(UserError, match=said):
        Judge(*given, **options)


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((8, 4, 4, 3)), r"samples are of shape \[4, 4, 3\], pictures of the source \[4, 4, 1\]"),
        (np.zeros((3, 4, 4, 1)), "needs at least 4 samples; there are 3"),
        (np.full((8, 4, 4, 1), np.nan), "8 of 8 samples are not finite"),
    ],
)
def test_samples_that_cannot_be_judged_are_named(images, said):
    with pytest.raises(UserError, match=said):
        Judge(Few(50, 0), Few(50, 1))(subject(images))
