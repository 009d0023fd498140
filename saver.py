"""Saves a training run to disk so that it can be stopped, or killed, at any moment and goes on later.

    import saver
    saver = saver.Saver(network=network, optimizer=optimizer, global_step=global_step, train_step=train_step)
    saver.restore("checkpoints/")
    with saver.training() as interrupted:
        while ... and not interrupted.is_set():
            ...
            saver.save()

A checkpoint is a pair of files in TensorFlow's own format, cifar10_cnn-<iterations>.index and
cifar10_cnn-<iterations>.data-00000-of-00001, which `tf.train.load_checkpoint` reads. It also holds the
identity of its training run: the network, the optimizer, and all source code, numbers and data that
`train_step` uses. A folder may hold checkpoints of several runs. Only those of this one are restored,
counted or deleted.
"""

import ast
import contextlib
import difflib
import dis
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import threading
import types
import uuid
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

# The last checkpoints are kept, and those after a multiple of so many iterations for good.
MAX_TO_KEEP = 5
KEEP_EVERY = 50_000

_INDEX, _DATA = ".index", ".data-00000-of-00001"
_FILE = re.compile(rf"cifar10_cnn-(\d+)({re.escape(_INDEX)}|{re.escape(_DATA)})")
_ANY_FILE = re.compile(r"cifar10_cnn-\d+\..*")
_DELETED = re.compile(rf"(cifar10_cnn-\d+){re.escape(_INDEX)}\.deleted")
_CHANGED = re.compile(r"changed-(\d+)")
# What TensorFlow raises for files that are cut short, altered or missing.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SOURCE = "source of "
_AT_RANDOM = "random weights"

# What the memory of this process holds: the objects and the state of the Saver that was used last.
_memory = None


class CheckpointError(RuntimeError):
    """Training can't be restored or begun. The message says why, and what to do."""


