# %% [markdown]
# # A first tour of a study's records
#
# A study is a folder of rows, and `lab.open` reads one: here, or at an address such as `gs://bucket/runs/study`. This notebook needs no jax.
# The records beside it are of `experiments/parametrizations.py`: a diffusion transformer on icons, four widths, two rules, four seeds.
# For your own, name another folder; `lab run experiments/quickstart.py` makes one in some minutes.

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/parametrizations")  # a study's folder, here or at gs://

study = lab.open(STUDY)
print(study)
print(study.status())

# %% [markdown]
# ## Rows
#
# `rows` holds every row of every trial, joined with what the sweep set; `finals` the last row of each finished trial. Both are pyarrow tables.

# %%
finals = study.finals()
print(f"{study.rows().num_rows:,} rows, {finals.num_rows} finished trials")
finals.slice(0, 1).to_pylist()[0]

# %% [markdown]
# ## Does the best learning rate stay put?
#
# The optimum of each size is fitted in log2 learning rate. Its *drift* is how far it moves over the ladder, in octaves; its *penalty* the
# relative loss, at the largest size, of using the smallest one's rate. With two seeds or more both get intervals.

# %%
study.transfer()

# %% [markdown]
# ## What does loss cost?
#
# The law of the best loss of each budget, with its interval; what could not be fitted, and why, is told with it.

# %%
study.fit()

# %% [markdown]
# Every answer is what the command of its name prints, with its figures; its numbers are in `told`, and `save` writes a figure for a paper.

# %%
answer = study.transfer()
answer.save("rates.pdf")
{arm: found.drift for arm, (found,) in answer.told.transfers.items()}
