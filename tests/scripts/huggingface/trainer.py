"""Hugging Face's Trainer with `report_to="wandb"`."""

import os

from model import TEXTS, make_model, make_tokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

os.environ["WANDB_PROJECT"] = "hf-trainer"
os.environ["WANDB_WATCH"] = "all"

tokenizer = make_tokenizer()
data = [tokenizer(text) for text in TEXTS]
arguments = TrainingArguments(
    output_dir="out",
    run_name="tiny",
    report_to="wandb",
    max_steps=6,
    per_device_train_batch_size=4,
    logging_steps=2,
    eval_strategy="steps",
    eval_steps=3,
    save_strategy="no",
    seed=1,
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(
    model=make_model(tokenizer),
    args=arguments,
    train_dataset=data,
    eval_dataset=data[:4],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
trainer.evaluate()
