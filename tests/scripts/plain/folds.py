"""Cross-validation: a run for each fold, in one group, and one that sums them up."""

import statistics

import wandb
from wandb.util import make_artifact_name_safe

group = make_artifact_name_safe("cv/3 folds")
scores = []
for fold in range(3):
    run = wandb.init(
        project="folds",
        group=group,
        job_type=f"fold-{fold}",
        name=f"fold-{fold}",
        id=f"fold{fold}",
        reinit=True,
    )
    for step in range(3):
        run.log({"val/score": fold + step / 10})
    scores.append(run.summary["val/score"])
    run.finish()

with wandb.init(project="folds", group=group, job_type="summary", id="all") as run:
    run.log({"mean": statistics.mean(scores), "stdev": statistics.stdev(scores)})
    run.config.update({"folds": len(scores)})
