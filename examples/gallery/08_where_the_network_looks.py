# %% [markdown]
# # Where does the network look?
#
# A market with a planted pattern has an answer to that, too: the shadow of the last bar tells the next five
# days, and nothing else does. If the tools that explain networks are worth anything, they point there.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import pricepix as pp
from pricepix import factor, train

torch.set_num_threads(1)
bars = pp.samples.simulate(
    28, 280, seed=5, bayes_accuracy=0.75, delist_rate=0, halt_rate=0, split_rate=0, list_late=0
)
images = pp.PanelImages(bars, "jkx5", horizons=(5,))
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(2, 1)), train.ConvBlock(16, pool=(2, 1))))
run = train.fit(
    images, network, out="run", test="2000-10-15:", validation=0.1, patience=None,
    epochs=3, lr=3e-3, batch_size=128, progress=False,
)  # fmt: skip
run

# %% [markdown]
# `explain` answers for one window in three ways. Occlusion leaves a bar out, draws the image again and scores
# it: the difference is what the bar did. Integrated gradients share the score out among the pixels. Grad-CAM
# shows where the last convolution was active.

# %%
tested = run.folds[0].fold.test
scores = run.folds[0].predictions
sure = tested[np.argsort(scores)[-1]]
name = str(images.instruments[images.instrument_index[sure]])
one = factor.explain(run, images, name, int(images.time[sure]))
one

# %%
figure, axes = plt.subplots(1, 3, figsize=(6.6, 3.4))
largest = np.abs(one.integrated_gradients).max()
axes[0].imshow(one.image, cmap="gray", interpolation="none")
axes[1].imshow(one.integrated_gradients, cmap="RdBu", vmin=-largest, vmax=largest, interpolation="none")
axes[2].imshow(one.grad_cam, cmap="magma", interpolation="none")
for ax, title in zip(axes, ("image", "integrated gradients", "Grad-CAM"), strict=True):
    ax.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# One window can mislead. Over forty of them, drawn at random from the test part:

# %%
chosen = np.random.default_rng(0).choice(tested, 40, replace=False)
effect = []
for k in chosen:
    found = factor.explain(
        run, images, str(images.instruments[images.instrument_index[k]]), int(images.time[k]), steps=8
    )
    effect.append(found.bars["occlusion"].abs().to_numpy())
mean = np.nanmean(effect, axis=0)

figure, ax = plt.subplots(figsize=(6.2, 3))
ax.bar(range(1, 6), mean, color=["#7f8792"] * 4 + ["#d9722e"])
ax.set(xlabel="bar of the window; 5 is the last", ylabel="mean change of the score\nwithout the bar")
plt.show()

# %% [markdown]
# The last bar decides. The others change the score as well, since they set the scale to which the last one is
# drawn. On real data nobody knows the answer beforehand; what you can ask of a map there is that it does not
# contradict the forecast, and that it is the same for networks that differ only in their seed.
