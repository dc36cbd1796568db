# %% [markdown]
# # Runs of someone else
#
# Any table with a row a run, as W&B exports it, or histories as CSV, parquet, JSON lines or TensorBoard's event files. Say which column is
# what, and the laws are told as for a study; nothing needs jax. The table beside this notebook is made of the lab's own runs
# (`records/bundle.py`), with the names that W&B's export would give.

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/runs.csv")  # a file of runs, or a folder of TensorBoard's

columns = dict(run="Name", arm="config.parametrization", seed="config.seed", params="config.n_params")
columns |= dict(loss="summary.val/loss", examples="summary.images", flops="summary.train_flops")
theirs = lab.open(STUDY, columns, convention="2 x multiply-adds of forward and backward pass")

# %% [markdown]
# Three lines: laws with intervals and their figure, the figure and the points in files, the paragraph for a paper. Where a table has no FLOPs,
# `flops="6ND"` in place of a column makes them of params and examples.

# %%
laws = theirs.fit()
laws.save("law.pdf"), laws.points("points.csv"), laws.points("points.json")
print(laws.methods())

# %%
laws

# %% [markdown]
# What a budget would buy, and how two arms compare: the same calls as for a study.

# %%
theirs.forecast(1e12)

# %%
theirs.compare("standard", "mup")
