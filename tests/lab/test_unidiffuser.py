"""UniDiffuser: each half reads the other and both times; arrows, cost, errors; and a study that draws captioned pictures."""

import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import axes, cli, cost, record, report, sampling
from lab.axes import Dims
from lab.data.loader import open_source
from lab.errors import UserError
from lab.models import unidiffuser
from lab.objectives import joint
from lab.probe import audit

KNOBS = dict(width=32, depth=3, head_dim=16, mlp_ratio=2, patch=4, image=8, channels=1, text_channels=3, length=5)


def sized(**more):
    return Dims.of(unidiffuser.Model.axes, {**KNOBS, **more}, {"width": 32})


def model(qk_norm=True, **more):
    """A described UniDiffuser."""
    return unidiffuser.Model(sized(**more), qk_norm)


def inputs(n=2):
    rng = np.random.default_rng(0)
    given = {
        "x": rng.normal(size=(n, 8, 8, 1)),
        "text": rng.normal(size=(n, 5, 3)),
        "t": rng.uniform(size=n),
        "t_text": rng.uniform(size=n),
    }
    return {k: jnp.asarray(v, jnp.float32) for k, v in given.items()}


run = jax.jit(lambda m, given: m(given))


def test_both_outputs_are_zero_at_init_and_each_depends_on_all_that_is_given():
    given = inputs()
    assert not any(out.any() for out in run(small.drawn(model(), more=0), given))
    m = small.drawn(model())
    image, words = run(m, given)
    assert (image.shape, words.shape) == (given["x"].shape, given["text"].shape)
    for key, x in given.items():
        for out, other in zip((image, words), run(m, {**given, key: x.at[0].add(0.3)}), strict=True):
            assert float(jnp.abs(other - out)[0].max()) > 1e-3, key
            np.testing.assert_allclose(other[1], out[1], atol=1e-5)
    turned = run(m, {**given, "t": given["t_text"], "t_text": given["t"]})
    assert float(jnp.abs(turned[0] - image).max()) > 1e-3  # which time is whose matters


def test_every_arrow_is_true():
    given = inputs()
    batch, objective = {"image": given["x"], "text": given["text"]}, joint.Objective("uniform", 3)
    assert audit(lambda m, k, b: jnp.mean(objective.loss(m, k, b)), model(depth=5), jax.random.key(0), batch) == {}
    out = jax.eval_shape(lambda m: axes.view(m, jnp.bfloat16)(given), model())
    assert {x.dtype for x in out} == {jnp.dtype(jnp.bfloat16)}


def by_hand(n, width, depth, head_dim, mlp_ratio, patch, image, channels, text_channels, length):
    """FLOPs, forward and loss gradient, by pen; see test_cost."""
    tokens, pixels = (image // patch) ** 2, patch**2 * channels
    ends = 2 * n * width * (tokens * pixels + length * text_channels)  # in, and as much out
    every = tokens + length + 2
    block = 2 * n * every * width * (4 + 2 * mlp_ratio) * width + 2 * 2 * n * width * every * every
    forward = 2 * ends + depth * block + depth // 2 * 2 * n * every * 2 * width * width
    return forward, 3 * forward - ends


@pytest.mark.parametrize("more", [{}, dict(width=64, depth=5, length=3, patch=2)])
def test_flops_equal_the_hand_count_exactly(more):
    m, given = model(**more), inputs()
    given["text"] = given["text"][:, : {**KNOBS, **more}["length"]]
    forward, gradient = by_hand(2, **KNOBS | more)
    assert cost.flops(lambda m, given: m(given), m, given) == forward
    assert cost.flops(jax.grad(lambda m, given: sum(jnp.sum(y**2) for y in m(given))), m, given) == gradient


def test_what_does_not_fit_is_told_in_one_line():
    for said, more in {
        "model.depth=4 must be odd and at least 3": dict(depth=4),
        "this model draws text, and the source gives none": dict(length=0),
        "image size=8 is not a multiple of model.patch=3": dict(patch=3),
    }.items():
        assert said in mistakes.said(model, **more)
    given = inputs()
    for key in given:
        assert f"missing: {key}," in mistakes.said(model(), {k: v for k, v in given.items() if k != key})
    assert "is of texts of 5 words; given: 4" in mistakes.said(model(), {**given, "text": given["text"][:, :4]})


FILE = '''"""Does it run?"""
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(base=dict(width=32), optim=dict(lr=2.0**-7)))
    c.model = dict(name="unidiffuser", width=32, depth=3, head_dim=16, mlp_ratio=1, patch=4, qk_norm=True)
    c.objective = dict(name="joint", time="uniform", words=WORDS, text_channels=8)
    c.data = dict(name="shapes", size=8, grid=1, density="medium", extras=("text",))
    c.train = dict(steps=3, batch=8, log_every=1)
    c.eval = dict(examples=16, batch=8, every=3)
    c.sample = dict(n=4, options=dict(steps=2, guidance=2.0, task="image"))  # a judge asks for other tasks all the same
    c.judge = dict(names=("oracle", "joint"), n=8, options=dict(joint=dict(n=6)))
    return c
'''


def test_a_study_paints_captions_and_its_model_draws_captions_and_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = dict(name="shapes", size=8, grid=1, density="medium", extras=("text",))
    source = open_source(data, "eval", "")
    (tmp_path / "uni.py").write_text(FILE.replace("WORDS", "7"))
    assert cli.main(["run", "uni.py"]) == 2
    assert "size 'words' is" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "uni.py").write_text(FILE.replace("WORDS", str(source.dims["words"])))
    assert cli.main(["run", "uni.py"]) == 0
    rows = record.table("runs/uni").to_pylist()
    assert 0 <= rows[-1]["oracle"] <= 1
    assert all(0 <= rows[-1][f"joint_{k}"] <= 1 for k in ("image", "text", "pair", "text_valid"))
    with np.load(next(tmp_path.glob("runs/uni/*/samples.npz"))) as z:
        assert z["samples"].shape == (4, 8, 8, 3)
    assert cli.main(["sample", "runs/uni", "--prompt", "a red circle", "-n", "2", "--out", "p.png"]) == 0
    capsys.readouterr()
    seen, draw, grid = {}, sampling.sample, report.grid
    monkeypatch.setattr(sampling, "sample", lambda *given: seen.setdefault("drawn", draw(*given)))
    monkeypatch.setattr(report, "grid", lambda images, names, path: (seen.update(images=images, names=names), grid(images, names, path)))

    def drawn(task):
        seen.clear()
        assert cli.main(["sample", "runs/uni", "--option", f"task={task}", "-n", "2", "--out", f"{task}.png"]) == 0
        return capsys.readouterr().out.splitlines()

    for task in ("text", "pair"):  # pictures that are given, or drawn, with the captions drawn for them
        (line,) = drawn(task)
        assert line.endswith(f"{task}.png")
        assert (tmp_path / f"{task}.png").stat().st_size > 1000
        assert seen["names"] == [source.decode(w) for w in seen["drawn"]["words"]]
        shown = [source[i]["image"] for i in range(2)] if task == "text" else seen["drawn"]["image"]
        np.testing.assert_array_equal(seen["images"], shown)
    _, *captions = drawn("text_alone")
    assert captions == [source.decode(w) for w in seen["drawn"]["words"]]
    with pytest.raises(UserError, match="features, which are not words"):
        sampling.spelled(np.zeros((2, 5, 3)), source)
    with pytest.raises(UserError, match=r"has no decode\(text\)"):
        sampling.spelled(seen["drawn"]["words"], small.Source())
