"""A classifier in PyTorch: watched, with predictions as a table, a checkpoint as artifact."""

import torch
import torch.nn.functional as F
import wandb
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)
CONFIG = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "hidden": 16, "classes": 3}


class Net(nn.Module):
    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


def make_data(classes: int) -> TensorDataset:
    labels = torch.arange(96) % classes
    return TensorDataset(torch.randn(96, 8) + labels[:, None], labels)


def evaluate(model: nn.Module, data: TensorDataset) -> dict:
    model.eval()
    with torch.no_grad():
        logits = model(data.tensors[0])
    probabilities = logits.softmax(dim=1)
    table = wandb.Table(columns=["id", "guess", "truth", *(f"score_{c}" for c in range(logits.shape[1]))])
    for number in range(6):
        scores = [round(float(p), 3) for p in probabilities[number]]
        table.add_data(number, int(logits[number].argmax()), int(data.tensors[1][number]), *scores)
    accuracy = (logits.argmax(dim=1) == data.tensors[1]).float().mean()
    return {"val/accuracy": accuracy, "val/examples": table}


def main() -> None:
    with wandb.init(project="pytorch", config=CONFIG, job_type="train") as run:
        config = wandb.config
        data = make_data(config.classes)
        model = Net(config.hidden, config.classes)
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
        wandb.watch(model, criterion, log="all", log_freq=4)
        examples = 0
        for epoch in range(config.epochs):
            model.train()
            for images, labels in DataLoader(data, config.batch_size):
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                examples += len(labels)
                wandb.log({"epoch": epoch, "train/loss": loss}, step=examples)
            wandb.log(evaluate(model, data), step=examples)
        torch.save(model.state_dict(), "model.pth")
        artifact = wandb.Artifact("classifier", type="model", metadata=dict(run.config))
        artifact.add_file("model.pth")
        run.log_artifact(artifact)
        wandb.unwatch(model)


if __name__ == "__main__":
    main()
