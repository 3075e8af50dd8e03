"""Lightning's WandbLogger: metrics, hyper-parameters, a watched model, a table and an image."""

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


class Regression(L.LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def loss_of(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return (self.net(inputs) - targets).pow(2).mean()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.loss_of(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val/loss", self.loss_of(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


L.seed_everything(0)
inputs = torch.randn(32, 3)
loader = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=8)
model = Regression()
logger = WandbLogger(project="lightning", name="regression", tags=["l"], log_model=False)
logger.watch(model, log="gradients", log_freq=2)
logger.experiment.config["dataset"] = "toy"
trainer = L.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=logger,
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(model, loader, loader)
logger.log_table("examples", columns=["x", "y"], data=[[1, 2], [3, 4]])
logger.log_image("pixels", [np.zeros((4, 4, 3), np.uint8)], caption=["black"])
logger.experiment.finish()
