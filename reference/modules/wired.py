"""A model of several parts as one torch module, generated from the parts and the wires between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoform.signature import Signature
from isoform.steps import load_step
from isoform.wiring import main_part, needed


class Wired(nn.Module):
    """Every part at its roots, so that parameters have the whole model's names; runs those that the main part needs.

    Host steps between the parts are run through NumPy. Inputs are those of the parts, in the order in which they run,
    that no wire feeds and that are no states; outputs are the main part's.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        signatures: Mapping[str, Signature],
        roots: Mapping[str, Mapping[str, str]],
        wires: Mapping[str, str],
        steps: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self._ports = {
            name: ([port.name for port in signature.given], [port.name for port in signature.outputs])
            for name, signature in signatures.items()
        }
        # A tuple, so that torch does not register the parts a second time; None stands for a host step.
        self._nodes = tuple((name, parts.get(name)) for name in needed([main_part(signatures)], wires, parts))
        self._wires, self._steps = dict(wires), dict(steps)
        self._shared: Sequence[tuple[nn.Module, nn.Module]] = ()
        places = [
            (outer, part.get_submodule(inner)) for name, part in parts.items() for inner, outer in roots[name].items()
        ]
        for outer, module in sorted(places, key=lambda place: place[0].count(".")):  # what holds others goes first
            self._place(module, outer)

    def _place(self, module: nn.Module, path: str) -> None:
        """Register a module at a dotted path; one that is there already gets what it lacks, and shares its weights."""
        *parents, leaf = path.split(".")
        owner: nn.Module = self
        for name in parents:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        if leaf in owner._modules:
            there = owner.get_submodule(leaf)
            _complete(there, module)
            self._shared = (*self._shared, (module, there))
        else:
            owner.add_module(leaf, module)

    def share(self) -> None:
        """Give modules that stand at the same path the same parameters."""
        for module, source in self._shared:
            found = dict(source.named_modules())
            for path, owner in module.named_modules():
                owner._parameters.update({name: found[path]._parameters[name] for name in owner._parameters})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One pass of every part, with empty states."""
        given = iter(inputs)
        values: dict[str, Tensor] = {}
        outputs: tuple[Tensor, ...] = ()
        for name, part in self._nodes:
            if part is None:
                values |= self._host_step(name, values)
                continue
            taken, made = self._ports[name]
            for port in taken:
                source = self._wires.get(f"{name}.{port}")
                values[f"{name}.{port}"] = next(given) if source is None else values[source]
            outputs = part(*(values[f"{name}.{port}"] for port in taken))
            values |= {f"{name}.{port}": tensor for port, tensor in zip(made, outputs, strict=False)}
        return outputs

    def _host_step(self, name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        step = load_step(name)
        sources = {port: values[self._wires[f"{name}.{port}"]] for port in step.INPUTS}
        floats = next((tensor for tensor in sources.values() if tensor.is_floating_point()), None)
        # NumPy has no bfloat16; every one is a float32 too.
        wide = {port: x.float() if x.dtype == torch.bfloat16 else x for port, x in sources.items()}
        made = step.run({port: tensor.cpu().numpy() for port, tensor in wide.items()}, **self._steps[name])
        tensors = {f"{name}.{port}": torch.from_numpy(array) for port, array in made.items()}
        return {
            port: x.to(floats) if floats is not None and x.is_floating_point() else x for port, x in tensors.items()
        }


def _complete(module: nn.Module, other: nn.Module) -> None:
    """Give `module` the parameters and modules that only `other` has."""
    for name, parameter in other._parameters.items():
        module._parameters.setdefault(name, parameter)
    for name, child in other.named_children():
        if name in module._modules:
            _complete(module.get_submodule(name), child)
        else:
            module.add_module(name, child)
