"""Accelerate's tracker."""

import torch
from accelerate import Accelerator

torch.manual_seed(0)
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True, log_with="wandb")
accelerator.init_trackers(
    "accelerated",
    config={"lr": 0.1, "steps": 4},
    init_kwargs={"wandb": {"name": "tracked", "tags": ["accelerate"]}},
)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
inputs = torch.randn(16, 3)
for step in range(4):
    loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).pow(2).mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.log({"loss": loss.item(), "step_squared": step**2}, step=step)
tracker = accelerator.get_tracker("wandb")
tracker.log_table("examples", columns=["x", "y"], data=[[1, 2.0], [3, 4.0]], step=4)
accelerator.get_tracker("wandb", unwrap=True).summary["best"] = 1.5
accelerator.end_training()
