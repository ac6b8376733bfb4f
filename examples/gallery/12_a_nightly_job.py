# %% [markdown]
# # What does a week of evenings look like?
#
# Research ends in a job that runs unattended: new bars come in, images are appended, the model scores them,
# the factor goes out. Here are six evenings, one of them with a surprise.

# %%
import matplotlib.pyplot as plt
import polars as pl
import torch

import pricepix as pp
from pricepix import train
from pricepix.train.checkpoints import save_model

torch.manual_seed(0)
small = train.PriceCNN(train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(4, 1)),)))
save_model(small.eval(), "model.ckpt")

bars = pp.samples.simulate(30, 60, seed=3, split_rate=0, delist_rate=0, list_late=0, halt_rate=0)
days = bars["time"].unique().sort()


def feed(day, bars=bars):
    """Write what the vendor has on the evening of a day; return the time."""
    bars.filter(pl.col("time") <= days[day]).write_parquet("bars.parquet")
    return f"{days[day]:%Y-%m-%d} 20:00"


live = {
    "out": "live",
    "data": {"source": "bars.parquet"},
    "image": {"preset": "jkx5"},
    "store": {"horizons": [5], "layout": "bits"},
    "train": {"frozen": "model.ckpt"},
    "score": {"device": "cpu"},
    "update": {"exports": [{"path": "exports/{date}.csv", "last": 1}]},
}

# %% [markdown]
# `update` looks at the bars, compares them with those of the evening before, and does what is missing. The
# second call of an evening finds nothing to do.

# %%
evenings = [pp.update(live, now=feed(day)) for day in range(50, 54)]
print(evenings[-1])
print(pp.update(live, now=feed(53)))

# %% [markdown]
# On the fifth evening the vendor has changed a price of last week. That is not passed over: the job stops,
# names the bar, and changes nothing. Somebody looks, and decides.

# %%
corrected = bars.with_columns(
    pl.when((pl.col("instrument") == "S0003") & (pl.col("time") == days[48]))
    .then(pl.col("high") * 1.2)
    .otherwise(pl.col("high"))
    .alias("high")
)
try:
    pp.update(live, now=feed(54, corrected))
except ValueError as error:
    print(error)

# %%
live["update"]["corrected"] = "accept"
evenings += [pp.update(live, now=feed(day, corrected)) for day in (54, 55)]

# %%
names = [evening.bars_through[:10] for evening in evenings[1:]]
figure, ax = plt.subplots(figsize=(6.4, 3.2))
bottom = [0] * len(names)
for kind, colour in (
    ("scores_added", "#3d85c6"),
    ("scores_revised", "#d9722e"),
    ("returns_filled", "#2e9e73"),
):
    count = [evening.counts[kind] for evening in evenings[1:]]
    ax.bar(names, count, 0.6, bottom=bottom, label=kind.replace("_", " "), color=colour)
    bottom = [low + own for low, own in zip(bottom, count, strict=True)]
ax.set(ylabel="values")
ax.tick_params(axis="x", rotation=20)
ax.legend(loc="upper left", bbox_to_anchor=(0, 1.25), ncols=3)
plt.show()

# %% [markdown]
# Thirty new scores an evening, and thirty returns of a week ago that have become known. The correction made
# the images of one stock that show the bar change, and these were scored again; the factor's journal keeps
# what stood there, so that a backtest can ask what was known when.

# %%
pp.factor.open_cache("live/factor.zarr").scored_at

# %% [markdown]
# In production this is one line of a scheduler, `pricepix-cli --json update live.yaml`, with an exit code for
# each kind of trouble: [Every evening](../every-evening.md).
