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
import linecache
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
_FILE = re.compile(rf"(cifar10_cnn-\d+)({re.escape(_INDEX)}|{re.escape(_DATA)})")
_ANY_FILE = re.compile(r"cifar10_cnn-\d+\..*")
_DELETED = re.compile(rf"(cifar10_cnn-\d+){re.escape(_INDEX)}\.deleted")
_CHANGED = re.compile(r"changed-\d+")
# What TensorFlow raises for files that are cut short, altered or missing.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SOURCE = "source of "
_AT_RANDOM = "random weights"

# The Saver that was used last knows what the memory of this process holds.
_last = None


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
        global _last
        if not optimizer.built:  # Else its variables would be restored too late.
            optimizer.build(network.trainable_variables)
        objects = {"network": network, "optimizer": optimizer, "global_step": global_step, **variables}
        same = {name for name, part in objects.items() if _last and _last._objects.get(name) is part}
        if same == objects.keys():  # Its cell was run again.
            vars(self).update(vars(_last))
            self._train_step, _last = train_step, self
            return
        self._network, self._optimizer, self._global_step = network, optimizer, global_step
        self._train_step, self._variables, self._objects = train_step, variables, objects
        # The rate the optimizer was made with. One that is set by hand is saved like the weights.
        self._rate = _last._rate if "optimizer" in same else optimizer.get_config().get("learning_rate")
        self._saved = _last._saved if "global_step" in same else (0, 0)
        self._is_trained = bool(same) and _last._global_step.numpy() > 0
        self._is_chief = tf.distribute.get_strategy().extended.should_checkpoint
        self._interrupts = _Interrupts()
        self._folder = None

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
        global _last
        self._check_objects()
        step, _ = self._progress()
        if step and step != self._saved[0]:
            raise CheckpointError(
                f"The network has had {step} iterations, but they are not saved. Call saver.save(), or "
                "restart the kernel, which gives them up."
            )
        base, identity = Path(save_dir).expanduser(), self._make_identity()
        others, damaged = {}, {}
        for path in _checkpoints(*_folders(base)):
            try:
                values, differences = self._judge(path, identity)
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename} can't be read: {error.strerror}. Make it readable, or move it away."
                ) from error
            if values and not differences:
                began, folder = self._assign(path, values), path.parent
                if any(other.parent == folder for other in others):
                    print(f"{folder}{os.sep} also has newer checkpoints, of another training. They are kept.")
                    folder = _new_folder(base)
                break
            (others if values else damaged)[path] = differences
            if not values:
                print(f"Damaged, so it is not used: {path} ({differences[0]})")
        else:
            began, folder = _AT_RANDOM, self._new_run_folder(base, others, damaged)
        self._folder, self._identity, self._began = folder.absolute(), identity, began
        self._saved, self._cannot_delete, _last = self._progress(), False, self

    def save(self):
        """Save a checkpoint in the folder of `restore`, and delete the oldest ones of this run.

        The files are written elsewhere in the folder and get their names when they are whole and on the
        disk, so a checkpoint is there completely or not at all. When it can't be saved, for example
        because the disk is full, that is printed, no other file is touched, and training can go on.

        :return: Boolean whether it was saved.
        :raises CheckpointError: `restore` wasn't called, or what is trained isn't what would be saved.
        """
        self._check_objects(needs_folder=True)
        iterations, updates = np.subtract(self._progress(), self._saved)
        if bool(iterations) != bool(updates):
            raise CheckpointError(
                f"{iterations} iterations, but {updates} updates of the optimizer: a function made before a "
                "cell was run again still trains what was there before. Restart the kernel and run all cells."
            )
        if not self._is_chief:
            self._saved = self._progress()
            return False
        path = self._folder / f"cifar10_cnn-{self._progress()[0]}"
        with self._interrupts.held():
            try:
                self._write(path)
            except (OSError, tf.errors.OpError) as error:
                shutil.rmtree(path.with_name("cifar10_cnn-unfinished"), ignore_errors=True)
                print(
                    f"COULD NOT SAVE {path}: {_first_line(error)}\nFree some space on that disk or make the "
                    "folder writable. Training goes on, and the next call of saver.save() tries it again."
                )
                return False
            self._saved = self._progress()
            print("Saved checkpoint.")
            try:
                self._delete_old()
            except OSError as error:
                if not self._cannot_delete:
                    print(f"Old checkpoints can't be deleted, so they are kept: {_first_line(error)}")
                self._cannot_delete = True
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
                    _lock(self._folder, stack)
                    self._set_damaged_aside()
            except (CheckpointError, OSError) as error:
                problem = error
            steps = _of_all_processes(-1 if problem else self._progress()[0])
            if problem:
                raise problem
            if len(set(steps)) > 1:
                have = ", ".join(
                    f"process {i}: {n}" if n >= 0 else f"process {i} can't begin" for i, n in enumerate(steps)
                )
                raise CheckpointError(
                    f"The processes must begin after the same iteration, but have restored: {have}. Let all "
                    "read the same save_dir, and restart them."
                )
            stack.enter_context(self._interrupts.noted())
            yield self._interrupts

    def _progress(self):
        """Return the numbers of iterations and of the optimizer's updates so far."""
        return int(self._global_step.numpy()), int(self._optimizer.iterations.numpy())

    def _check_objects(self, needs_folder=False):
        """Check that the notebook still uses the objects of this Saver, and has called `restore`."""
        if needs_folder and self._folder is None:
            raise CheckpointError("It isn't known yet where to save: run saver.restore(save_dir) first.")
        now = _plain(self._train_step).__globals__
        changed = [name for name, part in self._objects.items() if now.get(name, part) is not part]
        if changed:
            raise CheckpointError(
                f"{' and '.join(changed)}: made again, so it isn't what this saver saves. Restart the "
                "kernel, or run the cells from there down again."
            )

    def _check_identity(self):
        differences = _differences(self._identity, self._make_identity(), ("before", "now"))
        if differences:
            lines = "\n".join(differences)
            raise CheckpointError(
                f"This training has changed since saver.restore(save_dir):\n{lines}\nUndo that. Or restart "
                "the kernel and run all cells: then it is another training, with a folder of its own."
            )

    def _make_identity(self):
        """Return the dictionary of all that makes this training run different from others."""
        program = _Program(_plain(self._train_step).__globals__, [self._network, self._optimizer])
        program.value(program.namespace.get("train_step", self._train_step))
        program.value(getattr(self._optimizer, "_learning_rate", None))  # Perhaps a schedule.
        config = program.config(self._optimizer)
        if self._rate is not None:
            config["learning_rate"] = self._rate
        identity = program.entries | {
            "network": program.config(self._network),
            "variables": [f"{v.name} {tuple(v.shape)}" for v in self._network.variables],
            "optimizer": {"class_name": type(self._optimizer).__name__, "config": config},
        }
        return json.loads(json.dumps(identity, default=lambda other: str(type(other))))

    def _judge(self, path, identity=None):
        """Return the values in a checkpoint, {} if it is damaged, and lines that say why it isn't this run's.

        :param identity: That of this run. Without it, that of `restore`, and it must have begun alike.
        """
        try:
            values = _read(path)
        except _DAMAGE as error:
            return {}, [_first_line(error)]
        lines, began, step = [], None, values.get("global_step" + _VALUE, values.get("global_step"))
        if settings := values["settings"]:
            lines = _differences(settings, identity or self._identity)
            began = settings.get("began", _AT_RANDOM)
        elif "beta1_power" in values:
            mine = self._original_variables() | {"global_step": self._global_step}
            parts = {n for n in values if n.startswith("network/") and "/cross_entropy/" not in n}
            wrong = (mine.keys() - values.keys()) | (parts - mine.keys())
            wrong |= {n for n, v in mine.items() if v is None or np.shape(values.get(n)) != tuple(v.shape)}
            if wrong:
                lines = ["  the original program saved it, but these don't fit: " + ", ".join(sorted(wrong))]
        else:
            lines = ["  it was saved by another program"]
        if not lines and step != _number(path):
            lines = [f"  its name says {_number(path)} iterations, but it is of {step}"]
        if not lines and not identity and began != self._began:
            lines = ["  it has begun otherwise"]
        return values, lines

    def _original_variables(self):
        """Return the variables by their names in the original program; those of Adam may be None."""
        moments = {v.path.split("/")[-1]: v for v in self._optimizer.variables}
        variables = {}
        for v in self._network.variables:
            layer, name = v.path.split("/")[-2:]
            name = f"network/{layer}/{name}".replace("layer_softmax", "fully_connected")
            name = name.replace("_batch_normalize", "/batch_normalize").replace("kernel", "weights")
            variables[name] = v
            if v.trainable:
                for ending, moment in (("Adam", "momentum"), ("Adam_1", "velocity")):
                    variables[f"{name}/{ending}"] = moments.get(f"{v.path.replace('/', '_')}_{moment}")
        return variables

    def _assign(self, path, values):
        """Assign all variables the values of a checkpoint, and return how its training run began."""
        if values["settings"]:
            _read(path, into=self._parts())
            print(f"Restored checkpoint from: {path}")
            now, made = float(tf.convert_to_tensor(self._optimizer.learning_rate)), self._rate
            if isinstance(made, float) and not math.isclose(now, made, rel_tol=1e-6):  # Not a schedule.
                print(
                    f"Its learning rate is {now:g}, set by hand; the optimizer was made with {made:g}. To "
                    f"set it back: optimizer.learning_rate = {made:g}"
                )
            return values["settings"].get("began", _AT_RANDOM)
        for name, v in self._original_variables().items():
            v.assign(values[name])
        for v in (self._global_step, self._optimizer.iterations):
            v.assign(_number(path))
        for v in self._variables.values():
            if v.shape.rank and v.shape[0] is None:  # A table that grows. It has no rows then.
                v.assign(v[:0], read_value=False)
        print(f"Restored checkpoint of the original program from: {path}")
        return f"the original program's checkpoint after {_number(path)} iterations"

    def _new_run_folder(self, base, others, damaged):
        """Return the folder for a new network, or raise an error if there must be none."""
        if self._is_trained or any(self._progress()):
            raise CheckpointError(
                f"There is no checkpoint of this training in {base}, but the network in memory is trained. "
                "To train a new one there, restart the kernel and run all cells. To go on there with this "
                f"one, copy its newest checkpoint there first, from {self._folder or 'its folder'}."
            )
        whole = {path.parent for path in others}
        for folder in _folders(base):
            files = [match[0] for match in _matches(_ANY_FILE, folder)]
            if files and folder not in whole:
                reasons = [f"{path.name}: {why}" for path, [why] in damaged.items() if path.parent == folder]
                lines = "\n  ".join(reasons or files)
                raise CheckpointError(
                    f"There are checkpoints in {folder}, but none is whole:\n  {lines}\nNothing was changed. "
                    "Put a whole copy there, move these files away to begin anew, or choose another save_dir."
                )
        for path, differences in itertools.islice(others.items(), 1):
            print(f"The checkpoints in {path.parent}{os.sep} are of another training. They are kept.")
            print("It differs from this one in:", *differences, sep="\n")
        folder = _new_folder(base) if base in whole else base
        print(f"No checkpoint in {folder}{os.sep}, so the variables are new ones.")
        return folder

    def _parts(self, settings=""):
        """Return the objects to save, by name."""
        parts = self._objects | {"settings": _Text(settings)}
        # Random layers, e.g. Dropout, have a state that TensorFlow doesn't find by itself.
        seeds = [v.value for v in self._network.variables if not any(v is w for w in self._network.weights)]
        return parts | {"random_layers": seeds} if seeds else parts

    def _write(self, path):
        unfinished = path.with_name("cifar10_cnn-unfinished")
        if unfinished.exists():  # A process was killed before it could remove it.
            shutil.rmtree(unfinished)
        if path in _checkpoints(path.parent) and self._judge(path)[1]:
            raise FileExistsError("a checkpoint of another training, or a damaged one, has that name")
        unfinished.mkdir(parents=True)
        settings = json.dumps(self._identity | {"began": self._began})
        tf.train.Checkpoint(**self._parts(settings)).write(str(unfinished / path.name))
        for ending in (_DATA, _INDEX):
            _sync(unfinished / (path.name + ending))
        # Whoever finds the index finds the data too.
        for ending in (_DATA, _INDEX):
            os.replace(unfinished / (path.name + ending), f"{path}{ending}")
        unfinished.rmdir()

    def _delete_old(self):
        """Delete the oldest checkpoints of this run. When killed on the way, the next call goes on."""
        _sync(self._folder)
        _sync(self._folder.parent)
        own = []
        for path in _checkpoints(self._folder):
            if len(own) < MAX_TO_KEEP or _number(path) % KEEP_EVERY:
                with contextlib.suppress(OSError):  # It can't be read.
                    values, differences = self._judge(path)
                    own += [path] if values and not differences else []
        for path in reversed(own[MAX_TO_KEEP:]):
            Path(f"{path}{_INDEX}").rename(f"{path}{_INDEX}.deleted")
        for match in _matches(_DELETED, self._folder):
            (self._folder / f"{match[1]}{_DATA}").unlink(missing_ok=True)
            (self._folder / match[0]).unlink()

    def _set_damaged_aside(self):
        """Rename damaged checkpoints that are newer than the network; whole ones are an error."""
        step, _ = self._progress()
        for path in _checkpoints(self._folder):
            if _number(path) <= step:
                break
            values, reasons = self._judge(path)
            if values:
                raise CheckpointError(
                    f"{self._folder} has a checkpoint after {_number(path)} iterations, but this network has "
                    f"had {step}. Restore that one first, or choose another save_dir."
                )
            for file in filter(Path.exists, (Path(f"{path}{ending}") for ending in (_INDEX, _DATA))):
                names = (file.with_name(f"{file.name}.damaged-{number}") for number in itertools.count(1))
                file.rename(next(name for name in names if not name.exists()))
            print(f"Damaged, so it is set aside: {path} ({reasons[0]})")


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
        self._signals, self._is_held = [], False

    def is_set(self):
        return any(_of_all_processes(bool(self._signals)))

    @contextlib.contextmanager
    def noted(self):
        self._signals = []
        with contextlib.ExitStack() as stack:
            # Python delivers no signals to other threads.
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, number, signal.signal(number, self._note))
            yield

    def _note(self, number, frame):
        self._signals.append(number)
        if len(self._signals) == 1:
            with contextlib.suppress(RuntimeError):  # It came in the middle of another print.
                print(
                    "Interrupted: the iterations under way are finished and a checkpoint is saved. Press "
                    "stop again to break off.",
                    flush=True,
                )
        self._break_off()

    def _break_off(self):
        if self._signals.count(signal.SIGINT) > 1 and not self._is_held:
            self._signals = [signal.SIGINT]
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self):
        """Let a second SIGINT wait until the end of this context."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._break_off()


@tf.function
def _gather(number):
    strategy = tf.distribute.get_strategy()
    return strategy.gather(strategy.run(lambda: number[tf.newaxis]), axis=0)


def _of_all_processes(number):
    """Return the list of the numbers that all processes which train together give, in all the same."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return [int(number)]
    return _gather(tf.constant(int(number), tf.int64)).numpy().tolist()


