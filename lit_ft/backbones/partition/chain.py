"""Chains of operations: a traced network, which can be cut where a single tensor that depends on the images is live."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import NOT_TAKEN, in_eval_mode, of_an_image, on_meta
from lit_ft.errors import UserError

_CLASSIFIER = ""  # the stage of parameters that belong to none


@dataclass(frozen=True)
class Network:
    """A network that is to be cut.

    Args:
        module: Images ``(B, C, H, W)`` -> logits, or features where it has no classifier.
        stages: The names of the stages, shallow to deep.
        stage_of: The stage of each parameter, by the parameter's name; what is not in it is the classifier's.
        wrapped: Functions that are not traced into.
        strict: Whether each stage must be found; else those that cannot be cut apart become one.
        prefix_tokens: Number of tokens before those of the patches, for transformers.
        class_token: Whether the first of these is a class token.
        channels_last: Whether the last stage gives ``(B, h, w, D)``.
    """

    module: nn.Module
    stages: list[str]
    stage_of: Mapping[str, str]
    wrapped: tuple[Callable[..., Any], ...] = ()
    strict: bool = True
    prefix_tokens: int = 0
    class_token: bool = False
    channels_last: bool = False


class Chain:
    """The operations of a network in order, and the stage to which each belongs by its parameters.

    Only modules with parameters of several stages are traced into; others are one operation, so that what they do may
    depend on the training mode, on shapes, or on anything else. The training mode of the network is kept.

    Raises:
        UserError: If the network cannot be traced, or cannot take images of ``spec``.
    """

    def __init__(self, network: Network, spec: InputSpec) -> None:
        self.network = network
        self.module = network.module
        graph = _trace(network, spec)
        # What does not depend on the images, such as positions, is computed again in each piece that needs it.
        dependent = {next(iter(graph.nodes))}
        for node in graph.nodes:
            if not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
        *self.nodes, output = [node for node in graph.nodes if node in dependent]
        if not isinstance(output.args[0], fx.Node) or not isinstance(output.args[0].meta["value"], Tensor):
            raise UserError(f"`model.backbone`: {type(self.module).__name__} gives something else than one tensor")
        position = {node: i for i, node in enumerate([*self.nodes, output])}
        self._last_use = [
            max((position[user] for user in node.users if user in dependent), default=-1) for node in self.nodes
        ]
        self._homes = [set(_stages_of(node, network, dependent)) for node in self.nodes]
        self._used: set[str] = set()
        self._published = frozenset(self.module.state_dict())  # for each piece anew it would take long with many stages

    def stage_starts(self) -> dict[str, int]:
        """The position at which each stage begins: as late as possible, so that activations stay with their weights.

        Raises:
            UserError: If the network is strict, and a stage is not used or two cannot be cut apart. Else they become
                one.
        """
        starts: dict[str, int] = {}
        end, before = -1, ""
        for name in self.network.stages:
            places = [i for i, homes in enumerate(self._homes) if name in homes]
            if not places:
                if self.network.strict:
                    raise UserError(f"`model.backbone.stages`: {name}: the network's forward uses nothing of it")
                continue
            cuts = [i for i in range(max(end, 0), places[0]) if self._crossing(i)]
            if not starts:
                starts[name] = 0
            elif cuts:
                starts[name] = cuts[-1] + 1
            elif self.network.strict:
                live = ", ".join(node.name for node in self._live(max(end, places[0] - 1)))
                raise UserError(
                    f"`model.backbone.stages`: {before} and {name} cannot be cut apart: what follows {before} takes "
                    f"more than one tensor ({live}); make them one stage"
                )
            end, before = max(end, places[-1]), name
        return starts

    def features(self) -> int:
        """The position of what the classifier takes, before dropout; without a classifier, that of the result."""
        last = max(i for i, homes in enumerate(self._homes) if homes - {_CLASSIFIER})
        stop = next((i for i, homes in enumerate(self._homes) if _CLASSIFIER in homes), len(self.nodes))
        cuts = [i for i in range(last, stop) if self._crossing(i)]
        if not cuts:
            raise UserError("`model.backbone.stages`: the classifier cannot be cut off: it takes more than one tensor")
        position = cuts[-1]
        while position > last and _is_idle(self.nodes[position], self.module) and self._crossing(position - 1):
            position -= 1
        return position

    def pooling(self, stage: str, features: int) -> int:
        """The position from which on places are joined: after ``stage``, and at most the one after ``features``."""
        first = next(i for i, homes in enumerate(self._homes) if stage in homes)
        pools = (
            i for i in range(first + 1, features + 1) if _is_pool(self.nodes[i], self.module) and self._crossing(i - 1)
        )
        position = next(pools, features + 1)
        # Leaving out tokens that are no patches is pooling, too: the stage outputs them all.
        while position > 2 and self.nodes[position - 1].target is operator.getitem and self._crossing(position - 2):
            position -= 1
        return position

    def axes(self, position: int) -> int:
        """The number of axes of the tensor that goes on after ``position``."""
        tensor = self._crossing(position)
        assert tensor is not None
        return int(tensor.meta["value"].ndim)

    def piece(self, start: int, end: int) -> fx.GraphModule:
        """The operations from ``start`` to ``end`` as a module; its parameters keep their names."""
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        incoming = self._crossing(start - 1) if start else self.nodes[0]
        outgoing = self._crossing(end)
        assert incoming is not None  # as only such places are offered for a cut
        assert outgoing is not None
        env[incoming] = graph.placeholder("inputs" if start else "images")

        def copied(node: fx.Node) -> fx.Node:
            if node not in env:
                env[node] = graph.node_copy(node, copied)
            return env[node]

        for node in self.nodes[max(start, 1) : end + 1]:
            copied(node)
        graph.output(env[outgoing])
        piece = fx.GraphModule(self.module, graph, "Piece").train(self.module.training)
        self._used |= _separate(piece, self._used, self._published)
        return piece

    def _crossing(self, position: int) -> fx.Node | None:
        """The tensor that operations after ``position`` use, if it is a single one."""
        live = self._live(position)
        return live[0] if len(live) == 1 and isinstance(live[0].meta["value"], Tensor) else None

    def _live(self, position: int) -> list[fx.Node]:
        return [node for i, node in enumerate(self.nodes[: position + 1]) if self._last_use[i] > position]


def _separate(piece: fx.GraphModule, used: Collection[str], published: Collection[str]) -> set[str]:
    """Copies the modules that an earlier piece, which may be frozen, has too, and keeps constants out of state dicts.

    ``used`` are the modules of earlier pieces, ``published`` the names in the network's state dict; returned are the
    modules of this piece.
    """
    targets = {str(node.target) for node in piece.graph.nodes if node.op == "call_module"}
    for target in targets.intersection(used):
        if next(piece.get_submodule(target).buffers(), None) is not None:  # statistics would differ from copy to copy
            raise UserError(
                f"`model.backbone.stages`: {target} is used in several stages and keeps statistics; give each stage "
                "one of its own, or make them one stage"
            )
        piece.set_submodule(target, copy.deepcopy(piece.get_submodule(target)))
    for name, buffer in dict(piece.named_buffers()).items():
        if name not in published:
            owner, _, leaf = name.rpartition(".")
            piece.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    return targets


def _trace(network: Network, spec: InputSpec) -> fx.Graph:
    """The graph of a network, whose nodes have their results as ``meta["value"]``."""
    module = network.module
    try:
        # Arguments besides the images, such as masks, have their defaults.
        _, *others = inspect.signature(module.forward).parameters.values()
        named = [option for option in others if option.kind in (option.POSITIONAL_OR_KEYWORD, option.KEYWORD_ONLY)]
        defaults = {option.name: option.default for option in named if option.default is not option.empty}
        with in_eval_mode(module):
            graph = _Tracer(network).trace(module, defaults)
    except Exception as error:  # a network can fail in any way
        with suppress(UserError):  # of images that it does not take, or of having no data
            of_an_image(module, spec)  # raises a fault of the network's own code, which keeps its traceback
        raise _not_traced(module, error) from error
    try:
        _Shapes(module, graph=graph).run(spec.meta_images())
    except NOT_TAKEN as error:
        of_an_image(module, spec)  # raises if the network itself is at fault
        raise _not_traced(module, error) from error
    return graph


def _not_traced(module: nn.Module, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(
        f"`model.backbone`: cannot follow the images through {type(module).__name__} ({reason}); between stages its "
        "forward must not branch on their values or shapes, nor write into tensors or lists"
    )


class _Tracer(fx.Tracer):
    """Traces down to the modules that belong to one stage."""

    proxy_buffer_attributes = True  # else what is worked out of a buffer would be a constant

    def __init__(self, network: Network) -> None:
        super().__init__(autowrap_functions=network.wrapped)
        self._stage_of = network.stage_of

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Lets the shapes of parameters be numbers; torch has no such thing for buffers."""
        self.param_shapes_constant = isinstance(attr_val, nn.Parameter)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        homes = {self._stage_of.get(f"{module_qualified_name}.{name}") for name, _ in m.named_parameters()}
        # Of a classifier, only its layers: there may be pooling within it.
        return len(homes) < 2 and (None not in homes or super().is_leaf_module(m, module_qualified_name))


