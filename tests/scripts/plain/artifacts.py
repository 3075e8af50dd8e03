"""Checkpoints and data as artifacts; code of the run."""

import json
from pathlib import Path

import wandb

data = Path("data")
data.mkdir(exist_ok=True)
for split in ("train", "test"):
    (data / f"{split}.json").write_text(json.dumps({"split": split}))

run = wandb.init(project="artifacts", job_type="train", id="artifacts")
dataset = wandb.Artifact("toy", type="dataset", description="two splits", metadata={"rows": 2})
dataset.add_dir("data")
run.log_artifact(dataset)
for epoch in range(2):
    Path("weights.bin").write_bytes(bytes([epoch]) * 100)
    model = wandb.Artifact(f"model-{run.id}", type="model", metadata={"epoch": epoch})
    model.add_file("weights.bin")
    with model.new_file("info.json") as file:
        json.dump({"epoch": epoch}, file)
    run.log_artifact(model, aliases=["best"] if epoch else None)
    run.log({"epoch": epoch})
run.log_model("weights.bin", name="final-model", aliases=["final"])
run.log_code(".", include_fn=lambda path: path.endswith(".py"))
run.finish()
