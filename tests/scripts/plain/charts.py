"""Charts of W&B's own presets."""

import math

import wandb

run = wandb.init(project="charts", config={"points": 20})
xs = [i / 4 for i in range(run.config.points)]
table = wandb.Table(data=[[x, math.sin(x)] for x in xs], columns=["x", "sin"])
run.log({"sine": wandb.plot.line(table, "x", "sin", title="Sine")})
run.log({"points": wandb.plot.scatter(table, "x", "sin", title="Points")})
run.log({"spread": wandb.plot.histogram(table, "sin")})
run.log(
    {
        "both": wandb.plot.line_series(
            xs=xs, ys=[[math.sin(x) for x in xs], [math.cos(x) for x in xs]], keys=["sin", "cos"], xname="x"
        ),
        "confusion": wandb.plot.confusion_matrix(
            y_true=[0, 1, 2, 2, 1], preds=[0, 2, 2, 2, 1], class_names=["cat", "dog", "bird"]
        ),
    }
)
run.log(
    {
        "classes": wandb.plot.bar(
            wandb.Table(data=[["cat", 3], ["dog", 4]], columns=["label", "n"]), "label", "n"
        )
    }
)
run.finish()
