# %% [markdown]
# # Two methods at the same loss
#
# How many times fewer training FLOPs one arm needs for the loss that another reaches, and whether that factor holds, grows or fades with
# compute. Both arms are fitted with one floor; noise that they share seed by seed leaves the interval ([docs/laws.md](../docs/laws.md)).

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/parametrizations")  # a study's folder, here or at gs://
BASE, ARM = "standard", "mup"

study = lab.open(STUDY)
study

# %%
held = study.compare(BASE, ARM)
held

# %%
held.save("compare.pdf")

# %% [markdown]
# An interval around 1 says that these runs tell no difference; more budgets or seeds would. Both arms are tuned at every size here, which is
# not what a transferred rate costs: that is `study.transfer()`.
