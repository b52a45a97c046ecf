"""Decides where the graph of a network can be cut: where just one tensor that depends on the images is live."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import NOT_TAKEN, in_eval_mode, of_an_image, on_meta
from lit_ft.errors import UserError

CLASSIFIER = ""
"""Stands for the stage of parameters that belong to none."""


class Chain:
    """The operations of a network in order, and the stage to which each belongs by its parameters.

    Only modules with parameters of several stages are looked into; the others are taken as one operation, so that what
    they do may depend on the training mode, on shapes, or on anything else.

    Args:
        module: The network; its training mode is kept.
        stage_of: The stage of each parameter; what is not in it belongs to the classifier.
        spec: The images that it takes.
        wrapped: Functions that are not to be looked into either.

    Raises:
        UserError: If the graph cannot be drawn, or the network cannot take the images.
    """

    def __init__(
        self,
        module: nn.Module,
        stage_of: Mapping[str, str],
        spec: InputSpec,
        wrapped: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        self.module = module
        self.stage_of = stage_of
        graph = self._drawn(wrapped)
        self._run_without_data(graph, spec)
        # What does not depend on the images, such as positions, is worked out again in each piece that needs it.
        dependent = {next(iter(graph.nodes))}
        for node in graph.nodes:
            if any(arg in dependent for arg in node.all_input_nodes):
                dependent.add(node)
        *self.nodes, output = [node for node in graph.nodes if node in dependent]
        if not isinstance(output.args[0], fx.Node) or not isinstance(output.args[0].meta["value"], Tensor):
            raise UserError(f"`model.backbone`: {type(module).__name__} gives something else than one tensor")
        self._position = {node: i for i, node in enumerate([*self.nodes, output])}
        self._last_use = [
            max((self._position[user] for user in node.users if user in dependent), default=-1) for node in self.nodes
        ]
        self._homes = [set(self._homes_of(node)) for node in self.nodes]
        self._used: set[str] = set()
        self._published = frozenset(module.state_dict())  # for each piece anew it would take long with many stages

    def stage_starts(self, names: Sequence[str], strict: bool) -> dict[str, int]:
        """The position at which each stage begins: as late as possible, so that activations stay with their weights.

        Args:
            names: The stages, shallow to deep.
            strict: Whether to refuse when two stages cannot be cut apart; else they become one.

        Raises:
            UserError: If a stage is nowhere used, or (if strict) two cannot be cut apart.
        """
        starts: dict[str, int] = {}
        end, before = -1, ""
        for name in names:
            places = [i for i, homes in enumerate(self._homes) if name in homes]
            if not places:
                if strict:
                    raise UserError(f"`model.backbone.stages`: {name}: the network's forward uses nothing of it")
                continue
            cuts = [i for i in range(end, places[0]) if i >= 0 and self._crossing(i)]
            if not starts:
                starts[name] = 0
            elif cuts:
                starts[name] = cuts[-1] + 1
            elif strict:
                live = ", ".join(node.name for node in self._live(max(end, places[0] - 1)))
                raise UserError(
                    f"`model.backbone.stages`: {before} and {name} cannot be cut apart: what follows {before} takes "
                    f"more than one tensor ({live}); make them one stage"
                )
            end, before = max(end, places[-1]), name
        return starts

    def features(self) -> int:
        """The position of what the classifier takes, before dropout; without a classifier, that of the result."""
        last = max(i for i, homes in enumerate(self._homes) if homes - {CLASSIFIER})
        classifier = [i for i, homes in enumerate(self._homes) if CLASSIFIER in homes]
        stop = classifier[0] if classifier else len(self.nodes)
        cuts = [i for i in range(last, stop) if self._crossing(i)]
        if not cuts:
            raise UserError("`model.backbone.stages`: the classifier cannot be cut off: it takes more than one tensor")
        position = cuts[-1]
        while position > last and self._is_idle(self.nodes[position]) and self._crossing(position - 1):
            position -= 1
        return position

    def pooling(self, stage: str, features: int) -> int:
        """The position after ``stage``, at most that after ``features``, from which on places are joined."""
        first = next(i for i, homes in enumerate(self._homes) if stage in homes)
        pools = (i for i in range(first + 1, features + 1) if self._is_pool(self.nodes[i]) and self._crossing(i - 1))
        position = next(pools, features + 1)
        # What leaves out tokens that are no patches is pooling too: the stage gives them all.
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
        env[incoming] = graph.placeholder("images" if start == 0 else "inputs")

        def copied(node: fx.Node) -> fx.Node:
            if node not in env:
                env[node] = graph.node_copy(node, copied)
            return env[node]

        for node in self.nodes[max(start, 1) : end + 1]:
            copied(node)
        graph.output(env[outgoing])
        piece = fx.GraphModule(self.module, graph, "Piece")
        self._make_its_own(piece)
        return piece

    def _make_its_own(self, piece: fx.GraphModule) -> None:
        """Copies modules that an earlier piece, which may be frozen, has too, and keeps constants out of files."""
        for target in {str(node.target) for node in piece.graph.nodes if node.op == "call_module"}:
            if target in self._used:
                if any(True for _ in piece.get_submodule(target).buffers()):
                    raise UserError(
                        f"`model.backbone.stages`: {target} is used in several stages and keeps statistics; give each "
                        "stage one of its own, or make them one stage"
                    )
                piece.set_submodule(target, copy.deepcopy(piece.get_submodule(target)))
            self._used.add(target)
        for name in dict(piece.named_buffers()).keys() - self._published:
            owner, _, leaf = name.rpartition(".")
            piece.get_submodule(owner)._non_persistent_buffers_set.add(leaf)

    def _drawn(self, wrapped: tuple[Callable[..., Any], ...]) -> fx.Graph:
        try:
            with in_eval_mode(self.module):
                return _Tracer(self.module, self.stage_of, wrapped).trace(self.module, _options(self.module))
        except Exception as error:  # a network can fail in any way
            raise self._not_followed(error) from error

    def _not_followed(self, error: Exception) -> UserError:
        reason = str(error).partition("\n")[0]
        return UserError(
            f"`model.backbone`: cannot follow the images through {type(self.module).__name__} ({reason}); between "
            "stages its forward must not branch on their values or shapes, nor write into tensors or lists"
        )

    def _run_without_data(self, graph: fx.Graph, spec: InputSpec) -> None:
        try:
            _Shapes(self.module, graph).run(spec.meta_images())
        except NOT_TAKEN as error:
            of_an_image(self.module, spec)  # tells of it if the network itself is at fault
            raise self._not_followed(error) from error

    def _homes_of(self, node: fx.Node) -> Iterator[str]:
        """The stages of the parameters that an operation uses."""
        if node.op == "call_module":
            prefix = f"{node.target}."
            owner = self.module.get_submodule(str(node.target))
            yield from (self.stage_of.get(prefix + name, CLASSIFIER) for name, _ in owner.named_parameters())
        elif node.op == "get_attr" and isinstance(_attribute(self.module, str(node.target)), nn.Parameter):
            yield self.stage_of.get(str(node.target), CLASSIFIER)
        for arg in node.all_input_nodes:
            if arg not in self._position:
                yield from self._homes_of(arg)

    def _crossing(self, position: int) -> fx.Node | None:
        """The tensor that all after ``position`` needs, if it is one and no more."""
        live = self._live(position)
        return live[0] if len(live) == 1 and isinstance(live[0].meta["value"], Tensor) else None

    def _live(self, position: int) -> list[fx.Node]:
        return [node for i, node in enumerate(self.nodes[: position + 1]) if self._last_use[i] > position]

    def _is_idle(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.module.get_submodule(str(node.target)), (nn.Dropout, nn.Identity))
        return node.target is F.dropout

    def _is_pool(self, node: fx.Node) -> bool:
        name = str(node.target)
        if node.op == "call_module":
            name = type(self.module.get_submodule(name)).__name__
        if "adaptive" in name.lower() and "pool" in name.lower():
            return True
        inputs = [arg.meta["value"] for arg in node.all_input_nodes]
        joins = any(isinstance(value, Tensor) and value.ndim > 2 for value in inputs)
        result = node.meta["value"]
        return joins and isinstance(result, Tensor) and result.ndim == 2


class _Tracer(fx.Tracer):
    """Draws the graph down to the modules that belong to one stage."""

    proxy_buffer_attributes = True  # else what is worked out of a buffer would be a constant

    def __init__(self, root: nn.Module, stage_of: Mapping[str, str], wrapped: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=wrapped)
        self._stage_of = stage_of

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

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)

    def run_node(self, n: fx.Node) -> Any:
        n.meta["value"] = super().run_node(n)
        return n.meta["value"]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return on_meta(self.fetch_attr(target), *args, **kwargs)


def _options(module: nn.Module) -> dict[str, Any]:
    """What a network's forward can be told besides the images, such as masks: it is left at its defaults."""
    _, *others = inspect.signature(module.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        option.name: option.default for option in others if option.kind in named and option.default is not option.empty
    }


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
