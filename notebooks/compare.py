# %% [markdown]
# # Two methods at the same loss
#
# How many times fewer training FLOPs one arm needs for the loss that another reaches, and whether that factor holds, grows or fades with
# compute. Both arms are fitted with one floor; noise that they share seed by seed leaves the interval ([docs/laws.md](../docs/laws.md)).

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/compute")  # a study's folder, here or at gs://
BASE, ARM = "drawn gates", "adaLN-zero"

study = lab.open(STUDY)
study

# %%
held = study.compare(BASE, ARM)
held

# %%
held.save("compare.pdf")

# %% [markdown]
# An interval around 1 would say that these runs tell no difference; more budgets or seeds could. The records are of `experiments/compute.py`: one learning rate, carried to
# every size by muP. By device-seconds it is told where the records have their timing, which these do not.
