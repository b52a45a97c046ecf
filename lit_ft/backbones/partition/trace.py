"""Graphs of networks: the operations that images go through, with the shape of each result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import NOT_TAKEN, in_eval_mode, of_an_image, on_meta
from lit_ft.errors import UserError

CLASSIFIER = ""
"""Stands for the stage of parameters that belong to none."""


def trace(
    module: nn.Module, stage_of: Mapping[str, str], spec: InputSpec, wrapped: tuple[Callable[..., Any], ...]
) -> fx.Graph:
    """The graph of a network, as `Chain` takes it, whose nodes have their results as ``meta["value"]``."""
    try:
        with in_eval_mode(module):
            graph = _Tracer(module, stage_of, wrapped).trace(module, _options(module))
    except Exception as error:  # a network can fail in any way
        raise _not_traced(module, error) from error
    try:
        _Shapes(module, graph).run(spec.meta_images())
    except NOT_TAKEN as error:
        of_an_image(module, spec)  # raises if the network itself is at fault
        raise _not_traced(module, error) from error
    return graph


def stages_of(
    node: fx.Node, module: nn.Module, stage_of: Mapping[str, str], dependent: Collection[fx.Node]
) -> Iterator[str]:
    """The stages of the parameters that an operation uses.

    Args:
        node: The operation.
        module: The network.
        stage_of: The stage of each parameter.
        dependent: The operations that depend on the images; the parameters of others count to those that use them.
    """
    if node.op == "call_module":
        prefix = f"{node.target}."
        owner = module.get_submodule(str(node.target))
        yield from (stage_of.get(prefix + name, CLASSIFIER) for name, _ in owner.named_parameters())
    elif node.op == "get_attr" and isinstance(_attribute(module, str(node.target)), nn.Parameter):
        yield stage_of.get(str(node.target), CLASSIFIER)
    for arg in node.all_input_nodes:
        if arg not in dependent:
            yield from stages_of(arg, module, stage_of, dependent)


def is_idle(node: fx.Node, module: nn.Module) -> bool:
    """Whether an operation passes its input on in eval mode, as dropout does."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.Dropout, nn.Identity))
    return node.target is F.dropout


def is_pool(node: fx.Node, module: nn.Module) -> bool:
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


def _not_traced(module: nn.Module, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(
        f"`model.backbone`: cannot follow the images through {type(module).__name__} ({reason}); between stages its "
        "forward must not branch on their values or shapes, nor write into tensors or lists"
    )


class _Tracer(fx.Tracer):
    """Traces down to the modules that belong to one stage."""

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
    """Arguments of a network's forward besides the images, such as masks, at their defaults."""
    _, *others = inspect.signature(module.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        option.name: option.default for option in others if option.kind in named and option.default is not option.empty
    }


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
