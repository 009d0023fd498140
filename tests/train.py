"""Trains the notebook's network in a process of its own, which the tests interrupt and kill.

    python -m tests.train DATA_PATH SAVE_DIR ITERATIONS [--kill-at STAGE] [--exercise]

Saves every 5 iterations, and with the network of an exercise every 2.
"""

import argparse
import os
import re
import signal
from pathlib import Path

import tensorflow as tf

from tests.conftest import NO_PICTURES
from tools.exercises import read_changes
from tools.notebook import run_cells

# Changes of the notebook: it saves and records every 5 iterations.
OFTEN = NO_PICTURES | {
    "if (i_global % 100 == 0) or is_last:": "if (i_global % 5 == 0) or is_last:",
    "if i_global % 100 == 0:": "if i_global % 5 == 0:",
    "if (i_global % 1000 == 0) or is_last:": "if (i_global % 5 == 0) or is_last:",
}
EXERCISE_OFTEN = NO_PICTURES | {
    old: re.sub(r"i_global % \d+", "i_global % 2", new)
    for old, new in read_changes()["half a minute in lower precision"].items()
}
STAGES = (
    "before writing",
    "half written",
    "written",
    "data moved",
    "index moved",
    "old index moved",
    "old data deleted",
    "old index deleted",
)


def kill_at(stage):
    """Change what saving calls so that the process kills itself at a stage of the seventh save."""
    number = 0

    def kill_if(name, when=True):
        if number == 7 and name == stage and when:
            os.kill(os.getpid(), signal.SIGKILL)

    def change(owner, name, after):
        function = getattr(owner, name)

        def changed(*arguments, **others):
            function(*arguments, **others)
            after(str(arguments[-1]))  # The path, or the new one.

        setattr(owner, name, changed)

    def new_replace(target):
        kill_if("old index moved", "unfinished" in target)
        kill_if("data moved", ".data" in target)
        kill_if("index moved", ".index" in target)

    def new_save(prefix, **others):
        nonlocal number
        number += 1
        kill_if("before writing")
        save(prefix=prefix, **others)
        if stage == "half written" and number == 7:
            os.truncate(f"{prefix}.data-00000-of-00001", 1_000_000)
        kill_if("half written")
        kill_if("written")

    save, tf.raw_ops.SaveV2 = tf.raw_ops.SaveV2, new_save
    change(os, "replace", new_replace)
    change(Path, "unlink", lambda path: kill_if("old data deleted", ".data" in path))
    change(os, "unlink", lambda name: kill_if("old index deleted", ".index" in name))


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
