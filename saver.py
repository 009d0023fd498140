"""Saves a training run to disk so that it can be stopped, or killed, at any moment and goes on later.

    import saver
    saver = saver.Saver(network=network, optimizer=optimizer, global_step=global_step, settings={...})
    saver.restore("checkpoints/")
    with saver.training() as interrupted:
        while ... and not interrupted.is_set():
            ...
            saver.save()

A checkpoint is a pair of files in TensorFlow's own format, cifar10_cnn-<iterations>.index and
cifar10_cnn-<iterations>.data-00000-of-00001, which `tf.train.load_checkpoint` reads. It also holds the
settings of its training run, so one that belongs to another network is never mixed with this one.
"""

import ast
import contextlib
import difflib
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import socket
import textwrap
import threading
from pathlib import Path

import keras
import tensorflow as tf
from filelock import FileLock, Timeout

# The last checkpoints are kept, and those after a multiple of so many iterations for good.
MAX_TO_KEEP = 5
KEEP_EVERY = 50_000

_INDEX, _DATA = ".index", ".data-00000-of-00001"
_FILE = re.compile(rf"cifar10_cnn-(\d+)({re.escape(_INDEX)}|{re.escape(_DATA)})")
_ANY_FILE = re.compile(r"cifar10_cnn-\d+\..*")
# What TensorFlow raises for files that are cut short, altered or missing.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)


class CheckpointError(RuntimeError):
    """Training can't be restored or begun. The message says why, and what to do."""


