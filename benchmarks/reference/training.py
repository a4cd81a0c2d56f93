"""One optimiser step as a first version writes it: AdamW and a moving average, tensor by tensor."""

from abc import ABC, abstractmethod

import torch


class PlainTraining(ABC):
    """Calls of `step()` train the given tensors on `loss()`."""

    def __init__(self, parameters: list[torch.Tensor], lr: float, decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.average = [p.detach().clone() for p in parameters]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr)

    @abstractmethod
    def loss(self) -> torch.Tensor:
        """The loss of a step, a scalar."""

    def step(self) -> torch.Tensor:
        """Forward, backward, AdamW, moving average. Returns the loss."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average, self.parameters, strict=True):
                mean.mul_(self.decay).add_(value, alpha=1 - self.decay)
        return loss.detach()