class Saver:
    """Saves and restores the variables of one training run.

    :param network: keras.Model whose variables are trained.
    :param optimizer: keras.optimizers.Optimizer for its trainable variables.
    :param global_step: tf.Variable, int64 of shape (), the number of iterations so far.
    :param train_step: Function that performs an iteration. All functions, classes, numbers and data of
        the notebook that it uses, and that these use, make this run different from others.
    :param variables: More objects to save, e.g. a tf.Variable with the learning curve.
    """

    def __init__(self, *, network, optimizer, global_step, train_step, **variables):
        if not optimizer.built:  # Else its variables would be restored too late.
            optimizer.build(network.trainable_variables)
        self._network, self._optimizer, self._global_step = network, optimizer, global_step
        self._train_step, self._variables = train_step, variables
        self._is_chief = tf.distribute.get_strategy().extended.should_checkpoint
        self._interrupts = _Interrupts()
        self._objects = {"network": network, "optimizer": optimizer, "global_step": global_step, **variables}
        self._state = self._inherited()

    def _inherited(self):
        """Return the state of a new Saver: that of the one before it when its cell is run again."""
        old = _memory.objects if _memory else {}
        same = {name for name, part in self._objects.items() if old.get(name) is part}
        if same == self._objects.keys():
            return _memory
        rate = keras.optimizers.serialize(self._optimizer)["config"].get("learning_rate")
        return types.SimpleNamespace(
            objects=self._objects,
            # The rate the optimizer was made with. One that is set by hand is saved like the weights.
            rate=_memory.rate if "optimizer" in same else rate,
            saved=_memory.saved if "global_step" in same else 0,
            is_trained=bool(same) and _memory.objects["global_step"].numpy() > 0,
            folder=None,
        )

    def restore(self, save_dir):
        """Restore the newest whole checkpoint of this training run in a folder.

        It may also be in `save_dir`/changed-1 (2, 3, ...). Files are read and checked before any variable
        is changed, and none is renamed. When there are checkpoints of other runs only, the differences
        are printed, and a new folder changed-N is used. One of the original program counts as one of
        this run when all its variables fit the network.

        :param save_dir: Folder of the checkpoints; need not exist.
        :raises CheckpointError: Something would be lost or mixed: there are checkpoints, but none is
            whole, or one can't be read; the network in memory is trained, but not saved, or has no
            checkpoint there. Nothing was changed.
        """
        global _memory
        self._check_objects()
        step, state = int(self._global_step.numpy()), self._state
        if step and step != state.saved:
            raise CheckpointError(
                f"The network in memory has been trained for {step} iterations, but they are not saved. Call "
                "saver.save() first, or restart the kernel, which gives them up. Nothing was changed."
            )
        base = Path(save_dir).expanduser().absolute()
        identity = self._make_identity()
        found, others, damaged = _search(base, functools.partial(self._compare, identity))

        def shown(path):
            return Path(save_dir, path.relative_to(base))

        for path, reason in damaged.items():
            print(f"Damaged, so it is not used: {shown(path)} ({reason})")
        if found is None:
            began, folder = "random weights", self._new_run_folder(base, others, damaged, shown)
        else:
            path, values = found
            began, folder = self._assign(path, values), path.parent
            kind = "" if _settings(values) else " of the original program"
            print(f"Restored checkpoint{kind} from: {shown(path)}")
            self._tell_rate()
            if folder in {other.parent for other in others}:
                print(
                    f"{shown(folder)}{os.sep} also has newer checkpoints, of another training. They are "
                    "kept, and this training goes on in a folder of its own."
                )
                folder = _new_folder(base)
        state.folder, state.identity, state.began, state.is_own = folder, identity, began, {}
        state.cannot_delete = False
        self._note_saved()
        _memory = state

    def save(self):
        """Save a checkpoint in the folder of `restore`, and delete the oldest ones of this run.

        The files are written elsewhere in the folder and get their names when they are whole and on the
        disk, so a checkpoint is there completely or not at all. When it can't be saved, for example
        because the disk is full, that is printed, no other file is touched, and training can go on.

        :return: Boolean whether it was saved.
        :raises CheckpointError: `restore` wasn't called, or what is trained isn't what would be saved.
        """
        self._check_objects(needs_folder=True)
        state, step = self._state, int(self._global_step.numpy())
        iterations, updates = step - state.saved, int(self._optimizer.iterations.numpy()) - state.updates
        if bool(iterations) != bool(updates):
            raise CheckpointError(
                f"There were {iterations} iterations since the last checkpoint, but {updates} updates of the "
                "optimizer: a function made before a cell was run again still trains what was there before. "
                "Restart the kernel and run all cells. Nothing was saved."
            )
        if not self._is_chief:
            self._note_saved()
            return False
        path = state.folder / f"cifar10_cnn-{step}"
        with self._interrupts.held():
            try:
                self._write(path)
            except (OSError, tf.errors.OpError) as error:
                shutil.rmtree(state.folder / "cifar10_cnn-unfinished", ignore_errors=True)
                print(
                    f"COULD NOT SAVE {path}: {_first_line(error)}\nFree some space on that disk or make the "
                    "folder writable. Training goes on, the older checkpoints are kept, and saving is tried "
                    "again at the next checkpoint, or when you call saver.save()."
                )
                return False
            self._note_saved()
            print("Saved checkpoint.")
            try:
                self._delete_old()
            except OSError as error:
                if not state.cannot_delete:
                    print(f"Old checkpoints can't be deleted, so they are kept: {_first_line(error)}")
                state.cannot_delete = True
        return True

    @contextlib.contextmanager
    def training(self):
        """Let only this process train in the folder, and let it finish its work when interrupted.

        Within this context the first SIGINT (the stop-button of Jupyter, Ctrl-C) or SIGTERM does
        nothing but set the event. A second SIGINT raises KeyboardInterrupt, but not within a save.
        Damaged checkpoints that are newer than the network are renamed, never deleted.

        :return: Context that gives an object whose method `is_set()` returns the boolean whether there
            was an interrupt, in any of the processes that train together.
        :raises CheckpointError: `restore` wasn't called, something has changed since then, another
            process is training there, there are newer checkpoints, or the processes that train together
            have restored different ones.
        :raises OSError: The folder can't be written.
        """
        problem = None
        with contextlib.ExitStack() as stack:
            try:
                self._check_objects(needs_folder=True)
                self._check_identity()
                if self._is_chief:
                    stack.enter_context(_lock(self._state.folder))
                    self._set_damaged_aside()
            except (CheckpointError, OSError) as error:
                problem = error
            steps = _of_all_processes(-1 if problem else self._global_step.numpy())
            if problem:
                raise problem
            if len(set(steps)) > 1:
                have = [
                    f"process {i}" + (f": {n}" if n >= 0 else " can't begin") for i, n in enumerate(steps)
                ]
                raise CheckpointError(
                    f"The processes must begin after the same iteration, but have restored: {', '.join(have)}"
                    ". Let all read the same save_dir, and restart them. Nothing was changed."
                )
            stack.enter_context(self._interrupts.noted())
            yield self._interrupts

    ########################################################################
    # Checks of what is in memory.

    def _note_saved(self):
        self._state.saved = int(self._global_step.numpy())
        self._state.updates = int(self._optimizer.iterations.numpy())

    def _check_objects(self, needs_folder=False):
        """Check that the notebook still uses the objects of this Saver, and has called `restore`."""
        if needs_folder and self._state.folder is None:
            raise CheckpointError(
                "It isn't known yet where to save: run saver.restore(save_dir) first. Nothing was changed."
            )
        now = _plain(self._train_step).__globals__
        changed = [name for name, part in self._objects.items() if now.get(name, part) is not part]
        if changed:
            raise CheckpointError(
                f"{' and '.join(changed)}: made again, so it isn't what this saver saves. Restart the "
                "kernel and run all cells, or run the cells from there down again. Nothing was changed."
            )

    def _check_identity(self):
        differences = list(_differences(self._state.identity, self._make_identity(), ("before", "now")))
        if differences:
            lines = "\n".join(differences)
            raise CheckpointError(
                f"This training has changed since saver.restore(save_dir):\n{lines}\nUndo that; or restart "
                "the kernel and run all cells, then it is another training with a folder of its own."
            )

    def _make_identity(self):
        """Return the dictionary of all that makes this training run different from others."""
        program = _Program(_plain(self._train_step).__globals__, [self._network, self._optimizer])
        program.value(program.namespace.get("train_step", self._train_step))
        optimizer = program.optimizer(self._optimizer)
        if self._state.rate is not None:
            optimizer["config"]["learning_rate"] = self._state.rate
        variables = [f"{v.name} {tuple(v.shape)}" for v in self._network.variables]
        network = program.config(self._network)
        identity = program.entries | {"network": network, "variables": variables, "optimizer": optimizer}
        return json.loads(json.dumps(identity, default=lambda other: str(type(other))))

    def _tell_rate(self):
        """Say so when the learning rate that was restored isn't the one the optimizer was made with."""
        made = self._state.rate
        if isinstance(made, float):  # Else a schedule.
            now = float(tf.convert_to_tensor(self._optimizer.learning_rate))
            if not math.isclose(now, made, rel_tol=1e-6):
                print(
                    f"Its learning rate is {now:g}, which was set by hand; the optimizer was made with "
                    f"{made:g}. To set it back: optimizer.learning_rate = {made:g}"
                )

    ########################################################################
    # Reading.

    def _compare(self, identity, path, values):
        """Return the lines that say how a checkpoint differs from an identity; none if it doesn't."""
        if settings := _settings(values):
            lines, step = list(_differences(settings, identity)), values.get("global_step" + _VALUE)
        elif "beta1_power" in values:
            mine = self._original_variables() | {"global_step": self._global_step}
            parts = {n for n in values if n.startswith("network/") and "/cross_entropy/" not in n}
            wrong = (mine.keys() - values.keys()) | (parts - mine.keys())
            wrong |= {n for n, v in mine.items() if v is None or np.shape(values.get(n)) != tuple(v.shape)}
            if wrong:
                return ["  the original program saved it, but these don't fit: " + ", ".join(sorted(wrong))]
            lines, step = [], values["global_step"]
        else:
            return ["  it was saved by another program"]
        if step != _number(path):
            lines.append(f"  its name says {_number(path)} iterations, but it is of {step}")
        return lines

    def _original_variables(self):
        """Return the variables by their names in the original program; those of Adam may be None."""
        moments = {v.path.split("/")[-1]: v for v in self._optimizer.variables}
        variables = {}
        for v in self._network.variables:
            layer, name = v.path.split("/")[-2:]
            layer = layer.replace("layer_softmax", "fully_connected")
            layer = layer.replace("_batch_normalize", "/batch_normalize")
            name = f"network/{layer}/{name.replace('kernel', 'weights')}"
            variables[name] = v
            if v.trainable:
                for ending, moment in (("Adam", "momentum"), ("Adam_1", "velocity")):
                    variables[f"{name}/{ending}"] = moments.get(f"{v.path.replace('/', '_')}_{moment}")
        return variables

    def _assign(self, path, values):
        """Assign all variables the values of a checkpoint, and return how its training run began."""
        if settings := _settings(values):
            present = {name.split("/")[0] for name in values}
            parts = {name: part for name, part in self._parts("").items() if name in present}
            with _copy_in_memory(path) as copy:
                tf.train.Checkpoint(**parts).read(copy).assert_existing_objects_matched()
            return settings.get("began", "random weights")
        for name, v in self._original_variables().items():
            v.assign(values[name])
        for v in (self._global_step, self._optimizer.iterations):
            v.assign(_number(path))
        for v in self._variables.values():
            if v.shape.rank and v.shape[0] is None:  # A table that grows. It has no rows then.
                v.assign(v[:0], read_value=False)
        return f"the original program's checkpoint after {_number(path)} iterations"

    def _new_run_folder(self, base, others, damaged, shown):
        """Return the folder for a new network, or raise an error if there must be none."""
        if self._state.is_trained or self._global_step.numpy() or self._optimizer.iterations.numpy():
            raise CheckpointError(
                f"There is no checkpoint of this training in {base}, but the network in memory has been "
                "trained already. To train a new one there, restart the kernel and run all cells. To go on "
                "there with this one, copy its newest checkpoint there first, from "
                f"{self._state.folder or 'its folder'}. Nothing was changed."
            )
        whole = {path.parent for path in others}
        for folder in _folders(base):
            files = [match[0] for match in _matches(_ANY_FILE, folder)]
            if files and folder not in whole:
                reasons = [f"{p.name}: {reason}" for p, reason in damaged.items() if p.parent == folder]
                raise CheckpointError(
                    f"There are checkpoints in {folder}, but none is whole:\n"
                    + "".join(f"  {reason}\n" for reason in reasons or files)
                    + "Nothing was changed. Put a whole copy there if you have one. To begin anew, move "
                    "these files away, or choose another save_dir."
                )
        folder = _new_folder(base) if base in whole else base
        if others:
            path, differences = next(iter(others.items()))
            print(
                f"The checkpoints in {shown(path.parent)}{os.sep} are of another training. They are kept. It "
                "differs from this one in:"
            )
            print("\n".join(differences))
        print(f"No checkpoint in {shown(folder)}{os.sep}, so the variables are new ones.")
        return folder

    ########################################################################
    # Writing.

    def _parts(self, settings):
        """Return the objects to save, by name."""
        parts = self._objects | {"settings": _Text(settings)}
        # Random layers, e.g. Dropout, have a state that TensorFlow doesn't find by itself.
        seeds = [v.value for v in self._network.variables if not any(v is w for w in self._network.weights)]
        return parts | {"random_layers": seeds} if seeds else parts

    def _write(self, path):
        unfinished = path.with_name("cifar10_cnn-unfinished")
        if unfinished.exists():  # A process was killed before it could remove it.
            shutil.rmtree(unfinished)
        if _number(path) in _numbers(path.parent):
            try:
                if not self._owns(path):
                    raise FileExistsError("a checkpoint of another training has that name")
            except _DAMAGE as error:
                _set_aside(path, error)
        unfinished.mkdir(parents=True)
        settings = json.dumps(self._state.identity | {"began": self._state.began})
        tf.train.Checkpoint(**self._parts(settings)).write(str(unfinished / path.name))
        for ending in (_DATA, _INDEX):
            _sync(unfinished / (path.name + ending))
        # Whoever finds the index finds the data too.
        for ending in (_DATA, _INDEX):
            os.replace(unfinished / (path.name + ending), f"{path}{ending}")
        unfinished.rmdir()

    def _delete_old(self):
        """Delete the oldest checkpoints of this run. When killed on the way, the next call goes on."""
        folder, own = self._state.folder, []
        for names in (folder, folder.parent):
            _sync(names)
        for number in sorted(_numbers(folder)):
            path = folder / f"cifar10_cnn-{number}"
            with contextlib.suppress(OSError, *_DAMAGE):
                if self._owns(path):
                    own.append(path)
        for path in own[:-MAX_TO_KEEP]:
            if _number(path) % KEEP_EVERY:
                Path(f"{path}{_INDEX}").rename(f"{path}{_INDEX}.deleted")
        for match in _matches(_DELETED, folder):
            (folder / f"{match[1]}{_DATA}").unlink(missing_ok=True)
            (folder / match[0]).unlink()

    def _owns(self, path):
        """Return the boolean whether a checkpoint is of this run, and began like it."""
        index = Path(f"{path}{_INDEX}")
        key = path, index.exists() and index.stat().st_mtime_ns
        if key not in self._state.is_own:
            values, state = _read(path), self._state
            settings = _settings(values)
            same = settings and not self._compare(state.identity, path, values)
            state.is_own[key] = bool(same) and settings.get("began", "random weights") == state.began
        return self._state.is_own[key]

    def _set_damaged_aside(self):
        """Rename damaged checkpoints that are newer than the network; whole ones are an error."""
        folder, step = self._state.folder, self._global_step.numpy()
        for number in sorted(_numbers(folder), reverse=True):
            path = folder / f"cifar10_cnn-{number}"
            if number <= step:
                break
            try:
                _read(path)
            except _DAMAGE as error:
                _set_aside(path, error)
                continue
            raise CheckpointError(
                f"{folder} has a checkpoint after {number} iterations, but this network has had only {step}. "
                "Restore that one first, or choose another save_dir. Nothing was changed."
            )