def _lock(folder, stack):
    """Let no other process train in a folder until a stack of contexts is left."""
    owner = folder / "training.owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock of a process that has ended, however it ended.
        stack.enter_context(FileLock(folder / "training.lock").acquire(blocking=False))
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise CheckpointError(
            f"{folder} is in use: {who} is training there. Wait until it has finished, stop it (in "
            "Jupyter, shut down the other kernel), or choose another save_dir."
        ) from None
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: checkpoints can't be saved in {folder}. Make that folder writable or free "
            "some space, or choose another save_dir. Training was not begun.",
        ) from error


########################################################################
# Files.


def _matches(pattern, folder):
    """Return the matches of a pattern with the names in a folder, which need not exist."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [match for match in map(pattern.fullmatch, names) if match]


def _checkpoints(*folders):
    """Return the paths of the checkpoints in folders, whole or not, the newest first."""
    paths = {folder / match[1]: None for folder in folders for match in _matches(_FILE, folder)}
    return sorted(paths, key=_number, reverse=True)


def _number(path):
    return int(path.name.split("-")[1])


def _folders(base):
    """Return a folder and those in it for changed trainings."""
    return [base, *(base / match[0] for match in _matches(_CHANGED, base))]


def _new_folder(base):
    """Return the first folder for a changed training that holds no checkpoints."""
    folders = (base / f"changed-{number}" for number in itertools.count(1))
    return next(folder for folder in folders if not _matches(_ANY_FILE, folder))


def _read(path, into=None):
    """Return all values in a checkpoint by name, and the identity of its run, or {}, as "settings".

    Reading all compares the checksums. It is done in memory: TensorFlow takes a folder named [1] for a
    pattern, and what it raises doesn't tell a damaged file from one that can't be read.

    :param into: Dictionary of objects that are restored, by name.
    """
    folder = f"ram://{uuid.uuid4()}"
    copy = f"{folder}/{path.name}"
    tf.io.gfile.makedirs(folder)
    try:
        for ending in (_INDEX, _DATA):
            tf.io.write_file(copy + ending, Path(f"{path}{ending}").read_bytes())
        reader = tf.compat.v1.train.NewCheckpointReader(copy)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        if into:
            names = into.keys() & {name.split("/")[0] for name in values}
            checkpoint = tf.train.Checkpoint(**{name: into[name] for name in names})
            checkpoint.read(copy).assert_existing_objects_matched()
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from None
    finally:
        tf.io.gfile.rmtree(folder)
    try:
        settings = json.loads(values.get("settings" + _VALUE, ""))
    except ValueError:
        settings = None
    return values | {"settings": settings if isinstance(settings, dict) else {}}


def _sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_file() or os.name != "nt":  # Windows does that for folders by itself.
        file = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
        if isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, float):
            return x if math.isfinite(x) else str(x)
        if x is None or isinstance(x, (int, str)):
            return x
        if isinstance(x, (list, tuple, set, frozenset)):
            items = [item for item in map(self.value, x) if item is not ...]
            return items if isinstance(x, (list, tuple)) else sorted(items, key=str)
        if isinstance(x, dict):
            values = {str(key): self.value(item) for key, item in x.items()}
            return {key: item for key, item in values.items() if item is not ...}
        if isinstance(x, functools.partial):
            return [self.value(x.func), self.value(x.args), self.value(x.keywords)]
        if isinstance(x, np.ndarray):
            return _fingerprint(x)
        if isinstance(x, tf.Tensor) and hasattr(x, "numpy"):
            return _tensor_fingerprint(x.ref())
        if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)):
            return self.value(tf.nest.flatten(x, expand_composites=True))
        if self._is_mine(x):
            return self._function(x) if isinstance(x, types.FunctionType) else self._class(x)
        if isinstance(x, tf.DType):
            return x.name
        if inspect.isroutine(x) or inspect.isclass(x):
            return x.__name__
        if hasattr(x, "get_config"):
            return {"class_name": type(x).__name__, "config": self.config(x)}
        if self._is_mine(type(x)) and id(x) not in self._seen:
            self._seen[id(x)] = ...
            return [self._class(type(x)), self.value(vars(x))]
        return ...

    def config(self, x):
        """Return the configuration of a Keras object, and note the functions and classes it uses."""
        self.value(type(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each lambda.
            config = x.get_config()
        for key in config:
            part = getattr(x, key, None)
            # Keras writes down the bytes of a lambda, which tell the file of the kernel.
            is_lambda = self._is_mine(part) and self.value(part).startswith("lambda")
            if is_lambda or isinstance(part, keras.layers.Layer):
                config[key] = self.value(part)
        layers = {layer.name: layer for layer in getattr(x, "layers", ())}
        for entry in config.get("layers", ()) if layers else ():
            if layer := layers.pop(entry["config"]["name"], None):
                entry["config"] = self.config(layer)
        if isinstance(x, keras.Model) and layers:  # Of a class of its own.
            config["parts"] = self.value(list(layers.values()))
        return config

    def _is_mine(self, x):
        """Return the boolean whether a function or class is defined in the notebook."""
        is_either = isinstance(x, types.FunctionType) or inspect.isclass(x)
        return is_either and x.__module__ == self.namespace["__name__"]

    def _note(self, name, x):
        value = self.value(x)
        if value is not ... and value != name:
            self.entries[name] = value

    def _function(self, function):
        """Note what a function uses, and return its name, or its source when it is a lambda."""
        if id(function) in self._seen:
            return self._seen[id(function)]
        is_lambda, name = function.__name__ == "<lambda>", function.__qualname__.replace("<locals>.", "")
        source = _source(function.__code__)
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
                x = _plain(x)
                if isinstance(x, types.FunctionType) or not key.startswith("_"):
                    self._note(f"{name}.{key}", x)
        return name


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
    """Return a function without what is put around it by tf.function, a class or another decorator."""
    for wrapper in ("python_function", "__func__", "fget", "__wrapped__"):
        if (inner := getattr(function, wrapper, None)) is not None:
            return _plain(inner)
    return function


def _global_names(code):
    """Return the set of the global names that a piece of code uses, with all functions within it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    used = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return used.union(*map(_global_names, inner))


