"""SIGTERM in the middle of a step, the state in files, and a training that goes on as if nothing had been."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Outcome, judged
from benchmarks.acceptance.models import Recipe, Taken, prepared, random_base

from lora_trainer.contract.config import LoraConfig, Optimizer
from lora_trainer.errors import TerminatedError
from lora_trainer.places.base import Base
from lora_trainer.training.listener import Step
from lora_trainer.training.state import State, read_state
from lora_trainer.training.stopping import Stop

_STOP_AFTER = 3
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Most relative difference of losses where the device itself gives others each time."""
