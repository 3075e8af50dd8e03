"""Runs the script of a user as one rank of several, and ends without torch's part of it.

Of 50 such trainings on two ranks, without any callback of ours, one aborts when Python ends, and with
`destroy_process_group` some wait there for ever.  What is tested is over by then.
"""

from __future__ import annotations

import os
import sys

import torch

import eventlog
from tests.integrations import train_transformers

if __name__ == "__main__":
    train_transformers.main()
    # As at the end of Python.
    eventlog.finish()
    # The launcher ends the other ranks as soon as one is gone in a way that it does not like.
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