def _source(code):
    """Return the source code of a function without comments and docstrings, in a uniform layout."""
    with contextlib.suppress(SyntaxError):
        for node in _functions("".join(linecache.getlines(code.co_filename))):
            if isinstance(node, ast.Lambda):
                body = node.body
                place = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
                is_it = code.co_name == "<lambda>" and place in code.co_positions()
            else:
                first = min(part.lineno for part in (node, *node.decorator_list))
                is_it = (first, node.name) == (code.co_firstlineno, code.co_name)
            if is_it:
                return ast.unparse(node)
    return code.co_code.hex()  # Made by a program, e.g. by `dataclass`.


@functools.lru_cache(maxsize=100)
def _functions(text):
    """Return the syntax trees of all functions in a text, without docstrings."""
    nodes = list(ast.walk(ast.parse(text)))
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]


def _differences(old, new, sides=("there", "here")):
    """Return lines that describe the differences between two identities.

    Entries that only one of the two has make no difference, because versions of this program and of Keras
    differ in these; but a function that only one has does, if the other one has functions at all.
    """
    old, new = (side | {"network": _with_numbered_layers(side.get("network"))} for side in (old, new))
    functions = [{key for key in side if key.startswith(_SOURCE)} for side in (old, new)]
    if all(functions):
        old = dict.fromkeys(functions[1], "") | old
        new = dict.fromkeys(functions[0], "") | new
    return list(_compare_values(old, new, "", sides))


def _with_numbered_layers(x, names=()):
    """Replace names in the connections of layers by numbers. Keras counts on in a later network."""
    if isinstance(x, dict):
        if isinstance(x.get("layers"), list):
            names = [layer["config"].get("name") for layer in x["layers"]]
        return {key: _with_numbered_layers(part, names) for key, part in x.items()}
    if isinstance(x, list):
        if len(x) == 3 and x[0] in names and all(isinstance(number, int) for number in x[1:]):
            return [names.index(x[0]), *x[1:]]
        return [_with_numbered_layers(part, names) for part in x]
    return x


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
        return [str(entry.get("class_name", entry) if isinstance(entry, dict) else entry) for entry in value]
    return f"{value:.6g}".split() if isinstance(value, float) else str(value).splitlines()
