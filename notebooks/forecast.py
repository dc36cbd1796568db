# %% [markdown]
# # What will a budget buy?
#
# The loss that the law foretells at a budget of training FLOPs, with intervals of 50% and 90%: of the law, and of one run. Where the records
# tell sizes and data apart it also says which size is best there, and what another would cost.

# %%
import os

import lab

STUDY = os.environ.get("LAB_STUDY", "records/compute")  # a study's folder, here or at gs://

study = lab.open(STUDY)
budget = 10 * max(study.finals()["flops"].to_pylist())

# %%
ahead = study.forecast(budget)
ahead

# %% [markdown]
# In numbers, an arm a line: the loss, and the 90% interval of one run. A forecast is as good as its form: what other forms say stands beside it.

# %%
for arm, told in ahead.told.items():
    print(f"{arm}: {told.loss:.4g}, {told.run[-1]}; {told.beyond:.3g} times beyond the largest budget; other forms: {told.forms.keys()}")

# %%
ahead.save("forecast.pdf")
