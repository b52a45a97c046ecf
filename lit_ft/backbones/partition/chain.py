"""Chains of operations, which can be cut where a single tensor that depends on the images is live."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.trace import CLASSIFIER, is_idle, is_pool, stages_of, trace
from lit_ft.errors import UserError


class Chain:
    """The operations of a network in order, and the stage to which each belongs by its parameters.

    Only modules with parameters of several stages are traced into; others are one operation, so that what they do may
    depend on the training mode, on shapes, or on anything else.

    Args:
        module: The network; its training mode is kept.
        stage_of: The stage of each parameter; what is not in it belongs to the classifier.
        spec: The images that it takes.
        wrapped: Functions that are not traced into.

    Raises:
        UserError: If the network cannot be traced, or cannot take the images.
    """

    def __init__(
        self,
        module: nn.Module,
        stage_of: Mapping[str, str],
        spec: InputSpec,
        wrapped: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        self.module = module
        graph = trace(module, stage_of, spec, wrapped)
        # What does not depend on the images, such as positions, is computed again in each piece that needs it.
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
        self._homes = [set(stages_of(node, module, stage_of, dependent)) for node in self.nodes]
        self._used: set[str] = set()
        self._published = frozenset(module.state_dict())  # for each piece anew it would take long with many stages

    def stage_starts(self, names: Sequence[str], strict: bool) -> dict[str, int]:
        """The position at which each stage begins: as late as possible, so that activations stay with their weights.

        Args:
            names: The stages, shallow to deep.
            strict: Whether to refuse when two stages cannot be cut apart; else they become one.

        Raises:
            UserError: If strict, and a stage is not used or two cannot be cut apart.
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
        while position > last and is_idle(self.nodes[position], self.module) and self._crossing(position - 1):
            position -= 1
        return position

    def pooling(self, stage: str, features: int) -> int:
        """The position from which on places are joined: after ``stage``, and at most the one after ``features``."""
        first = next(i for i, homes in enumerate(self._homes) if stage in homes)
        pools = (
            i for i in range(first + 1, features + 1) if is_pool(self.nodes[i], self.module) and self._crossing(i - 1)
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
        env[incoming] = graph.placeholder("images" if start == 0 else "inputs")

        def copied(node: fx.Node) -> fx.Node:
            if node not in env:
                env[node] = graph.node_copy(node, copied)
            return env[node]

        for node in self.nodes[max(start, 1) : end + 1]:
            copied(node)
        graph.output(env[outgoing])
        piece = fx.GraphModule(self.module, graph, "Piece")
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

    Args:
        piece: The piece; its modules are replaced.
        used: The names of the modules of earlier pieces.
        published: The names in the state dict of the network.

    Returns:
        The names of the modules of this piece.

    Raises:
        UserError: If such a module keeps statistics, which would differ from copy to copy.
    """
    targets = {str(node.target) for node in piece.graph.nodes if node.op == "call_module"}
    for target in targets.intersection(used):
        if any(True for _ in piece.get_submodule(target).buffers()):
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
