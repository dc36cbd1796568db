"""The samplers equal diffusers' schedulers on a shared toy model, step counts and starting noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.objectives import flow, gaussian
from lab.objectives.diffusion import Objective

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
schedulers = pytest.importorskip("diffusers.schedulers")

SHAPE = (4, 4, 2)
N = 3
KEY = jax.random.key(0)
SPLIT = jax.random.split(KEY)
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def toy(xp, x, t):
    """A smooth model of x and of time in [0, 1], in numpy's or torch's words."""
    return 0.6 * xp.tanh(x) + 0.3 * xp.cos(2 * x) * t


def mine(objective, steps, **options):
    def model(given):
        return toy(jnp, given["x"], given["t"].reshape(-1, 1, 1, 1))

    return np.asarray(objective.sample(model, KEY, {"label": jnp.zeros(N, int)}, SHAPE, steps, **options))


def theirs(scheduler, steps, start, **options):
    """A scheduler's own loop; channels stay last, as every step is elementwise."""
    scheduler.set_timesteps(steps)
    x = torch.tensor(np.asarray(start))
    for t in scheduler.timesteps:
        x = scheduler.step(toy(torch, x, t / scheduler.config.num_train_timesteps), t, x, **options, return_dict=False)[0]
    return x.numpy()


def start():
    return jax.random.normal(SPLIT[0], (N, *SHAPE))


def noises(steps):
    """The noise of every step of a sampler, as torch tensors."""
    keys = jax.random.split(SPLIT[1], steps)
    return [torch.tensor(np.asarray(jax.random.normal(k, (N, *SHAPE)))) for k in keys]


def near(a, b):
    assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def config(schedule, prediction):
    """What every scheduler is told; the timesteps are the same ones (trailing), the last step is to data."""
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    return {"beta_schedule": name, "prediction_type": PREDICTIONS[prediction], "timestep_spacing": "trailing"}


CASES = [
    ("linear", "eps"),
    ("linear", "x0"),
    ("linear", "v"),
    ("cosine", "x0"),
    ("cosine", "v"),
]  # eps under cosine divides by an alpha of 5e-5


@pytest.mark.parametrize("schedule", gaussian.SCHEDULES)
def test_schedules_agree(schedule):
    alphas = schedulers.DDPMScheduler(**config(schedule, "eps")).alphas_cumprod.numpy()
    near(gaussian.levels(gaussian.schedule(schedule, 1000))[0] ** 2, alphas)


@pytest.mark.parametrize("schedule, prediction", CASES)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_agrees(schedule, prediction, eta, monkeypatch):
    drawn = iter(noises(20))
    monkeypatch.setattr(schedulers.scheduling_ddim, "randn_tensor", lambda *a, **k: next(drawn))
    other = schedulers.DDIMScheduler(**config(schedule, prediction), clip_sample=False, set_alpha_to_one=True)
    near(mine(Objective(schedule, prediction, 0.0), 20, eta=eta), theirs(other, 20, start(), eta=eta))


@pytest.mark.parametrize("schedule, prediction", CASES)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ancestral_agrees_with_the_same_noise(schedule, prediction, clip, monkeypatch):
    drawn = iter(noises(20))
    monkeypatch.setattr(schedulers.scheduling_ddpm, "randn_tensor", lambda *a, **k: next(drawn))
    other = schedulers.DDPMScheduler(**config(schedule, prediction), clip_sample=clip is not None)
    near(mine(Objective(schedule, prediction, 0.0), 20, method="ancestral", clip=clip), theirs(other, 20, start()))


def test_ancestral_agrees_with_a_learned_variance(monkeypatch):
    def said(xp, x, t):
        return [toy(xp, x, t), 0.5 * xp.sin(x)]

    drawn = iter(noises(20))
    monkeypatch.setattr(schedulers.scheduling_ddpm, "randn_tensor", lambda *a, **k: next(drawn).movedim(-1, 1))
    other = schedulers.DDPMScheduler(**config("linear", "eps"), clip_sample=False, variance_type="learned_range")
    other.set_timesteps(20)
    x = torch.tensor(np.asarray(start())).movedim(-1, 1)
    for t in other.timesteps:
        x = other.step(torch.cat(said(torch, x, t / 1000), 1), t, x, return_dict=False)[0]

    def model(given):
        return jnp.concatenate(said(jnp, given["x"], given["t"].reshape(-1, 1, 1, 1)), -1)

    objective, options = Objective("linear", "eps", 0.0, learned_variance=True), {"steps": 20, "method": "ancestral"}
    found = objective.sample(model, KEY, {"label": jnp.zeros(N, int)}, SHAPE, **options)
    near(np.asarray(found), x.movedim(1, -1).numpy())
    assert np.abs(mine(Objective("linear", "eps", 0.0), **options) - found).max() > 1e-2  # the control: a fixed variance


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # theirs, of numpy's copies of tensors
@pytest.mark.parametrize("schedule, prediction", CASES)
@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_solver_agrees(schedule, prediction, steps):
    """Theirs has the last step of order 1 too, as it is to zero noise; it knows no other rule that `steps` would bring in."""
    other = schedulers.DPMSolverMultistepScheduler(**config(schedule, prediction), algorithm_type="dpmsolver++", solver_order=2)
    near(mine(Objective(schedule, prediction, 0.0), steps, method="dpm++2m"), theirs(other, steps, start()))
    ddim = mine(Objective(schedule, prediction, 0.0), steps)
    assert np.abs(ddim - theirs(other, steps, start())).max() > 2e-3  # the control


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_agrees(shift):
    """Their own grid ends at 1/1000 before data, so they are given ours: its sigmas without the last, which they add."""
    nodes = np.linspace(1, 0, 21)[:-1]
    other = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    other.set_timesteps(sigmas=nodes.tolist())
    x = torch.tensor(np.asarray(jax.random.normal(KEY, (N, *SHAPE))))
    for t in other.timesteps:
        x = other.step(toy(torch, x, t / 1000), t, x, return_dict=False)[0]
    options = {"grid": "uniform"} if shift == 1 else {"grid": "shifted", "shift": shift}
    near(mine(flow.Objective("uniform", 0.0), 20, method="euler", **options), x.numpy())
