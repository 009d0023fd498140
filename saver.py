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
import itertools
import json
import linecache
import os
import re
import shutil
import signal
import socket
import types
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
_FILE = r"cifar10_cnn-\d+(\.index|\.data-00000-of-00001)"
_ANY_FILE = r"cifar10_cnn-\d+\..*"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SOURCE = "source of "
_AT_RANDOM = "random weights"
# What TensorFlow raises for files that are cut short, altered or missing.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)

# The Saver that was used last knows what the memory of this process holds.
_last = None
_print_once = functools.cache(print)


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
        objects = {"network": network, "optimizer": optimizer, "global_step": global_step, **variables}
        same = {name for name, part in objects.items() if _last and _last._objects.get(name) is part}
        if same == objects.keys():  # Its cell was run again.
            self.__dict__ = vars(_last)
        else:
            self._network, self._optimizer, self._global_step = network, optimizer, global_step
            self._objects, self._folder = objects, None
            # The rate the optimizer was made with. One that is set by hand is saved like the weights.
            self._rate = _last._rate if "optimizer" in same else _learning_rate(optimizer)
            self._saved = _last._saved if "global_step" in same else (0, 0)
            self._is_trained = bool(same) and _last._progress()[0] > 0
            self._is_chief = tf.distribute.get_strategy().extended.should_checkpoint
            self._interrupts = _Interrupts()
        self._train_step = train_step

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
        folders, others, damaged = [base, *_files(base, r"changed-\d+")], {}, {}
        for path in _checkpoints(*folders):
            values, reasons = self._judge(path, identity)
            if values is None:
                raise CheckpointError(reasons[0])
            if not reasons:
                folder, began = path.parent, self._assign(path, values)
                if any(other.parent == folder for other in others):
                    print(f"{folder}{os.sep} also has newer checkpoints, of another training. They are kept.")
                    folder = _empty_folder(base)
                break
            (others if values else damaged)[path] = reasons
            if not values:
                print(f"Damaged, so it is not used: {path} ({reasons[0]})")
        else:
            folder, began = self._new_run(folders, others, damaged), _AT_RANDOM
        self._folder, self._identity = folder.absolute(), identity | {"began": began}
        self._saved, _last = self._progress(), self

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
        with self._interrupts:
            try:
                self._write(path)
            except (OSError, tf.errors.OpError) as error:
                print(
                    f"COULD NOT SAVE {path}: {_first_line(error)}\nFree some space on that disk or make the "
                    "folder writable. Training goes on, and the next call of saver.save() tries it again."
                )
                return False
            self._saved = self._progress()
            print("Saved checkpoint.")
            self._delete_old()
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
        with contextlib.ExitStack() as stack:
            try:
                self._check_objects(needs_folder=True)
                if lines := _differences(self._identity, self._make_identity(), ("before", "now")):
                    lines = "\n".join(lines)
                    raise CheckpointError(
                        f"This training has changed since saver.restore(save_dir):\n{lines}\nUndo that. Or "
                        "restart the kernel and run all cells: then it is another training, with a folder "
                        "of its own."
                    )
                if self._is_chief:
                    stack.enter_context(_lock(self._folder))
                    self._set_damaged_aside()
            except (CheckpointError, OSError):
                _of_all_processes(-1)  # So that none waits for this one.
                raise
            steps = _of_all_processes(self._progress()[0])
            if len(set(steps)) > 1:
                have = ", ".join(f"process {i}: {n}" for i, n in enumerate(steps))
                have = have.replace(": -1", " can't begin")
                raise CheckpointError(
                    f"The processes must begin after the same iteration, but have restored: {have}. Let all "
                    "read the same save_dir, and restart them."
                )
            self._interrupts = _Interrupts()
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(ValueError):  # Python delivers no signals to other threads.
                    stack.callback(signal.signal, number, signal.signal(number, self._interrupts.note))
            yield self._interrupts

    def _progress(self):
        """Return the numbers of iterations and of the optimizer's updates so far."""
        return int(self._global_step.numpy()), int(self._optimizer.iterations.numpy())

    def _check_objects(self, needs_folder=False):
        """Check that the notebook still uses the objects of this Saver, and has called `restore`."""
        if needs_folder and self._folder is None:
            raise CheckpointError("It isn't known yet where to save: run saver.restore(save_dir) first.")
        now = _notebook(self._train_step)
        if changed := [name for name, part in self._objects.items() if now.get(name, part) is not part]:
            raise CheckpointError(
                f"{' and '.join(changed)}: made again, so it isn't what this saver saves. Restart the "
                "kernel, or run the cells from there down again."
            )

    def _make_identity(self):
        """Return the dictionary of all that makes this training run different from others."""
        program = _Program(_notebook(self._train_step), [self._network, self._optimizer])
        program.value(program.namespace.get("train_step", self._train_step))
        optimizer = program.config(self._optimizer) | {"learning_rate": program.value(self._rate)}
        return program.entries | {
            "network": program.config(self._network),
            "variables": [f"{v.name} {tuple(v.shape)}" for v in self._network.variables],
            "optimizer": {"class_name": type(self._optimizer).__name__, "config": optimizer},
        }

    def _judge(self, path, identity):
        """Return the values in a checkpoint and the lines that say why it isn't one of this run.

        The values are {} if it is damaged, and None if it can't be read.
        """
        try:
            values = _read(path)
        except FileNotFoundError as error:
            return {}, [f"{Path(error.filename).name} is missing"]
        except OSError as error:
            return None, [f"{error.filename} can't be read: {error.strerror}. Change that, or move it away."]
        except _DAMAGE as error:
            return {}, [_first_line(error)]
        step, lines = values.get("global_step" + _VALUE, values.get("global_step")), []
        if values["settings"]:
            lines = _differences(values["settings"], identity)
        elif "beta1_power" not in values:
            lines = ["  it was saved by another program"]
        elif "began" in identity:
            lines = ["  the original program saved it"]
        else:
            mine = self._original_variables()
            names = {name for name in values if name.startswith("network/")}
            names |= {name for name, v in mine.items() if v is not None}
            # It also has averages of the loss, single numbers, which nothing here corresponds to.
            if wrong := sorted(n for n in names if np.shape(values.get(n, [])) != np.shape(mine.get(n))):
                lines = ["  the original program saved it, but these don't fit: " + ", ".join(wrong)]
        if not lines and step != _number(path):
            lines = [f"  its name says {_number(path)} iterations, but it is of {step}"]
        return values, lines

    def _original_variables(self):
        """Return the variables by their names in the original program; those of Adam may be None."""
        moments = {v.path.split("/")[-1]: v for v in self._optimizer.variables}
        variables = {"global_step": self._global_step}
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
            now = _learning_rate(self._optimizer)
            if isinstance(now, float) and not np.isclose(now, self._rate, rtol=1e-6, atol=0):
                print(f"Its learning rate is {now:g}, set by hand. To set it back:")
                print(f"optimizer.learning_rate = {self._rate:g}")
            return values["settings"]["began"]
        for name, v in self._original_variables().items():
            v.assign(values[name])
        self._optimizer.iterations.assign(_number(path))
        for v in self._objects.values():
            if isinstance(v, tf.Variable) and v.shape[:1] == [None]:  # A table: it has no rows then.
                v.assign(v[:0], read_value=False)
        print(f"Restored checkpoint of the original program from: {path}")
        return f"the original program's checkpoint after {_number(path)} iterations"

    def _new_run(self, folders, others, damaged):
        """Return the folder for a new network, or raise an error if there must be none."""
        if self._is_trained or any(self._progress()):
            raise CheckpointError(
                f"There is no checkpoint of this training in {folders[0]}, but the network in memory is "
                "trained. To train a new one there, restart the kernel and run all cells. To go on there "
                f"with this one, copy its newest checkpoint there first, from {self._folder or 'its folder'}."
            )
        for folder in folders:
            names = [file.name for file in _files(folder, _ANY_FILE)]
            if names and not any(path.parent == folder for path in others):
                reasons = [f"{path.name}: {why}" for path, [why] in damaged.items() if path.parent == folder]
                lines = "\n  ".join(reasons or names)
                raise CheckpointError(
                    f"There are checkpoints in {folder}, but none is whole:\n  {lines}\nNothing was changed. "
                    "Put a whole copy there, move these files away to begin anew, or choose another save_dir."
                )
        for path, differences in itertools.islice(others.items(), 1):
            print(f"The checkpoints in {path.parent}{os.sep} are of another training. They are kept.")
            print("It differs from this one in:", *differences, sep="\n")
        folder = _empty_folder(folders[0])
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
        shutil.rmtree(unfinished, ignore_errors=True)  # A process was killed before it could remove it.
        if path in _checkpoints(path.parent) and self._judge(path, self._identity)[1]:
            raise FileExistsError("a checkpoint of another training, or a damaged one, has that name")
        unfinished.mkdir(parents=True)
        try:
            parts = self._parts(json.dumps(self._identity))
            tf.train.Checkpoint(**parts).write(str(unfinished / path.name))
            for ending in (_DATA, _INDEX):
                _sync(unfinished / (path.name + ending))
            # Whoever finds the index finds the data too.
            for ending in (_DATA, _INDEX):
                os.replace(unfinished / (path.name + ending), f"{path}{ending}")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _delete_old(self):
        """Delete the oldest checkpoints of this run. When killed on the way, the next call goes on."""
        own = [path for path in _checkpoints(self._folder) if not self._judge(path, self._identity)[1]]
        try:
            _sync(self._folder)
            _sync(self._folder.parent)
            for path in reversed(own[MAX_TO_KEEP:]):
                if _number(path) % KEEP_EVERY:
                    Path(f"{path}{_INDEX}").rename(f"{path}{_INDEX}.deleted")
            for file in _files(self._folder, r"cifar10_cnn-\d+\.index\.deleted"):
                file.with_name(file.name.replace(f"{_INDEX}.deleted", _DATA)).unlink(missing_ok=True)
                file.unlink()
        except OSError as error:
            _print_once(f"Old checkpoints can't be deleted, so they are kept: {_first_line(error)}")

    def _set_damaged_aside(self):
        """Rename damaged checkpoints that are newer than the network; whole ones are an error."""
        step, _ = self._progress()
        for path in itertools.takewhile(lambda path: _number(path) > step, _checkpoints(self._folder)):
            values, reasons = self._judge(path, self._identity)
            if values != {}:
                raise CheckpointError(
                    f"{self._folder} has a checkpoint after {_number(path)} iterations, but this network has "
                    f"had {step}. Restore that one first, or choose another save_dir."
                )
            for file in filter(Path.exists, (Path(f"{path}{ending}") for ending in (_INDEX, _DATA))):
                names = (file.with_name(f"{file.name}.damaged-{number}") for number in itertools.count(1))
                file.rename(next(name for name in names if not name.exists()))
            print(f"Damaged, so it is set aside: {path} ({reasons[0]})")


