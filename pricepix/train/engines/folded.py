"""Networks as they multiply fastest on a CPU: batch norm folded into convolutions, activations fused, no dropout.

What is folded is a copy that only scores: it does not learn, and does not follow changes of the weights.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pricepix.train.models import Network, PriceCNN
from pricepix.train.modules import ModuleNetwork

__all__ = ["cache_batch", "fold_network", "probe_inputs"]

# Both round differently: logits of trained networks, which lie below 5, differ by less than 1e-5. More is no rounding.
_TOLERANCE = 1e-5

# Measured with jkx5, jkx20, jkx60 and cnn49u on one core: more than 16 images gain nothing, and a layer's output beyond
# this many bytes falls out of the shared cache: cnn49u scored 8 images at once at half the rate of 2 to 4.
_BATCH = 16
_LAYER_BYTES = 23 << 20

_log = logging.getLogger("pricepix.train")


class FusedConv(nn.Module):
    """A convolution and the activation after it as one operation of oneDNN, its weights laid out for it in advance.

    torch has no public name for it; these are the operations to which ``torch.compile`` lowers on CPUs. Where they are
    missing, or give something else, nothing is folded.

    Parameters
    ----------
    conv : torch.nn.Conv2d
    activation : str
        ``none``, ``relu`` or ``leaky_relu``.
    slope : float
        Of ``leaky_relu``.
    """

    def __init__(self, conv: nn.Conv2d, activation: str, slope: float) -> None:
        super().__init__()
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach().contiguous(memory_format=torch.channels_last), *self._geometry, None
        )
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._activation, self._scalars = activation, [slope] if activation == "leaky_relu" else []

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, channels, height, width), channels last in memory."""
        x = x.contiguous(memory_format=torch.channels_last)
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, self._activation, self._scalars, ""
        )
        return found


class WideLinear(nn.Module):
    """A linear layer whose sums, over up to 184,320 features, are of float64: in float32 they are what differs most.

    It costs a hundredth of the time of the convolutions before it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight, self._bias = linear.weight.detach().double(), linear.bias.detach().double()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, outputs) of features (n, features)."""
        return functional.linear(x.double(), self._weight, self._bias).float()


class RowPairs(nn.Module):
    """Maximum of each two rows: torch's pooling of (2, 1) took three times as long."""

    def __init__(self, keeps_last: bool) -> None:
        super().__init__()
        self._keeps_last = keeps_last

    def forward(self, x: Tensor) -> Tensor:
        """Halves the rows of (n, channels, rows, columns); an odd last one stays or goes."""
        n, channels, rows, columns = x.shape
        pairs, rest = divmod(rows, 2)
        keep = rest if self._keeps_last else 0
        out = torch.empty(
            (n, channels, pairs + keep, columns), dtype=x.dtype, memory_format=torch.channels_last
        )
        torch.maximum(x[:, :, 0 : 2 * pairs : 2], x[:, :, 1 : 2 * pairs : 2], out=out[:, :, :pairs])
        if keep:
            out[:, :, pairs] = x[:, :, -1]
        return out


def fold_network(network: Network) -> Network | None:
    """Return a copy of a network that scores the same, faster; None where there is no such copy.

    Parameters
    ----------
    network : Network
        In float32 on the CPU. Of a user's module torch.fx must be able to follow the forward pass.

    Notes
    -----
    The copy is compared with the network on a few inputs, and dropped if it differs by more than rounding does.
    """
    if not isinstance(network, PriceCNN | ModuleNetwork) or network.takes != "images":
        return None
    if any(value.device.type != "cpu" or value.dtype != torch.float32 for value in network.parameters()):
        return None
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    if hooked or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return None
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            folded = _folded_copy(network)
            if folded is not None and _differs(network, folded):
                _log.debug("%s scores as it is: folded, it gives something else", network.spec.name)
                return None
    except Exception as error:  # of any kind: a user's forward, or what torch does not know how to follow
        _log.debug("%s scores as it is, not folded: %s", network.spec.name, error)
        return None
    return folded


def _folded_copy(network: Network) -> Network | None:
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    if isinstance(copied, PriceCNN):
        blocks = _folded(copied.blocks)
        if blocks is None:
            return None
        copied.blocks, copied.dropout = blocks, nn.Identity()  # type: ignore[assignment]
        copied.linear = WideLinear(copied.linear)  # type: ignore[assignment]
    else:
        assert isinstance(copied, ModuleNetwork)
        module = _folded(copied.module)
        if module is None:
            return None
        copied.module = module
    return copied


