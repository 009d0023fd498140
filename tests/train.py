"""Trains the notebook's network in a process of its own, which the tests interrupt and kill.

    python -m tests.train DATA_PATH SAVE_DIR ITERATIONS [STAGE]

Saves every 5 iterations. When a STAGE of saving is given, the process kills itself there, in its
seventh save.
"""

import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

from tests.conftest import NO_PICTURES
from tools.notebook import run_cells

# Changes of the notebook: it saves and records every 5 iterations.
OFTEN = NO_PICTURES | {
    "steps_per_run = 10": "steps_per_run = 5",
    "if (i_global % 100 == 0) or": "if (i_global % 5 == 0) or",
    "    if step % 100 == 0:": "    if step % 5 == 0:",
    "if (i_global % 1000 == 0) or": "if (i_global % 5 == 0) or",
}
STAGES = (
    "before writing",
    "half written",
    "written",
    "data moved",
    "index moved",
    "old index renamed",
    "old data deleted",
    "old index deleted",
)


def kill_at(stage):
    """Change what saving calls so that the process kills itself at a stage of the seventh save."""
    write, replace = tf.train.Checkpoint.write, os.replace
    rename, unlink = Path.rename, Path.unlink
    number = 0

    def kill_if(name, when=True):
        if number == 7 and name == stage and when:
            os.kill(os.getpid(), signal.SIGKILL)

    def new_write(self, path):
        nonlocal number
        number += 1
        kill_if("before writing")
        result = write(self, path)
        if stage == "half written" and number == 7:
            os.truncate(f"{path}.data-00000-of-00001", 1_000_000)
        kill_if("half written")
        kill_if("written")
        return result

    def new_replace(source, target):
        replace(source, target)
        kill_if("data moved", ".data" in str(target))
        kill_if("index moved", ".index" in str(target))

    def new_unlink(self, missing_ok=False):
        unlink(self, missing_ok=missing_ok)
        kill_if("old data deleted", ".data" in str(self))
        kill_if("old index deleted", ".index" in str(self))

    def new_rename(self, target):
        rename(self, target)
        kill_if("old index renamed", ".index" in str(self))

    tf.train.Checkpoint.write, os.replace = new_write, new_replace
    Path.rename, Path.unlink = new_rename, new_unlink


def main():
    data_path, save_dir, iterations, *stage = sys.argv[1:]
    notebook = run_cells(data_path, save_dir, OFTEN)
    if stage:
        kill_at(*stage)
    print("TRAINING BEGINS", flush=True)
    notebook["optimize"](int(iterations) - int(notebook["global_step"]))
    print("TRAINING RETURNED", flush=True)


if __name__ == "__main__":
    main()
