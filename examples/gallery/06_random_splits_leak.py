# %% [markdown]
# # Does a random split leak?
#
# Yes, and so much that a model which knows nothing looks like a discovery. The market below is a random walk:
# no image says anything about any later return, and an honest accuracy is one half.

# %%
import matplotlib.pyplot as plt
import numpy as np

import pricepix as pp
from pricepix import train

bars = pp.samples.simulate(12, 500, seed=11, delist_rate=0, halt_rate=0, split_rate=0, list_late=0)
images = pp.PanelImages(bars, "jkx60", horizons=(5, 20, 60))
images

# %% [markdown]
# Instead of a network, take the simplest model that remembers: it looks for the most similar training image
# and repeats what happened then. Images are blurred to 12 by 15 first, so that a chart and the same chart a
# day later are similar. Whatever has enough parameters can learn to do the same.

# %%
blurred = images.read().reshape(len(images), 12, 8, 15, 12).mean(axis=(2, 4)).reshape(len(images), -1)


def accuracy(horizon, split):
    """Return the share of test windows whose rise or fall the most similar training image tells."""
    returns = images.returns(horizon)
    samples = train.Samples.from_store(images, horizon, np.isfinite(returns))
    fold = split.folds(samples)[0]
    held_out = fold.validation if isinstance(split, train.RandomSplit) else fold.test
    known, asked = blurred[fold.train], blurred[held_out]
    nearest = fold.train[np.argmax(2 * asked @ known.T - (known**2).sum(axis=1), axis=1)]
    return np.mean((returns[nearest] > 0) == (returns[held_out] > 0))


horizons = [5, 20, 60]
at_random = [accuracy(h, train.RandomSplit(seed=1)) for h in horizons]
by_date = [accuracy(h, train.TimeSplit(test="2001-06-01:")) for h in horizons]
for h, leaked, honest in zip(horizons, at_random, by_date, strict=True):
    print(f"returns over {h:2} bars: {leaked:.3f} right under the random split, {honest:.3f} by date")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4))
place = np.arange(len(horizons))
ax.bar(place - 0.2, at_random, 0.38, label="random split", color="#d9722e")
ax.bar(place + 0.2, by_date, 0.38, label="split by date, purged", color="#3d85c6")
ax.axhline(0.5, lw=1, ls="--", color="#7f8792")
ax.text(2.75, 0.5, "a coin", ha="right", va="center", fontsize=10)
ax.set_xticks(place, [f"{h} bars" for h in horizons])
ax.set(ylim=(0, 1), xlim=(-0.5, 2.8), xlabel="horizon of the return", ylabel="share right")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()

# %% [markdown]
# The window of Tuesday shares 19 of 20 bars with the window of Monday, and most of its return. A random split
# puts one into training and the other into validation. The longer the horizon, the more of the label is
# shared, and the better nothing looks. Two things stop it: cut by date, and leave out the training windows
# whose return ends behind the cut. `train.TimeSplit` and `train.WalkForward` do both; `train.RandomSplit` is
# there to replicate papers, and says what it does.
#
# One run on 12 simulated stocks is a demonstration, not a measurement: the bars by date differ from one half
# by chance, and windows that overlap make that chance large.
#
# More: [splits](../training.md#splits), and [splits for
# scikit-learn](../plain-torch.md#splits-without-images).