class _Text(tf.Module):
    """A text that is saved in the way of a string variable, on whatever device, and is never restored."""

    def __init__(self, text):
        self._text = text

    def _serialize_to_tensors(self):
        return {"VARIABLE_VALUE": tf.constant(self._text)}

    def _restore_from_tensors(self, restored):
        pass


########################################################################
# Interrupts, and other processes.


class _Interrupts:
    """Notes SIGINT and SIGTERM while training."""

    def __init__(self):
        self._is_noted = self._is_held = False
        self._stops = 0

    def is_set(self):
        return any(_of_all_processes(self._is_noted))

    @contextlib.contextmanager
    def noted(self):
        self._is_noted, self._stops = False, 0
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers no signals to other threads.
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, frame):
        self._stops += number == signal.SIGINT
        if not self._is_noted:
            self._is_noted = True
            with contextlib.suppress(RuntimeError):  # It came in the middle of another print.
                print(
                    "Interrupted: the iterations under way are finished and a checkpoint is saved. Press "
                    "stop again to break off.",
                    flush=True,
                )
        if self._stops > 1 and not self._is_held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self):
        """Let a second SIGINT wait until the end of this context."""
        stops, self._is_held = self._stops, True
        try:
            yield
        finally:
            self._is_held = False
            if self._stops > max(1, stops):
                raise KeyboardInterrupt


