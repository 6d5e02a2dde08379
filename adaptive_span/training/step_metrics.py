"""What a step has measured, on its way from the device to the host."""

import torch
from torch import Tensor


class StepMetrics:
    """Numbers of one update, sent to the host in one transfer that nobody waits for until they are collected."""

    def __init__(self, step: int, figures: Tensor, spans: Tensor):
        self.step, self.shape = step, spans.shape
        self.numbers = torch.cat([figures, spans.flatten()]).to("cpu", non_blocking=figures.is_cuda)
        self.arrived = torch.cuda.Event() if figures.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def collect(self) -> tuple[int, list[float], list[list[float]]]:
        """Return the step, its figures, and the effective spans in tokens, (N, H)."""
        if self.arrived:
            self.arrived.synchronize()
        figures, spans = self.numbers.split([len(self.numbers) - self.shape.numel(), self.shape.numel()])
        return self.step, figures.tolist(), spans.view(self.shape).tolist()
