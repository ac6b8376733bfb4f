"""Attribution maps of a network: Grad-CAM of its first and last convolution, by captum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pricepix.train.models import PriceCNN

__all__ = ["grad_cam"]


def grad_cam(
    network: PriceCNN, images: NDArray[np.uint8], batch: int = 64, layers: Literal["ends", "all"] = "ends"
) -> Mapping[str, NDArray[np.float32]]:
    """Map which pixels raise the probability of a rise (Selvaraju et al., 2017).

    Activations of a convolution, weighted by the mean gradient of the upper class's logit over each channel's
    map, summed, cut off below 0, enlarged to the image and divided by the image's largest value.

    Parameters
    ----------
    network : PriceCNN
        With one convolution or more.
    images : numpy.ndarray, uint8 (n, height, width)
    batch : int
    layers : {"ends", "all"}
        Of the first and the last convolution, or of each.

    Returns
    -------
    dict
        ``first`` and ``last``, or ``1`` and on for all: float32 (n, height, width), 0 to 1, row 0 at the top.

    Raises
    ------
    ImportError
        Without captum; the message is the line that installs it.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise ImportError('attribution maps need captum: pip install "pricepix[attribution]"') from error
    import torch

    if len(network.blocks) == 0:
        raise ValueError(f"{network.spec.name} has no convolution: there is nothing to map")
    all_layers = {str(k + 1): k for k in range(len(network.blocks))}
    target = network.spec.outputs - 1
    device = network.mean.device
    was_training = network.training
    network.eval()
    maps: dict[str, NDArray[np.float32]] = {}
    try:
        ends = {"first": 0, "last": -1}
        for name, place in (ends if layers == "ends" else all_layers).items():
            cam = LayerGradCam(_logits(network), _convolution(network, place))
            parts = []
            for a in range(0, len(images), batch):
                part = torch.from_numpy(np.require(images[a : a + batch], requirements="W")).to(device)
                found = cam.attribute(part, target=target, relu_attributions=True)
                whole = LayerAttribution.interpolate(found, tuple(images.shape[1:]), "bilinear")
                parts.append(whole[:, 0].detach().cpu().numpy())
            heat = np.concatenate(parts) if parts else np.empty(images.shape, np.float32)
            if network.spec.first_row == "bottom":
                heat = heat[:, ::-1]
            top = heat.max(axis=(1, 2), keepdims=True, initial=0.0)
            maps[name] = np.divide(heat, top, out=np.zeros_like(heat), where=top > 0)
    finally:
        network.train(was_training)
    return maps


def _convolution(network: PriceCNN, block: int) -> Any:
    layers: Any = network.blocks[block]
    return layers[0]


def _logits(network: PriceCNN) -> Any:
    """Wrap the network in a function: captum would ask a module for gradients of pixels, which bytes lack."""

    def forward(images: Any) -> Any:
        return network(images)

    return forward