@tf.function
def _gather(number):
    strategy = tf.distribute.get_strategy()
    return strategy.gather(strategy.run(lambda: number[tf.newaxis]), axis=0)


def _of_all_processes(number):
    """Return the list of the numbers that all processes which train together give, in all the same."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return [int(number)]
    return _gather(tf.constant(int(number), tf.int64)).numpy().tolist()


@contextlib.contextmanager
def _lock(folder):
    """Let no other process train in a folder."""
    owner = folder / "training.owner"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The operating system releases the lock of a process that has ended, however it ended.
            stack.enter_context(FileLock(folder / "training.lock").acquire(blocking=False))
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise CheckpointError(
                f"{folder} is in use: {who} is training there. Wait until it has finished, stop it (in "
                "Jupyter, shut down the other kernel), or choose another save_dir. Nothing was changed."
            ) from None
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: checkpoints can't be saved in {folder}. Make that folder writable or "
                "free some space, or choose another save_dir. Training was not begun.",
            ) from error
        yield


########################################################################
# Files.


def _matches(pattern, folder):
    """Return the matches of a pattern with the names in a folder, which need not exist."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [match for match in map(pattern.fullmatch, names) if match]


def _numbers(folder):
    """Return the set of numbers of the checkpoints in a folder, whole or not."""
    return {int(match[1]) for match in _matches(_FILE, folder)}


