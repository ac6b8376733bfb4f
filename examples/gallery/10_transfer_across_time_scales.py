# %% [markdown]
# # Does what holds for minutes hold for days?
#
# An image has no clock: five bars of five minutes and five days look alike. So a network that was trained on
# one can score the other. Here both markets carry the same pattern at their own scale; a network that has
# learnt the shape, and not the speed of its market, should work in both.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import pricepix as pp
from pricepix import train

torch.set_num_threads(1)
quiet = {"bayes_accuracy": 0.70, "delist_rate": 0, "halt_rate": 0, "split_rate": 0, "list_late": 0}
markets = {
    "5 minutes": pp.samples.simulate(26, 260, seed=6, interval="5m", **quiet),
    "days": pp.samples.simulate(26, 260, seed=7, **quiet),
}
images = {name: pp.PanelImages(bars, "jkx5", horizons=(5,)) for name, bars in markets.items()}
for name, found in images.items():
    print(name, found)

# %%
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(2, 1)), train.ConvBlock(16, pool=(2, 1))))
runs = {}
for name, found in images.items():
    # The last third of each market tests.
    cut = found.index["time"].sort()[2 * len(found) // 3]
    runs[name] = train.fit(
        found, network, out=f"runs/{name}", test=(str(cut), None), validation=0.1, patience=None,
        epochs=2, lr=3e-3, batch_size=128, progress=False,
    )  # fmt: skip

# %% [markdown]
# Each network scores the test part of both markets.

# %%
names = list(images)
right = np.zeros((2, 2))
for i, trained in enumerate(names):
    for j, tested in enumerate(names):
        rows = runs[tested].folds[0].fold.test
        probability = runs[trained].model.predict(images[tested].read(rows))
        right[i, j] = np.mean((probability > 0.5) == (images[tested].returns(5)[rows] > 0))

figure, ax = plt.subplots(figsize=(5.2, 3.6))
drawn = ax.imshow(right, cmap="Blues", vmin=0.5, vmax=0.7)
for i in range(2):
    for j in range(2):
        ax.text(
            j,
            i,
            f"{right[i, j]:.3f}",
            ha="center",
            va="center",
            color="black" if right[i, j] < 0.62 else "white",
        )
ax.set_xticks(range(2), names)
ax.set_yticks(range(2), names)
ax.set(xlabel="tested on", ylabel="trained on")
figure.colorbar(drawn, label="share right; .7 is the best there is")
plt.show()

# %% [markdown]
# Off the diagonal the network has seen neither the market nor its time scale. That it works there says that
# the images are free of scale, as they should be; whether real patterns are is the question of the paper's
# Tables XI and XII, which [`replicate`](../paper.md) makes from your own bars. There, longer windows are
# drawn with `aggregate=` to the size that the network knows.
