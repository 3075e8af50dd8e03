"""A training with Lightning, as a user writes one; the test runs it as a script, and kills it.

python train_lightning.py DIRECTORY VERSION [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from eventlog.integrations.lightning import EventlogLogger


class Regression(lightning.LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch: list[torch.Tensor], at: int) -> torch.Tensor:
        (x,) = batch
        loss = (self.layer(x) - x.sum(1, keepdim=True)).pow(2).mean()
        self.log("loss", loss)
        return loss

    def test_step(self, batch: list[torch.Tensor], at: int) -> None:
        self.log("test_loss", self.training_step(batch, at))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SaysItsStep(lightning.Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, *others: object) -> None:
        print(f"step {trainer.global_step}", flush=True)


def data() -> DataLoader:  # type: ignore[type-arg]
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("version")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()

    trainer = lightning.Trainer(
        logger=EventlogLogger(project="demo", version=options.version, save_dir=options.directory),
        default_root_dir=options.directory,
        accelerator="cpu",
        max_steps=options.steps,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[SaysItsStep()],
    )
    trainer.fit(Regression(), data())


if __name__ == "__main__":
    main()
