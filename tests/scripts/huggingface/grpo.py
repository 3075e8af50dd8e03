"""TRL's GRPO with a reward function of one line; completions are logged as a table."""

import os

from datasets import Dataset
from model import TEXTS, make_model, make_tokenizer
from trl import GRPOConfig, GRPOTrainer

os.environ["WANDB_PROJECT"] = "trl-grpo"


def reward_digits(completions: list[str], **kwargs: object) -> list[float]:
    return [float(sum(c.isdigit() for c in completion)) for completion in completions]


tokenizer = make_tokenizer()
prompts = Dataset.from_list([{"prompt": text.partition("=")[0] + "="} for text in TEXTS])
arguments = GRPOConfig(
    output_dir="out",
    run_name="digits",
    report_to="wandb",
    max_steps=2,
    per_device_train_batch_size=4,
    num_generations=2,
    max_completion_length=4,
    logging_steps=1,
    save_strategy="no",
    log_completions=True,
    seed=1,
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
)
trainer = GRPOTrainer(
    model=make_model(tokenizer),
    reward_funcs=reward_digits,
    args=arguments,
    train_dataset=prompts,
    processing_class=tokenizer,
)
trainer.train()