class _Shapes(fx.Interpreter):
    """Notes the result of each operation, without data or arithmetic."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["value"] = super().run_node(n)
        return n.meta["value"]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return on_meta(self.fetch_attr(target), *args, **kwargs)


def _stages_of(node: fx.Node, network: Network, dependent: Collection[fx.Node]) -> Iterator[str]:
    """The stages of the parameters that an operation uses, also by what does not depend on the images."""
    path = str(node.target)
    if node.op == "call_module":
        owner = network.module.get_submodule(path)
        yield from (network.stage_of.get(f"{path}.{name}", _CLASSIFIER) for name, _ in owner.named_parameters())
    elif node.op == "get_attr" and isinstance(operator.attrgetter(path)(network.module), nn.Parameter):
        yield network.stage_of.get(path, _CLASSIFIER)
    for arg in node.all_input_nodes:
        if arg not in dependent:
            yield from _stages_of(arg, network, dependent)


def _is_idle(node: fx.Node, module: nn.Module) -> bool:
    """Whether an operation passes its input on in eval mode, as dropout does."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.Dropout, nn.Identity))
    return node.target is F.dropout


def _is_pool(node: fx.Node, module: nn.Module) -> bool:
    """Whether an operation joins the places of a map or tokens."""
    name = str(node.target)
    if node.op == "call_module":
        name = type(module.get_submodule(name)).__name__
    if "adaptive" in name.lower() and "pool" in name.lower():
        return True
    inputs = [arg.meta["value"] for arg in node.all_input_nodes]
    joins = any(isinstance(value, Tensor) and value.ndim > 2 for value in inputs)
    result = node.meta["value"]
    return joins and isinstance(result, Tensor) and result.ndim == 2
