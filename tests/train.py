"""Trains the notebook's network in a process of its own, which the tests interrupt and kill.

    python -m tests.train DATA_PATH SAVE_DIR ITERATIONS [--kill-at STAGE] [--exercise]

Saves every 5 iterations, and with a network of the last exercise every 2.
"""

import argparse
import os
import signal
from pathlib import Path

import tensorflow as tf

from tests.conftest import NO_PICTURES
from tools.exercises import CHANGES
from tools.notebook import run_cells

# Changes of the notebook: it saves and records every 5 iterations.
OFTEN = NO_PICTURES | {
    "steps_per_run = 10": "steps_per_run = 5",
    "if (i_global % 100 == 0) or": "if (i_global % 5 == 0) or",
    "    if step % 100 == 0:": "    if step % 5 == 0:",
    "if (i_global % 1000 == 0) or": "if (i_global % 5 == 0) or",
}
EXERCISE_OFTEN = (
    CHANGES["79 % in half a minute"]
    | NO_PICTURES
    | {"if (i_global % 1000 == 0) or": "if (i_global % 2 == 0) or"}
)
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
    parser = argparse.ArgumentParser()
    parser.add_argument("data_path")
    parser.add_argument("save_dir")
    parser.add_argument("iterations", type=int)
    parser.add_argument("--kill-at", choices=STAGES, help="stage of the seventh save")
    parser.add_argument("--exercise", action="store_true")
    arguments = parser.parse_args()
    change = EXERCISE_OFTEN if arguments.exercise else OFTEN
    notebook = run_cells(arguments.data_path, arguments.save_dir, change)
    if arguments.kill_at:
        kill_at(arguments.kill_at)
    print("TRAINING BEGINS", flush=True)
    notebook["optimize"](arguments.iterations - int(notebook["global_step"]))
    print("TRAINING RETURNED", flush=True)


if __name__ == "__main__":
    main()