def _number(path):
    return int(path.name.split("-")[1])


def _folders(base):
    """Return a folder and those in it for changed trainings, changed-1, changed-2 and so on."""
    return [base, *(base / f"changed-{n}" for n in sorted(int(m[1]) for m in _matches(_CHANGED, base)))]


def _new_folder(base):
    """Return the first folder for a changed training that holds no checkpoints."""
    folders = (base / f"changed-{number}" for number in itertools.count(1))
    return next(folder for folder in folders if not _matches(_ANY_FILE, folder))


def _search(base, compare):
    """Look for the newest whole checkpoint that doesn't differ, in a folder and those in it.

    :return: Its path and values, or None; a dictionary from the paths of whole ones of other runs, the
        newest first, to their differences; one from the paths of damaged ones to the reasons.
    """
    paths = [f / f"cifar10_cnn-{number}" for f in _folders(base) for number in _numbers(f)]
    others, damaged = {}, {}
    for path in sorted(paths, key=_number, reverse=True):
        try:
            values = _read(path)
        except _DAMAGE as error:
            damaged[path] = _first_line(error)
            continue
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} can't be read: {error.strerror}. Make it readable, or choose another "
                "save_dir. Nothing was changed."
            ) from error
        differences = compare(path, values)
        if not differences:
            return (path, values), others, damaged
        others[path] = differences
    return None, others, damaged