def _folded(module: nn.Module) -> nn.Module | None:
    """Return what a module in evaluation computes, with fused layers; None if it has no convolution to fuse."""
    try:
        return _fused(module)
    except Exception:  # of any kind: torch.fx cannot follow the whole, but may follow the sequences in it
        found = [
            (name, folded)
            for name, part in module.named_children()
            if isinstance(part, nn.Sequential | nn.ModuleList) and (folded := _folded(part)) is not None
        ]
        for name, folded in found:
            module.set_submodule(name, folded)
        return module if found else None


def _fused(module: nn.Module) -> nn.Module | None:
    graph = fx.Tracer().trace(module)
    traced = fx.GraphModule(module, graph)
    layers = dict(traced.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    once = {node.target for node in calls if sum(other.target == node.target for other in calls) == 1}
    fused = 0
    for node in calls:
        place = str(node.target)
        layer = layers[place]
        if isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            _skip(graph, node)
        elif isinstance(layer, nn.MaxPool2d) and _pairs_rows(layer):
            traced.set_submodule(place, RowPairs(layer.ceil_mode))
        elif isinstance(layer, nn.Conv2d) and node.target in once and _is_plain(layer):
            _fuse(graph, node, layer, layers, once, traced)
            fused += 1
    if not fused:
        return None
    graph.lint()
    traced.recompile()
    return traced


def _fuse(
    graph: fx.Graph,
    node: fx.Node,
    conv: nn.Conv2d,
    layers: dict[str, nn.Module],
    once: set[Any],
    traced: fx.GraphModule,
) -> None:
    """Take the batch norm and the activation after a convolution into it."""
    after = _only_user(node)
    if after is not None and after.op == "call_module" and after.target in once:
        norm = layers[str(after.target)]
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            conv = _with_norm(conv, norm)
            _skip(graph, after)
            after = _only_user(node)
    activation, slope = _activation(after, layers)
    if after is not None and activation != "none":
        _skip(graph, after)
    traced.set_submodule(str(node.target), FusedConv(conv, activation, slope))


def _skip(graph: fx.Graph, node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args[:1] == (node,) else None


def _is_plain(conv: nn.Conv2d) -> bool:
    return not isinstance(conv.padding, str) and conv.padding_mode == "zeros" and type(conv) is nn.Conv2d


def _pairs_rows(pool: nn.MaxPool2d) -> bool:
    wide, stride = _pair(pool.kernel_size), _pair(pool.stride)
    plain = _pair(pool.padding) == (0, 0) and _pair(pool.dilation) == (1, 1) and not pool.return_indices
    return wide == stride == (2, 1) and plain


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution that gives what the batch norm after another gives in evaluation; sums in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * factor
    found = copy.deepcopy(conv)
    found.weight = nn.Parameter(
        (conv.weight.double() * factor[:, None, None, None]).float(), requires_grad=False
    )
    found.bias = nn.Parameter(shift.float(), requires_grad=False)
    return found


def _activation(node: fx.Node | None, layers: dict[str, nn.Module]) -> tuple[str, float]:
    """Return the activation that a node computes, as oneDNN calls it, and its slope."""
    if node is None:
        return "none", 0.0
    if node.op == "call_module":
        layer = layers[str(node.target)]
        if isinstance(layer, nn.LeakyReLU):
            return "leaky_relu", layer.negative_slope
        return ("relu" if type(layer) is nn.ReLU else "none"), 0.0
    if node.op == "call_function" and node.target in (functional.relu, torch.relu):
        return "relu", 0.0
    return "none", 0.0


def probe_inputs(network: Network, n: int = 2) -> Tensor:
    """Return a few inputs that are the same each time, one pixel in eight white."""
    generator = torch.Generator().manual_seed(0)
    if network.takes != "images":
        return torch.rand((n, *network.input_shape), generator=generator)
    return (torch.rand((n, *network.input_shape), generator=generator) < 0.125).to(torch.uint8) * 255


def _differs(network: Network, folded: Network) -> bool:
    was_training = network.training
    network.eval()
    try:
        inputs = probe_inputs(network)
        expected, found = network(inputs), folded(inputs)
    finally:
        network.train(was_training)
    bound = _TOLERANCE * expected.abs().max().clamp(min=1.0)
    # A network of NaN stays what it is: whoever asks it for scores says so.
    return not bool(((expected - found).abs() <= bound).all())


def cache_batch(network: Network) -> int:
    """Return how many images to score at once, so that the largest output of a layer stays in a CPU's cache."""
    largest = 1

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    was_training = network.training
    network.eval()
    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        with torch.inference_mode():
            network(probe_inputs(network, 1))
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    fitting = max(1, _LAYER_BYTES // largest)
    return min(_BATCH, 1 << int(math.log2(fitting)))
