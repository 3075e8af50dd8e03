"""A training with transformers' Trainer, as a user writes one; the test runs it as a script.

python train_transformers.py DIRECTORY [--steps N] [--resume]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import Trainer, TrainingArguments

from eventlog.integrations.transformers import EventlogCallback
from tests.integrations import tiny


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    trainer = Trainer(
        model=tiny.model(),
        args=TrainingArguments(
            output_dir=str(options.directory / "out"),
            run_name="tiny",
            max_steps=options.steps,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=tiny.texts(),
        eval_dataset=tiny.texts(),
        callbacks=[EventlogCallback()],
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.evaluate()


if __name__ == "__main__":
    main()
