# %% [markdown]
# # Does the best learning rate transfer?
#
# A ladder of sizes, each with its learning rates and seeds. The answer is a verdict an arm, with intervals over seeds:
# how it is reached, and what it was held against, is in [docs/transfer.md](../docs/transfer.md).

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/parametrizations")  # a study's folder, here or at gs://

study = lab.open(STUDY)
study

# %% [markdown]
# Rings are fitted optima, crosses diverged trials; bands go from the lowest to the highest seed.

# %%
carried = study.transfer()
carried

# %% [markdown]
# The numbers, for a text or a table.

# %%
for arm, (found,) in carried.told.transfers.items():
    print(f"{arm}: {found.verdict}; drift {found.drift:+.2f} octaves, interval {found.drift_interval}; penalty {found.penalty:.2%}")

# %% [markdown]
# The figures, for a paper: `.pdf`, `.svg` or `.png`, by the name's end.

# %%
carried.save("rates.pdf")
carried.save("drift.pdf", "drift")

# %% [markdown]
# Where a study varies several sizes or hyperparameters, `study.transfer(over="model.depth", of="optim.weight_decay")` names those meant.
# The big run's experiment file is written by `lab transfer STUDY --to model.width=1024`.
