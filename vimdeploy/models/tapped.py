"""A model that also returns the inner values of its blocks, so that a comparison can find the first that departs."""

from __future__ import annotations

from torch import Tensor, nn

from vimdeploy.models.family import FamilyModel, find_task


class TappedModel(nn.Module):
    """The task's outputs, followed by the inner values of every block that runs."""

    def __init__(self, model: FamilyModel, task: str) -> None:
        super().__init__()
        self.model = model
        self._task, self._taps = find_task(model, task), model.taps()

    @property
    def outputs(self) -> list[str]:
        """Names of the task's outputs."""
        return list(self._task.outputs)

    @property
    def taps(self) -> list[str]:
        """Names of the inner values, in the order of computation."""
        return [name for tap in self._taps for name in tap.names]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs and the inner values of images (B, C, H, W)."""
        seen: list[Tensor] = []
        hooks = [
            tap.module.register_forward_hook(lambda _module, _inputs, output, tap=tap: seen.extend(tap.read(output)))
            for tap in self._taps
        ]
        try:
            result = self._task.run(images)
        finally:
            for hook in hooks:
                hook.remove()
        return (*result, *seen)