@contextlib.contextmanager
def _copy_in_memory(path):
    """Give the name of a copy of a checkpoint in TensorFlow's file system in memory.

    TensorFlow takes a folder named [1] for a pattern, and what it raises doesn't tell a damaged file
    from one that can't be read.
    """
    copy = f"ram://{uuid.uuid4()}/{path.name}"
    contents = {}
    for ending in (_INDEX, _DATA):
        try:
            contents[copy + ending] = Path(f"{path}{ending}").read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path.name}{ending} is missing") from None
    try:
        for name, content in contents.items():
            with tf.io.gfile.GFile(name, "wb") as file:
                file.write(content)
        yield copy
    finally:
        for name in contents:
            tf.io.gfile.remove(name)


def _read(path):
    """Read all of a checkpoint, which compares its checksums, and return its values by name."""
    with _copy_in_memory(path) as copy:
        reader = tf.compat.v1.train.NewCheckpointReader(copy)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _settings(values):
    """Return the identity of a training run in the values of a checkpoint, or {}."""
    try:
        settings = json.loads(values.get("settings" + _VALUE, ""))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows does that by itself.
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _set_aside(path, error):
    """Rename the files of a damaged checkpoint."""
    for ending in (_INDEX, _DATA):
        file = Path(f"{path}{ending}")
        names = (file.with_name(f"{file.name}.damaged-{number}") for number in itertools.count(1))
        if file.exists():
            file.rename(next(name for name in names if not name.exists()))
    print(f"Damaged, so it is set aside: {path} ({_first_line(error)})")


########################################################################
# The identity of a training run.


