# %% [markdown]
# # What is a network worth in a market with little history?
#
# A market with long history and one with a few weeks of it, and the same pattern in both. Train on the short
# history alone, take the network from the large market as it is, or let that network learn on from the little
# there is?

# %%
import matplotlib.pyplot as plt
import torch

import pricepix as pp
from pricepix import train

torch.set_num_threads(1)
quiet = {"bayes_accuracy": 0.72, "delist_rate": 0, "halt_rate": 0, "split_rate": 0, "list_late": 0}
large = pp.PanelImages(pp.samples.simulate(30, 220, seed=1, **quiet), "jkx5", horizons=(5,))
small = pp.PanelImages(pp.samples.simulate(20, 160, seed=2, **quiet), "jkx5", horizons=(5,))
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(2, 1)), train.ConvBlock(16, pool=(2, 1))))
learn = {"validation": 0.1, "patience": None, "batch_size": 64, "progress": False}

source = train.fit(large, network, out="large", epochs=2, lr=3e-3, **learn)
checkpoint = "large/member_0/best.ckpt"

# %% [markdown]
# The small market trains on its first seven weeks: some four hundred images, of which neighbours overlap. The
# rest tests.

# %%
learn |= {"train": ":2000-02-20", "test": "2000-03-10:"}
runs = {
    "trained from nothing": train.fit(small, network, out="nothing", epochs=6, lr=1e-3, **learn),
    "the large market's,\nonly its last layer learns": train.fit(
        small, network, out="last", init=checkpoint, freeze="features", epochs=3, lr=1e-3, **learn
    ),
    "the large market's,\nall of it learns slowly": train.fit(
        small, network, out="all", init=checkpoint, layer_lr={"features": 0.1}, epochs=3, lr=1e-3, **learn
    ),
}
print(len(runs["trained from nothing"].folds[0].fold.train), "training images")

# %%
figure, ax = plt.subplots(figsize=(6.4, 2.8))
for place, (name, run) in enumerate(runs.items()):
    found = run.test
    ax.errorbar(found["accuracy"], place, xerr=2 * found["standard_error"], fmt="o", capsize=4, ms=8)
    label, error = name.replace("\n", " "), found["standard_error"]
    print(f"{label}: {found['accuracy']:.3f}, standard error {error:.3f}")
ax.axvline(0.5, lw=1, ls=":", color="#7f8792")
ax.axvline(0.72, lw=1, ls="--", color="#7f8792")
ax.set_yticks(range(len(runs)), runs)
ax.set(ylim=(-0.6, 2.6), xlim=(0.44, 0.76), xlabel="share of test images right; dashed: the best there is")
plt.show()

# %% [markdown]
# The pattern is the same in both markets by construction, which is the best case for a network from
# elsewhere. Where markets differ, the third way is the one to try, and the first is the control that says
# whether it helped.
#
# `init=` takes checkpoints of pricepix, of other projects, and files of plain tensors:
# [fine-tuning](../training.md#fine-tuning).
