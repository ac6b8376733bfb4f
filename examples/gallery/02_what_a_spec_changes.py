# %% [markdown]
# # What does a spec change?
#
# Everything that decides a pixel stands in an `ImageSpec`: how many bars, how many rows, averages, volume,
# the style. Change one field, and look at the same window again.

# %%
import matplotlib.pyplot as plt

import pricepix as pp

panel = pp.Panel.from_table(pp.samples.bundled(), adjust="multiply", progress=False)
instrument, day = "OAK", "2022-10-14"


def draw(spec):
    """Return the image of the window that ends on the day, drawn by a spec."""
    return pp.PanelImages(panel, spec, horizons=()).image(instrument, day)


# %% [markdown]
# The published images of the paper are presets; the others follow from one of them with `replace`.

# %%
paper = pp.ImageSpec.preset("jkx20")
specs = {
    "jkx20, as published": paper,
    "without volume": paper.replace(volume=False),
    "without average": paper.replace(ma=()),
    "two averages": paper.replace(ma=(5, 20)),
    "half the rows": paper.replace(height=32),
    "twice the rows": paper.replace(height=128),
    "5 bars (jkx5)": pp.ImageSpec.preset("jkx5"),
    "60 bars (jkx60)": pp.ImageSpec.preset("jkx60"),
    "60 bars, merged by 3": pp.ImageSpec(60, aggregate=3, height=64, ma=(60,), volume=True),
}
figure, axes = plt.subplots(3, 3, figsize=(6.6, 6.2))
for ax, (name, spec) in zip(axes.flat, specs.items(), strict=True):
    image = draw(spec)
    ax.imshow(image, cmap="gray", interpolation="none")
    ax.set(title=f"{name}\n{image.shape[0]}x{image.shape[1]}", xticks=[], yticks=[])
    ax.title.set_fontsize(10)
plt.show()

# %% [markdown]
# Read it as a network would. Without volume the prices get all rows, so that small moves become visible. With
# 60 bars the last week, which matters for a forecast over five days, is twelfth of the picture. Merging three
# bars into one keeps 60 days in the width of 20 and loses what happened inside of each three.
#
# A spec is a value: it can be compared, kept as a dictionary, and names itself by a digest that stores, runs
# and factors carry with them.

# %%
paper.replace(ma=(5, 20))

# %% [markdown]
# ## With sliders
#
# In a running notebook, with `pip install ipywidgets`, move the fields yourself. Every image is drawn anew,
# which takes less time than the browser needs to show it.

# %% tags=["hide-output"]
try:
    import ipywidgets
except ImportError:
    print("pip install ipywidgets for the sliders")
else:

    @ipywidgets.interact(lookback=[5, 20, 60], height=(16, 128, 8), average=(0, 60, 5), volume=True)
    def show(lookback=20, height=64, average=20, volume=True):
        _, ax = plt.subplots(figsize=(3, 3))
        ma = (average,) if average else ()
        ax.imshow(
            draw(pp.ImageSpec(lookback, height=height, ma=ma, volume=volume)),
            cmap="gray",
            interpolation="none",
        )
        ax.set(xticks=[], yticks=[])
        plt.show()


# %% [markdown]
# Every rule behind these pictures is written down in [The pixels](../pixels.md).
