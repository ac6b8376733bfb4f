# %% [markdown]
# # Would the network find a pattern if there were one?
#
# Before you believe a network that finds nothing, or one that finds something, give it a market where you
# know the answer. Here the shadow of a bar tells the sign of the return over the next five bars in 70 of 100
# cases. No rule can be right more often, and in a second market, a random walk, none can be right more often
# than a coin.

# %%
import matplotlib.pyplot as plt
import torch

import pricepix as pp
from pricepix import train

torch.set_num_threads(1)
quiet = {"delist_rate": 0, "halt_rate": 0, "split_rate": 0, "list_late": 0}
markets = {
    "pattern": pp.samples.simulate(28, 280, seed=5, bayes_accuracy=0.70, **quiet),
    "random walk": pp.samples.simulate(28, 280, seed=5, **quiet),
}

# %% [markdown]
# A small network of two blocks, the same for both, trained on the first nine months and tested on the last
# three.

# %%
blocks = (train.ConvBlock(8, pool=(2, 1)), train.ConvBlock(16, pool=(2, 1)))
network = train.CNNSpec("small", 32, 15, blocks, dropout=0.25)
runs = {}
for name, bars in markets.items():
    images = pp.PanelImages(bars, "jkx5", horizons=(5,))
    runs[name] = train.fit(
        images, network, out=f"runs/{name}", test="2000-10-15:", validation=0.1, patience=None,
        epochs=2, lr=3e-3, batch_size=128, progress=False,
    )  # fmt: skip
runs["pattern"]

# %%
figure, ax = plt.subplots(figsize=(6.4, 2.4))
for place, (name, run) in enumerate(runs.items()):
    found = run.test
    ax.errorbar(found["accuracy"], place, xerr=2 * found["standard_error"], fmt="o", capsize=4, ms=8)
    error = found["standard_error"]
    print(f"{name}: {found['accuracy']:.3f} of {found['images']:,} test images, standard error {error:.3f}")
ax.axvline(0.5, lw=1, ls=":", color="#7f8792")
ax.axvline(0.7, lw=1, ls="--", color="#7f8792")
ax.text(0.5, 1.45, "a coin", ha="center")
ax.text(0.7, 1.45, "the best there is", ha="center")
ax.set_yticks(range(len(runs)), runs)
ax.set(ylim=(-0.5, 1.4), xlim=(0.44, 0.74), xlabel="share of test images right, with two standard errors")
plt.show()

# %% [markdown]
# The network finds most of what is there, and nothing where nothing is. That says that the road from bars to
# predictions works: images, labels, splits, training. It says nothing about real markets, where patterns are
# weaker by an order of magnitude, change, and are traded away.
#
# Next: [where the network looks](where-the-network-looks.md) to find it.
