# %% [markdown]
# # Does what it learnt last quarter hold in the next?
#
# A market that never closes, candles as ccxt's `fetch_ohlcv` gives them, and the one test that a trader
# believes: train on the past, trade the next stretch, move on, and never look back.

# %%
import matplotlib.pyplot as plt
import polars as pl
import torch

import pricepix as pp
from pricepix import train

torch.set_num_threads(1)
coins = ["BTC", "ETH", "SOL", "XRP", "ADA", "DOT", "LTC", "AVAX", "ATOM", "LINK", "UNI", "ALGO"]
simulated = pp.samples.simulate(
    len(coins), 540, seed=4, bayes_accuracy=0.72, tick=1e-4, volatility=(0.5, 0.9), delist_rate=0, halt_rate=0,
    split_rate=0, list_late=0,
)  # fmt: skip
candles = {}
first, a_day = 1_672_531_200_000, 86_400_000
for coin, rows in zip(coins, simulated.partition_by("instrument"), strict=True):
    # A candle a day, weekends too: [milliseconds, open, high, low, close, volume].
    bars = rows.select("open", "high", "low", "close", "volume").rows()
    candles[f"{coin}/USDT"] = [[first + a_day * day, *bar] for day, bar in enumerate(bars)]
candles["BTC/USDT"][:2]

# %%
panel = pp.Panel.from_table(candles, progress=False)
images = pp.PanelImages(panel, "jkx5", horizons=(5,))
images

# %% [markdown]
# `split="walk"` trains on eight months and tests on the next three, with the windows left out whose return
# reaches from one into the other. Entries are at the close of the image's last bar; `delay=1` above would
# enter a bar later.

# %%
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(4, 1)), train.ConvBlock(8, pool=(2, 1))))
run = train.fit(
    images, network, out="walk", split="walk", train="8m", test="3m", validation=0.1, patience=None,
    epochs=6, lr=5e-3, batch_size=64, progress=False,
)  # fmt: skip
folds = pl.DataFrame(
    {
        "tested from": [str(fold.fold.name) for fold in run.folds],
        "trained on": [len(fold.fold.train) for fold in run.folds],
        "accuracy": [fold.test["accuracy"] for fold in run.folds],
        "error": [fold.test["standard_error"] for fold in run.folds],
    }
)
folds

# %%
figure, ax = plt.subplots(figsize=(6.4, 3))
ax.errorbar(folds["tested from"], folds["accuracy"], yerr=2 * folds["error"], fmt="o", ms=7, capsize=4)
ax.axhline(0.5, lw=1, ls=":", color="#7f8792")
ax.set(ylabel="share of test images right", xlabel="first day of the three months that test")
plt.show()
print(run)

# %% [markdown]
# Every point is a network that has never seen its three months. They scatter, since three months of twelve
# coins are few independent returns: read the bars, two standard errors each, and not the best point. The
# pattern here is planted and does not decay; in a real market the question is whether the points on the right
# are still where those on the left were.
#
# More: [walk-forward splits](../training.md#splits), and what happens when [bars come late or
# change](../every-evening.md).
