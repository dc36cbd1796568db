"""Wilson's interval by hand, and its coverage."""

import numpy as np
import pytest
from scipy.stats import binom

from lab.evals.intervals import wilson


def test_wilson_is_its_formula():
    z = 1.959964
    for hits, n in ((3, 10), (0, 50), (50, 50), (1, 1)):
        p = hits / n
        middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        truth = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
        assert wilson(hits, n) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_wilson_covers_as_often_as_it_says(share):
    k = np.arange(101)
    inside = [low <= share <= high for low, high in (wilson(i, 100, 0.9) for i in k)]
    assert binom.pmf(k, 100, share) @ inside == pytest.approx(0.9, abs=0.05)
