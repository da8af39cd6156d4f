"""The portable body of ``CausalConv1d``; see :mod:`vimdeploy.graph.body`."""

from __future__ import annotations

from dataclasses import dataclass

from vimdeploy import contract
from vimdeploy.graph.body import INT_MAX, Attributes, integer, ints


@dataclass(frozen=True)
class ConvBody:
    """What a body of ``CausalConv1d`` depends on."""

    directions: tuple[int, ...]
    activation: str
    width: int

    @classmethod
    def of(cls, values: Attributes, weight: tuple[int, ...]) -> ConvBody:
        """Return the body that a node's attributes and the shape of its weight (G, E, K) ask for."""
        return cls(tuple(values["directions"]), values["activation"].decode(), weight[-1])

    @property
    def op(self) -> contract.CustomOp:
        """``CausalConv1d``."""
        return contract.CAUSAL_CONV1D

    def lines(self) -> list[str]:
        """Return its nodes: K shifted multiply-adds per group, channels last, no transpose."""
        width, pad = self.width, self.width - 1
        lines = [
            "x_f = Cast <to = 1> (x)",
            "w_f = Cast <to = 1> (weight)",
            "b_f = Cast <to = 1> (bias)",
            ints("pads", 0, pad, 0, 0, pad, 0),
            "padded = Pad (x_f, pads)",
            ints("tokens", 1),
            ints("first", 0),
        ]
        # One shifted view of the padded tokens per offset, shared by the groups: a forward group's tap k sits at
        # offset k, a backward group's at offset K - 1 + k.
        offsets = sorted({k + (pad if d == -1 else 0) for d in self.directions for k in range(width)})
        for offset in offsets:
            end = offset - 2 * pad or (INT_MAX)
            lines += [
                ints(f"start{offset}", offset),
                ints(f"end{offset}", end),
                f"shifted{offset} = Slice (padded, start{offset}, end{offset}, tokens)",
            ]
        for g, direction in enumerate(self.directions):
            lines += [
                integer(f"g{g}", g),
                f"w{g} = Gather <axis = 0> (w_f, g{g})",
                f"acc{g}_0 = Gather <axis = 0> (b_f, g{g})",
            ]
            for k in range(width):
                offset = k + (pad if direction == -1 else 0)
                lines += [
                    integer(f"k{g}_{k}", k),
                    f"w{g}_{k} = Gather <axis = 1> (w{g}, k{g}_{k})",
                    f"p{g}_{k} = Mul (shifted{offset}, w{g}_{k})",
                    f"acc{g}_{k + 1} = Add (acc{g}_{k}, p{g}_{k})",
                ]
            result = f"acc{g}_{width}"
            if self.activation == "silu":
                lines += [f"s{g} = Sigmoid ({result})", f"a{g} = Mul ({result}, s{g})"]
                result = f"a{g}"
            lines.append(f"out{g} = Unsqueeze ({result}, first)")
        groups = ", ".join(f"out{g}" for g in range(len(self.directions)))
        lines += [f"u_f = Concat <axis = 0> ({groups})", "u = CastLike (u_f, x)"]
        return lines
