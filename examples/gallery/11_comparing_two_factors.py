# %% [markdown]
# # Is the network better than a straight line?
#
# A referee will ask whether a logistic regression on the same numbers does as well. Two factors, the same
# bars, the same dates: `compare` says how far apart they are, and how sure that is.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import pricepix as pp
from pricepix import factor, train

torch.set_num_threads(1)
panel = pp.Panel.of(
    pp.samples.simulate(
        40, 320, seed=9, bayes_accuracy=0.62, delist_rate=0, halt_rate=0, split_rate=0, list_late=0
    )
)
images = pp.PanelImages(panel, "jkx5", horizons=(5,))
learn = {"test": "2000-08-01:", "validation": 0.1, "patience": None, "batch_size": 128, "progress": False}
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(2, 1)), train.ConvBlock(16, pool=(2, 1))))
runs = {
    "network": train.fit(images, network, out="network", epochs=2, lr=3e-3, **learn),
    "logistic": train.fit(images, "logistic", out="logistic", epochs=6, lr=1e-2, panel=panel, **learn),
}
for name, run in runs.items():
    print(f"{name}: {run.test['accuracy']:.3f}, standard error {run.test['standard_error']:.3f}")

# %%
caches = {
    name: factor.score(images, run, f"{name}.zarr", start="2000-08-01", panel=panel, progress=False)
    for name, run in runs.items()
}
found = factor.compare(
    caches["network"],
    caches["logistic"],
    panel,
    names=("network", "logistic"),
    horizon=5,
    quantiles=5,
    rebalance="week",
)
found.table()

# %%
time = found.series["time"]
figure, ax = plt.subplots(figsize=(6.4, 3.4))
for name in caches:
    ax.plot(np.asarray(time, "M8[ns]"), np.cumsum(np.nan_to_num(found.series[name])), label=name)
ax.axhline(0, lw=0.8, color="#7f8792")
ax.set(ylabel="sum of long-short returns,\nbefore costs")
ax.legend()
figure.autofmt_xdate()
plt.show()

# %% [markdown]
# Read the interval of the difference, not the two lines: months are drawn with replacement, each with all of
# its dates, so that what happens to both factors in one month does not count as evidence for either. Where it
# covers zero, the honest sentence is that these bars do not tell the two apart.
#
# Here the straight line wins, and there is a reason: the planted pattern, the shadow of a bar, is a
# difference of two of the numbers that the regression gets, while the network has to learn from pixels what a
# shadow is. On real bars neither is known beforehand, which is why the baseline belongs beside every network.
#
# The definitions: [two factors](../evaluation.md#two-factors).