class Saver:
    """Saves and restores the variables of one training run.

    :param network: keras.Model whose variables are trained.
    :param optimizer: keras.optimizers.Optimizer that is built already.
    :param global_step: tf.Variable, int64 of shape (), the number of iterations so far.
    :param settings: Dictionary of what else makes this training run different from others: numbers,
        strings, or functions, which stand for their source code. The network and the optimizer with
        its learning rate are added by themselves.
    :param is_chief: Whether this process writes files. With several processes only one must.
    :param variables: More objects to save, e.g. a tf.Variable with the learning curve.
    """

    def __init__(self, *, network, optimizer, global_step, settings, is_chief=True, **variables):
        self._global_step = global_step
        self._is_chief = is_chief
        self._folder = None
        settings = {
            "network": network.get_config(),
            "variables": [f"{v.name} {tuple(v.shape)}" for v in network.variables],
            "optimizer": keras.optimizers.serialize(optimizer),
        } | {name: _source(s) if callable(s) else s for name, s in settings.items()}
        self._checkpoint = tf.train.Checkpoint(
            network=network,
            optimizer=optimizer,
            global_step=global_step,
            settings=tf.Variable(json.dumps(settings, default=lambda other: str(type(other)))),
            **variables,
        )

    def restore(self, save_dir):
        """Restore the newest checkpoint in a folder that is whole and belongs to this training run.

        Files are checked before any variable is changed. Damaged ones are renamed, never deleted. When
        the checkpoints belong to another network, learning rate or setting, the differences are
        printed, and a folder beside them, `save_dir`/changed-1 (2, 3, ...), is used instead.

        :param save_dir: Folder of the checkpoints; need not exist.
        :raises CheckpointError: There are checkpoints, but none is whole. Nothing was changed.
        """
        ours = _with_numbered_layers(json.loads(self._checkpoint.settings.numpy()))
        for number in itertools.count():
            self._folder = Path(save_dir, f"changed-{number}") if number else Path(save_dir)
            path, settings = _newest_whole_checkpoint(self._folder)
            if path is None:
                print(f"No checkpoint in {self._folder}{os.sep}, so the variables are new ones.")
                return
            differences = list(_differences(_with_numbered_layers(settings), ours))
            if not differences:
                break
            print(
                f"The checkpoints in {self._folder}{os.sep} are of another training. They are kept. It "
                "differs from this one in:"
            )
            print("\n".join(differences))
        with contextlib.chdir(path.parent):  # See _read.
            self._checkpoint.read(path.name).assert_consumed()
        print("Restored checkpoint from:", path)

    def save(self):
        """Save a checkpoint in the folder of `restore`, and delete the oldest ones.

        The files are written elsewhere in the folder and get their names when they are whole, so a
        checkpoint is there completely or not at all. When it can't be saved, for example because
        the disk is full, that is printed, no other file is touched, and training can go on.

        :return: Boolean whether it was saved.
        """
        if not self._is_chief:
            return False
        path = self._folder / f"cifar10_cnn-{self._global_step.numpy()}"
        unfinished = self._folder / "cifar10_cnn-unfinished"
        try:
            if unfinished.exists():  # A process was killed before it could remove it.
                shutil.rmtree(unfinished)
            unfinished.mkdir(parents=True)
            self._checkpoint.write(str(unfinished / path.name))
            # Whoever finds the index finds the data too.
            for ending in (_DATA, _INDEX):
                os.replace(unfinished / (path.name + ending), f"{path}{ending}")
            unfinished.rmdir()
            for number in sorted(_numbers(self._folder))[:-MAX_TO_KEEP]:
                if number % KEEP_EVERY:
                    for ending in (_INDEX, _DATA):
                        (self._folder / f"cifar10_cnn-{number}{ending}").unlink(missing_ok=True)
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            print(
                f"COULD NOT SAVE {path}: {_first_line(error)}\nFree some space on that disk or make the "
                "folder writable. Training goes on, the older checkpoints are kept, and saving is tried "
                "again at the next checkpoint, or when you call saver.save()."
            )
            return False
        print("Saved checkpoint.")
        return True

    @contextlib.contextmanager
    def training(self):
        """Let only this process train in the folder, and let it finish its work when interrupted.

        Within this context the first SIGINT (the stop-button of Jupyter, Ctrl-C) or SIGTERM does
        nothing but set the event, and the second one has its usual effect.

        :return: Context that gives a threading.Event, which is set by an interrupt.
        :raises CheckpointError: Another process is training there, or there are newer checkpoints.
        :raises OSError: The folder can't be written.
        """
        interrupted = threading.Event()
        with self._lock(), _noting_interrupts(interrupted):
            yield interrupted

    @contextlib.contextmanager
    def _lock(self):
        if not self._is_chief:
            yield
            return
        owner = self._folder / "training.owner"
        with contextlib.ExitStack() as stack:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                # The operating system releases the lock of a process that has ended, however it ended.
                stack.enter_context(FileLock(self._folder / "training.lock").acquire(blocking=False))
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            except Timeout:
                who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
                raise CheckpointError(
                    f"{self._folder} is in use: {who} is training there. Wait until it has finished, stop "
                    "it (in Jupyter, shut down the other kernel), or choose another save_dir. Nothing was "
                    "changed."
                ) from None
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{error.strerror}: checkpoints can't be saved in {self._folder}. Make that folder "
                    "writable or free some space, or choose another save_dir. Training was not begun.",
                ) from error
            newest = max(_numbers(self._folder), default=0)
            if newest > self._global_step.numpy():
                raise CheckpointError(
                    f"{self._folder} has a checkpoint after {newest} iterations, but this network has had "
                    f"only {self._global_step.numpy()}. Restore that one first, or choose another save_dir. "
                    "Nothing was changed."
                )
            yield


@contextlib.contextmanager
def _noting_interrupts(interrupted):
    """Set the event at the first SIGINT or SIGTERM; the second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers no signals to other threads.
        return

    def note(number, frame):
        if interrupted.is_set():
            signal.signal(number, before[number])
            signal.raise_signal(number)
        interrupted.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _matches(pattern, folder):
    """Return the matches of a pattern with the names of the files in a folder, which need not exist."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [match for match in map(pattern.fullmatch, names) if match]