########################################################################
# Interrupts, and other processes.


class _Interrupts:
    """Notes SIGINT and SIGTERM. A second SIGINT breaks off, but not within this context."""

    def __init__(self):
        self._signals, self._is_held = [], False

    def is_set(self):
        return any(_of_all_processes(bool(self._signals)))

    def note(self, number, frame):
        self._signals.append(number)
        if len(self._signals) == 1:
            with contextlib.suppress(RuntimeError):  # It came in the middle of another print.
                print(
                    "Interrupted: the iterations under way are finished and a checkpoint is saved. Press "
                    "stop again to break off.",
                    flush=True,
                )
        self._break_off()

    def __enter__(self):
        self._is_held = True

    def __exit__(self, *error):
        self._is_held = False
        self._break_off()

    def _break_off(self):
        if self._signals.count(signal.SIGINT) > 1 and not self._is_held:
            self._signals = [signal.SIGINT]
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


def _lock(folder):
    """Return a context in which no other process trains in a folder."""
    owner = folder / "training.owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock of a process that has ended, however it ended.
        lock = FileLock(folder / "training.lock").acquire(blocking=False)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        return lock
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
# Files, and what TensorFlow and Keras don't tell by themselves.


def _files(folder, pattern):
    """Return the paths in a folder, which need not exist, whose names match a pattern."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if re.fullmatch(pattern, path.name)]


def _checkpoints(*folders):
    """Return the paths of the checkpoints in folders, whole or not, without endings, the newest first."""
    files = (file for folder in folders for file in _files(folder, _FILE))
    paths = dict.fromkeys(file.with_name(file.name.split(".")[0]) for file in files)
    return sorted(paths, key=_number, reverse=True)


def _number(path):
    return int(path.name.split("-")[1])


def _empty_folder(base):
    """Return the first of a folder and those in it for changed trainings that holds no checkpoints."""
    folders = itertools.chain([base], (base / f"changed-{number}" for number in itertools.count(1)))
    return next(folder for folder in folders if not _files(folder, _ANY_FILE))


def _read(path, into=None):
    """Return all values in a checkpoint by name, and the identity of its run, or {}, as "settings".

    Reading all compares the checksums. It is done in memory: TensorFlow takes a folder named [1] for a
    pattern, and what it raises doesn't tell a damaged file from one that can't be read.

    :param into: Dictionary of objects that are restored, by name.
    :raises OSError: A file can't be read.
    """
    copy = f"ram://saver/{path.name}"
    tf.io.gfile.makedirs("ram://saver")
    try:
        for ending in (_INDEX, _DATA):
            tf.io.write_file(copy + ending, Path(f"{path}{ending}").read_bytes())
        reader = tf.compat.v1.train.NewCheckpointReader(copy)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        if into:
            names = into.keys() & {name.split("/")[0] for name in values}
            checkpoint = tf.train.Checkpoint(**{name: into[name] for name in names})
            checkpoint.read(copy).assert_existing_objects_matched()
    finally:
        tf.io.gfile.rmtree("ram://saver")
    settings = {}
    with contextlib.suppress(KeyError, TypeError, ValueError):  # Of another program.
        settings = {"began": _AT_RANDOM} | json.loads(values["settings" + _VALUE])
    return values | {"settings": settings}


class _Text(tf.Module):
    """A text that is saved in the way of a string variable, on whatever device, and is never restored."""

    def __init__(self, text):
        self._text = text

    def _serialize_to_tensors(self):
        return {"VARIABLE_VALUE": tf.constant(self._text)}

    def _restore_from_tensors(self, restored):
        pass


def _learning_rate(optimizer):
    """Return the learning rate of an optimizer now, a float, or the schedule that it follows."""
    rate = optimizer._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate


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
        TensorFlow, stands for itself by its name. Variables, which training changes, are left out.
    :param without: List of objects that are left out as well.
    """

    def __init__(self, namespace, without):
        self.namespace, self.entries = namespace, {}
        self._known = {id(x): ... for x in without}

    def value(self, x):
        """Return what stands for an object in JSON, or `...` for what is left out."""
        if id(x) in self._known:
            return self._known[id(x)]
        if isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, np.ndarray):
            return _fingerprint(x)
        if isinstance(x, tf.Tensor) and hasattr(x, "numpy"):
            return _tensor_fingerprint(x.ref())
        if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)):
            return self.value(tf.nest.flatten(x, expand_composites=True))
        if isinstance(x, float):
            return x if np.isfinite(x) else str(x)
        if x is None or isinstance(x, (int, str)):
            return x
        if isinstance(x, (list, tuple)):
            return [value for value in map(self.value, x) if value is not ...]
        if isinstance(x, (set, frozenset)):
            return self.value(sorted(x, key=str))
        if isinstance(x, dict):
            return {str(key): value for key, part in x.items() if (value := self.value(part)) is not ...}
        if isinstance(x, functools.partial):
            return self.value([x.func, x.args, x.keywords])
        if isinstance(x, types.MethodType):
            return self.value([x.__func__, x.__self__])
        if isinstance(x, types.FunctionType) and x.__globals__ is self.namespace:
            return self._function(x)
        if (inner := _unwrapped(x)) is not x:
            return self.value(inner)
        if isinstance(x, type) and self._is_mine(x):
            return self._class(x)
        if isinstance(x, type) or not (hasattr(x, "get_config") or self._is_mine(type(x))):
            return getattr(x, "__name__", x.name if isinstance(x, tf.DType) else ...)
        self._known[id(x)] = ...  # For as long as it is described, as it may refer to itself.
        if hasattr(x, "get_config"):
            value = {"class_name": type(x).__name__, "config": self.config(x)}
        else:
            value = self.value([type(x), vars(x)])
        del self._known[id(x)]
        return value

    def config(self, x):
        """Return the configuration of a Keras object, and note the functions and classes it uses."""
        self.value(type(x))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras warns of each lambda.
                config = x.get_config()
        except (NotImplementedError, TypeError, ValueError):  # It isn't made to be written down.
            functions, is_mine = (types.FunctionType, functools.partial), self._is_mine(type(x))
            parts = vars(x) if is_mine or not isinstance(x, keras.Model) else {}
            config = {k: part for k, part in parts.items() if k[0] != "_" or isinstance(part, functions)}
        for key, part in config.items():
            value = self.value(getattr(x, key, ...)) if isinstance(part, dict) else ...
            # Of a lambda Keras writes down the bytes, which tell the file of the kernel.
            if isinstance(value, (dict, list)) or str(value).startswith("lambda"):
                config[key] = value
        if isinstance(x, keras.Model):
            layers = {layer.name: layer for layer in x.layers}
            plain = [{"class_name": type(v).__name__, "config": {"name": k}} for k, v in layers.items()]
            for entry in config.setdefault("layers", plain):  # There are none if it has a class of its own.
                if layer := layers.get(entry["config"].get("name")):
                    entry["config"] = self.value(layer)["config"]
        return self.value(config)

    def _is_mine(self, cls):
        return cls.__module__ == self.namespace["__name__"]

    def _note(self, name, x):
        value = repr(x) if isinstance(x, (slice, range)) else self.value(x)
        if value not in (..., name):
            self.entries[name] = value

    def _function(self, function):
        """Note what a function uses, and return its name, or its source when it is a lambda."""
        code, name = function.__code__, function.__qualname__.replace("<locals>.", "")
        is_lambda, source = code.co_name == "<lambda>", _source(code)
        self._known[id(function)] = source if is_lambda else name
        for used in sorted(_global_names(code) & self.namespace.keys()):
            self._note(used, self.namespace[used])
        # What the text can't tell: the values of an outer function's names, and of the defaults.
        inner = dict(function.__kwdefaults__ or {}) | dict(enumerate(function.__defaults__ or ()))
        for used, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # It has no value yet.
                inner[used] = cell.cell_contents
        values = {used: self.value(x) for used, x in inner.items() if used != "__class__"}
        source += "".join(f"\n# {used} = {v}" for used, v in values.items() if v not in (..., None))
        while not is_lambda and self.entries.setdefault(_SOURCE + name, source) != source:
            name += "'"  # Another one of the same name.
        self._known[id(function)] = source if is_lambda else name
        return self._known[id(function)]

    def _class(self, cls):
        """Note the methods and values of a class and return its name."""
        name = self._known[id(cls)] = cls.__qualname__
        bases = ", ".join(str(self.value(base)) for base in cls.__bases__)
        self.entries[_SOURCE + name] = f"class {name}({bases})"
        for key, x in sorted(vars(cls).items()):
            if isinstance(x, types.FunctionType) or not key.startswith("__"):
                self._note(f"{name}.{key}", x)
        return name