class _Program:
    """All that a function of the notebook uses: source code, numbers and data, in `entries`.

    :param namespace: Dictionary of the notebook's global names. What is defined elsewhere, e.g. in
        TensorFlow, is left out, and so are variables, which training changes.
    :param without: List of objects that are left out as well.
    """

    def __init__(self, namespace, without):
        self.namespace = namespace
        self.entries = {}
        self._without = {id(one) for one in without}
        self._seen = {}

    def value(self, x):
        """Return what stands for an object in JSON, or `...` for what is left out."""
        x = _plain(x)
        if id(x) in self._without or isinstance(x, (tf.Variable, keras.Variable, types.ModuleType)):
            return ...
        if x is None or isinstance(x, (bool, int, str)):
            return x
        if isinstance(x, (float, np.floating)):
            return float(x) if math.isfinite(x) else str(x)
        if isinstance(x, np.generic):
            return x.item()
        if isinstance(x, (set, frozenset)):
            return sorted((self.value(item) for item in x), key=str)
        if isinstance(x, (list, tuple)):
            return [item for item in map(self.value, x) if item is not ...]
        if isinstance(x, dict):
            values = {str(key): self.value(item) for key, item in x.items()}
            return {key: item for key, item in values.items() if item is not ...}
        if isinstance(x, np.ndarray) or (tf.is_tensor(x) and hasattr(x, "numpy")):
            return _tensor_fingerprint(x.ref()) if tf.is_tensor(x) else _fingerprint(x)
        if isinstance(x, tf.DType):
            return x.name
        if isinstance(x, functools.partial):
            return [self.value(x.func), self.value(x.args), self.value(x.keywords)]
        if isinstance(x, types.MethodType):
            return self.value(x.__func__)
        if self._is_mine(x):
            return self._function(x) if isinstance(x, types.FunctionType) else self._class(x)
        if inspect.isroutine(x) or inspect.isclass(x):
            return x.__name__
        if hasattr(x, "get_config"):
            return {"class_name": type(x).__name__, "config": self.config(x)}
        if self._is_mine(type(x)) and id(x) not in self._seen:
            self._seen[id(x)] = ...
            return [self._class(type(x)), self.value(vars(x))]
        return ...

    def _is_mine(self, x):
        """Return the boolean whether a function or class is defined in the notebook."""
        if isinstance(x, types.FunctionType):
            return x.__globals__ is self.namespace
        return inspect.isclass(x) and x.__module__ == self.namespace["__name__"]

    def _note(self, name, x):
        value = self.value(x)
        if value is not ... and value != name:
            self.entries[name] = value

    def _function(self, function):
        """Note what a function uses, and return its name, or its source when it is a lambda."""
        if id(function) in self._seen:
            return self._seen[id(function)]
        is_lambda, name = function.__name__ == "<lambda>", function.__qualname__.replace("<locals>.", "")
        source = _source(function)
        self._seen[id(function)] = source if is_lambda else name
        for used in sorted(_global_names(function.__code__) & self.namespace.keys()):
            self._note(used, self.namespace[used])
        # What the text can't tell: the values of an outer function's names, and of the defaults.
        inner = dict(function.__kwdefaults__ or {}) | dict(enumerate(function.__defaults__ or ()))
        for used, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # It has no value yet.
                inner[used] = cell.cell_contents
        values = {used: self.value(x) for used, x in inner.items() if used != "__class__"}
        source += "".join(f"\n# {used} = {v}" for used, v in values.items() if v not in (..., None))
        while not is_lambda and self.entries.setdefault(_SOURCE + name, source) != source:
            name += "'"  # Another one of the same name.
        self._seen[id(function)] = source if is_lambda else name
        return self._seen[id(function)]

    def _class(self, cls):
        """Note the methods and values of a class and return its name."""
        name = cls.__qualname__
        if id(cls) not in self._seen:
            self._seen[id(cls)] = name
            bases = ", ".join(str(self.value(base)) for base in cls.__bases__)
            self.entries[_SOURCE + name] = f"class {name}({bases})"
            for key, x in sorted(vars(cls).items()):
                x = x.fget if isinstance(x, property) else getattr(x, "__func__", x)
                if isinstance(x, types.FunctionType) or not key.startswith("_"):
                    self._note(f"{name}.{key}", x)
        return name

    def config(self, x):
        """Return the configuration of a Keras object, and note the functions and classes it uses."""
        self.value(type(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each lambda.
            config = x.get_config()
        for key in config:
            part = getattr(x, key, None)
            if isinstance(part, keras.layers.Layer):
                config[key] = self.value(part)
            elif self._is_mine(part) and self.value(part).startswith("lambda"):
                # Keras writes down the bytes of a lambda, which tell the file of the kernel.
                config[key] = self.value(part)
        layers = {layer.name: layer for layer in getattr(x, "layers", ())}
        for entry in config.get("layers", ()) if layers else ():
            if layer := layers.pop(entry["config"]["name"], None):
                entry["config"] = self.config(layer)
        if isinstance(x, keras.Model) and layers:  # Of a class of its own.
            config["parts"] = self.value(list(layers.values()))
        return config

    def optimizer(self, optimizer):
        """Return the configuration of an optimizer, and note what it uses of the notebook."""
        self.value([type(optimizer), getattr(optimizer, "_learning_rate", None)])  # Perhaps a schedule.
        return keras.optimizers.serialize(optimizer)


def _fingerprint(array):
    """Return what stands for an array in JSON."""
    if array.dtype == object:
        data = repr(array.tolist()).encode()
    else:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sha256 = hashlib.sha256(data).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": sha256}


@functools.lru_cache(maxsize=4)
def _tensor_fingerprint(reference):
    """Return what stands for a tensor in JSON. It never changes, and the training set takes 0.2 s."""
    return _fingerprint(np.asarray(reference.deref()))


def _plain(function):
    """Return a function without what decorators, e.g. tf.function, put around it."""
    function = getattr(function, "python_function", function)
    return inspect.unwrap(function) if callable(function) else function


def _global_names(code):
    """Return the set of the global names that a piece of code uses, with all functions within it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    used = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return used.union(*map(_global_names, inner))


def _source(function):
    """Return the source code of a function without comments and docstrings, in a uniform layout."""
    code = function.__code__
    try:
        tree = _parsed("".join(inspect.findsource(code)[0]))
    except (OSError, SyntaxError):  # Made by a program, e.g. by `dataclass`.
        return code.co_code.hex()
    positions = set(code.co_positions())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min(part.lineno for part in (node, *node.decorator_list))
            is_it = (first, node.name) == (code.co_firstlineno, code.co_name)
        elif isinstance(node, ast.Lambda):
            body = node.body
            place = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
            is_it = code.co_name == "<lambda>" and place in positions
        else:
            continue
        if is_it:
            return ast.unparse(node)
    return code.co_code.hex()


@functools.lru_cache(maxsize=100)
def _parsed(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _with_numbered_layers(x, layers=()):
    """Replace names in the connections of layers by numbers. Keras counts on in a later network."""
    if isinstance(x, dict):
        if isinstance(x.get("layers"), list):
            layers = [layer["config"].get("name") for layer in x["layers"]]
        return {key: _with_numbered_layers(part, layers) for key, part in x.items()}
    if isinstance(x, list):
        if len(x) == 3 and x[0] in layers and all(isinstance(number, int) for number in x[1:]):
            return [layers.index(x[0]), *x[1:]]
        return [_with_numbered_layers(part, layers) for part in x]
    return x


def _differences(old, new, sides=("there", "here")):
    """Describe the differences between two identities.

    Entries that only one of the two has make no difference, because versions of this program and of Keras
    differ in these; but a function that only one has does, if the other one has functions at all.
    """
    old, new = (side | {"network": _with_numbered_layers(side["network"])} for side in (old, new))
    functions = [{key for key in side if key.startswith(_SOURCE)} for side in (old, new)]
    if all(functions):
        old = dict.fromkeys(functions[1] - functions[0], "") | old
        new = dict.fromkeys(functions[0] - functions[1], "") | new
    return _compare_values(old, new, "", sides)


def _compare_values(old, new, place, sides):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() & new.keys()):
            if place and (
                key in ("module", "registered_name") or key == "name" and not place.endswith("dtype.config")
            ):
                continue
            yield from _compare_values(old[key], new[key], f"{place}.{key}" if place else key, sides)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _compare_values(*pair, f"{place}[{i}]", sides)
    elif old != new:
        for line in difflib.ndiff(_lines(old), _lines(new)):
            if line[0] in "+-":
                yield f"  {place}, only {sides[line[0] == '+']}: {line[2:].strip()}"


def _lines(value):
    """Return a setting as lines of text: those of source code, or one for each layer or number."""
    if isinstance(value, list):
        return [
            entry.get("class_name", str(entry)) if isinstance(entry, dict) else str(entry) for entry in value
        ]
    return f"{value:.6g}".split() if isinstance(value, float) else str(value).splitlines()


def _first_line(error):
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