def _numbers(folder):
    """Return the set of numbers of the checkpoints in a folder, whole or not."""
    return {int(match[1]) for match in _matches(_FILE, folder)}


def _newest_whole_checkpoint(folder):
    """Return the path of the newest checkpoint that is whole and its settings, or None, None.

    Damaged ones that are newer are renamed. When there are damaged ones only, it is an error.
    """
    damaged = {}
    for number in sorted(_numbers(folder), reverse=True):
        path = folder / f"cifar10_cnn-{number}"
        try:
            settings = _read(path)
        except _DAMAGE as error:
            damaged[path] = _first_line(error)
            continue
        if settings is None:
            raise CheckpointError(
                f"{path} was saved by another program. If that was the tutorial of 2016, move it to a folder "
                "of its own and see 'Opening a checkpoint from 2016'; else choose another save_dir. Nothing "
                "was changed."
            )
        for other, reason in damaged.items():
            _set_aside(other, reason)
        return path, settings

    files = [match[0] for match in _matches(_ANY_FILE, folder)]
    if files:
        reasons = [f"{path.name}: {reason}" for path, reason in damaged.items()] or files
        raise CheckpointError(
            f"There are checkpoints in {folder}, but none is whole:\n"
            + "".join(f"  {reason}\n" for reason in reasons)
            + "Nothing was changed. Put a whole copy there if you have one. To begin anew, move these files "
            "away, or choose another save_dir."
        )
    return None, None


def _read(path):
    """Read all of a checkpoint, which compares its checksums, and return its settings, or None."""
    for ending in (_INDEX, _DATA):
        if not Path(f"{path}{ending}").is_file():
            raise ValueError(f"{path.name}{ending} is missing")
    # TensorFlow takes a folder named [1] for a pattern, so it mustn't see the folder's name.
    with contextlib.chdir(path.parent):
        reader = tf.train.load_checkpoint(path.name)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    settings = values.get("settings/.ATTRIBUTES/VARIABLE_VALUE")
    return None if settings is None else json.loads(settings)


def _set_aside(path, reason):
    """Rename the files of a damaged checkpoint."""
    for ending in (_INDEX, _DATA):
        file = Path(f"{path}{ending}")
        names = (file.with_name(f"{file.name}.damaged-{number}") for number in itertools.count(1))
        if file.exists():
            with contextlib.suppress(OSError):  # The folder is read-only.
                file.rename(next(name for name in names if not name.exists()))
    unchanged = Path(f"{path}{_INDEX}").exists()
    print(f"Damaged, so it is {'not used' if unchanged else 'set aside'}: {path} ({reason})")


def _with_numbered_layers(settings):
    """Replace the names in the connections between layers, for which Keras counts on in a later network."""
    text = json.dumps(settings)
    for number, layer in enumerate(settings["network"].get("layers", [])):
        text = text.replace(f"[{json.dumps(layer['config']['name'])}, ", f"[{number}, ")
    return json.loads(text)


def _differences(old, new, place=""):
    """Describe the differences between two settings.

    Names make no difference, and neither do entries that only one of the two has, because versions of
    Keras differ in these.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted((old.keys() & new.keys()) - {"name", "module", "registered_name"}):
            yield from _differences(old[key], new[key], f"{place}.{key}" if place else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{place}[{i}]")
    elif old != new:
        for line in difflib.ndiff(_lines(old), _lines(new)):
            if line[0] in "+-":
                yield f"  {place}, only {'there' if line[0] == '-' else 'here'}: {line[2:].strip()}"


def _lines(value):
    """Return a setting as lines of text: those of source code, or one for each layer or number."""
    if isinstance(value, list):
        return [
            entry.get("class_name", str(entry)) if isinstance(entry, dict) else str(entry) for entry in value
        ]
    return f"{value:.6g}".split() if isinstance(value, float) else str(value).splitlines()


def _source(function):
    """Return the source code of a function without its comments and in a uniform layout."""
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))


def _first_line(error):
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