def _notebook(function):
    """Return the dictionary of the global names of the notebook that a function belongs to."""
    inner = getattr(function, "func", None) or _unwrapped(function)
    return function.__globals__ if inner is function else _notebook(inner)


def _unwrapped(function):
    """Return a function without what is put around it by tf.function, a class or another decorator."""
    inner = (getattr(function, name, None) for name in ("python_function", "__func__", "fget", "__wrapped__"))
    return next((one for one in inner if one is not None), function)


def _fingerprint(array):
    """Return what stands for an array in JSON."""
    if array.dtype == object:
        data = repr(array.tolist()).encode()
    else:  # The bytes in place: a copy of the training set would be 154 MB.
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sha256 = hashlib.sha256(data).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": sha256}


@functools.lru_cache(maxsize=4)
def _tensor_fingerprint(reference):
    """Return what stands for a tensor in JSON. It never changes, and the training set takes 0.2 s."""
    return _fingerprint(np.asarray(reference.deref()))


def _global_names(code):
    """Return the set of the global names that a piece of code uses, with all functions within it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    used = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return used.union(*map(_global_names, inner))


def _source(code):
    """Return the source code of a function without comments and docstrings, in a uniform layout."""
    functions = _functions("".join(linecache.getlines(code.co_filename)))
    places = code.co_positions() if code.co_name == "<lambda>" else [(code.co_firstlineno, code.co_name)]
    found = [functions[place] for place in places if place in functions]
    return ast.unparse(found[0]) if found else code.co_code.hex()  # E.g. `dataclass` writes no source.


@functools.lru_cache(maxsize=100)
def _functions(text):
    """Return the functions in a text as syntax trees, by the place of a lambda or the first line and name."""
    functions = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Lambda):
            body = node.body
            functions[body.lineno, body.end_lineno, body.col_offset, body.end_col_offset] = node
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions[min(part.lineno for part in (node, *node.decorator_list)), node.name] = node
    return functions


def _differences(old, new, sides=("there", "here")):
    """Return lines that describe the differences between two identities.

    Entries that only one of the two has make no difference, because versions of this program and of Keras
    differ in these; but a function that only one has does, if the other one has functions at all.
    """
    functions = [{key for key in side if key.startswith(_SOURCE)} for side in (old, new)]
    if all(functions):
        old = dict.fromkeys(functions[1], "") | old
        new = dict.fromkeys(functions[0], "") | new
    old, new = ({key: _nameless(part) for key, part in side.items()} for side in (old, new))
    lines = list(_compare(old, new, "", sides))
    return [*lines[:20], f"  and {len(lines) - 20} more"] if len(lines) > 20 else lines


def _nameless(x, names=()):
    """Return a part of an identity without names, for which Keras counts on in a later network.

    The connections of layers have numbers instead. A type of numbers and a function have just a name.
    """
    if isinstance(x, list):
        x = [names.index(x[0]), *x[1:]] if len(x) == 3 and x[0] in names else x
        return [_nameless(part, names) for part in x]
    if not isinstance(x, dict):
        return x
    if x.get("class_name") == "DTypePolicy":
        return x["config"]["name"]
    if x.get("class_name") == "function":
        return x["config"]
    if isinstance(x.get("layers"), list):
        configs = [layer.get("config") for layer in x["layers"] if isinstance(layer, dict)]
        names = [config.get("name") for config in configs if config]
    without = {"module", "registered_name", "name", "build_config"}  # The shapes follow from the rest.
    return {key: _nameless(x[key], names) for key in x.keys() - without}


def _compare(old, new, place, sides):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() & new.keys()):
            yield from _compare(old[key], new[key], f"{place}.{key}" if place else key, sides)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _compare(*pair, f"{place}[{i}]", sides)
    elif old != new:
        for line in difflib.ndiff(_lines(old), _lines(new)):
            if line[0] in "+-":
                yield f"  {place}, only {sides[line[0] == '+']}: {line[2:].strip()}"


def _lines(value):
    """Return a setting as lines of text: those of source code, or one for each layer or number."""
    if isinstance(value, list):
        return [str(entry.get("class_name", entry) if isinstance(entry, dict) else entry) for entry in value]
    return f"{value:.6g}".split() if isinstance(value, float) else str(value).splitlines()
