# %% [markdown]
# # Loss against compute
#
# The law of each arm's loss by size, data and training FLOPs, fitted to the best of every size and horizon. Every number has a 90% interval,
# and larger budgets are held out to see whether the law foretells them: [docs/laws.md](../docs/laws.md).

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/compute")  # a study's folder, here or at gs://

study = lab.open(STUDY)
study

# %%
laws = study.fit()
laws

# %% [markdown]
# The figure and the points for a paper, and a paragraph for its section of methods.

# %%
laws.save("law.pdf")
laws.points("points.csv")
print(laws.methods())

# %% [markdown]
# In numbers: the law that goes first, and the points it was fitted to.

# %%
for arm, found in laws.told.arms.items():
    if found.laws:
        law = found.laws.fits[0]
        print(
            f"{arm}: exponents {law.exponents}, of {len(law.points.loss)} points, {law.points.flops.min():.3g} to {law.points.flops.max():.3g} FLOPs"
        )
