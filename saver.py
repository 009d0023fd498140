"""Saves a training run to disk so that it can be stopped, or killed, at any moment and goes on later.

    saver = Saver(network=network, optimizer=optimizer, global_step=global_step,
                  learning_curve=learning_curve, functions=[main_network, random_batch, train_step])
    saver.restore("checkpoints/")
    with saver.training() as interrupted:
        while ... and not interrupted.is_set():
            ...
            saver.save()

A checkpoint is a pair of files in TensorFlow's own format, cifar10_cnn-<iterations>.index and
cifar10_cnn-<iterations>.data-00000-of-00001, which `tf.train.load_checkpoint` reads. The variables have the
names that they had in the original program of 2016, and "record" describes the run. A folder holds one run:
that of its newest checkpoint.
"""

import ast
import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
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
import time
import types
import warnings
import weakref
from pathlib import Path

import numpy as np
import tensorflow as tf
from filelock import Timeout

from cifar10 import folder_lock

# The last checkpoints are kept, and those after a multiple of so many iterations for good.
MAX_TO_KEEP = 5
KEEP_EVERY = 50_000

_RESTART = "Restart the kernel and run all cells."
_print_once = functools.cache(print)


class CheckpointError(RuntimeError):
    """Training can't be restored, begun or saved. The message says why, and what to do."""


@dataclasses.dataclass
class _Run:
    """What is known of the training of a network in this process, also when the saver is made again."""

    objects: dict  # But for the network, or it would be known for ever.
    settings: dict  # When the optimizer was made. A rate that is set by hand is saved like the weights.
    saved: tuple = (0, 0)  # The iterations and the optimizer's updates that are on the disk.
    folder: Path | None = None
    record: dict | None = None
    failed: bool = False  # In the middle of an iteration.


_runs = weakref.WeakKeyDictionary()
_networks = weakref.WeakKeyDictionary()  # By the optimizers that were made for them.


class Saver:
    """Saves and restores the variables of one training run.

    :param network: keras.Model whose variables are trained.
    :param optimizer: keras.optimizers.Optimizer for its trainable variables.
    :param global_step: tf.Variable, int64 of shape (), the number of iterations so far.
    :param learning_curve: List of rows, lists of as many floats each, that records the progress.
    :param functions: List of the functions that make the network and perform an iteration. They and the
        notebook's functions, classes, numbers and arrays that they use make this run different from others.
    """

    def __init__(self, *, functions, **objects):
        network, optimizer = objects["network"], objects["optimizer"]
        if not optimizer.built:  # Else its variables would be restored too late.
            optimizer.build(network.trainable_variables)
        known, rest = _runs.get(network), {name: x for name, x in objects.items() if x is not network}
        if known is None or any(known.objects[name] is not x for name, x in rest.items()):
            _runs[network] = _Run(rest, _settings(network, optimizer), known.saved if known else (0, 0))
        _networks.setdefault(optimizer, weakref.ref(network))
        self._run, self._objects, self._functions = _runs[network], objects, functions

    def restore(self, save_dir, start_from=None):
        """Restore the newest whole checkpoint of this run, or begin it. No file is changed.

        :param save_dir: Folder of the checkpoints; need not exist. When it holds another run, the folder
            within it that holds this one is used, or a new one, changed-1 (2, 3, ...).
        :param start_from: Checkpoint, or folder with checkpoints, that a new run begins from, also of a
            changed program or of 2016. All variables that fit are taken, but for the learning-rate, and so
            are the number of iterations and the learning curve.
        :raises CheckpointError: Something would be lost: there are checkpoints, but none is whole; one can't
            be read; the network in memory is trained, but not saved, or not in this folder.
        """
        run, base, other = self._run, Path(save_dir).expanduser(), ""
        self._check_objects()
        if (run.folder or any(run.saved)) and self._progress()[0] > run.saved[0] and not run.failed:
            raise CheckpointError(
                f"The network has had {self._progress()[0]} iterations, of which {run.saved[0]} are saved. "
                "Call saver.save(), or restart the kernel, which gives the others up."
            )
        start, values = _newest(Path(start_from).expanduser()) if start_from else (None, {})
        if start_from and not start:
            raise CheckpointError(f"There is no checkpoint to start from: {start_from}")
        record = {"began": start and str(start)} | _describe(self._functions, run.settings)
        for folder in [base, *filter(_may_be_listed, _list(base))]:
            path, found = _newest(folder)
            if not path:
                continue
            differences = _differences(found["record"], record)
            if start and start.parent != folder and not found["record"].get("began"):
                differences.append("it began with new variables")
            differences = differences or [f"{name} doesn't fit" for name in self._misfits(found)]
            if not differences:
                self._assign(found)
                record["began"] = found["record"]["began"]
                print(f"Restored checkpoint from: {path}")
                break
            if folder is base:
                other = f"{folder}{os.sep} holds another training (changed: {_some(differences)}).\n"
        else:
            folders = itertools.chain([base], (base / f"changed-{n}" for n in itertools.count(1)))
            folder = next(folder for folder in folders if not _checkpoints(folder))
            self._begin(folder, other, start, values)
        run.folder, run.record, run.saved, run.failed = folder.absolute(), record, self._progress(), False

    def save(self):
        """Save a checkpoint in the folder of `restore`, and delete the oldest ones of this run.

        The files get their names when they are whole and on the disk, so a checkpoint is there completely or
        not at all. When it can't be saved, e.g. because the disk is full, that is printed, no other file is
        touched, and training can go on.

        :return: Boolean whether it was saved, which of several processes the first one does.
        :raises CheckpointError: `restore` wasn't called; what is trained isn't what would be saved; or that
            isn't sound, because an iteration failed or a number isn't finite.
        """
        run, (step, updates) = self._run, self._progress()
        self._check_objects(needs_folder=True)
        curve = self._objects["learning_curve"]
        if (step == run.saved[0]) != (updates == run.saved[1]) or (curve and curve[-1][0] > step):
            raise CheckpointError(
                f"{step - run.saved[0]} iterations, but {updates - run.saved[1]} updates of the optimizer: a "
                f"function made before a cell was run again still trains what was there before. {_RESTART}"
            )
        values = {name: np.asarray(v.numpy()) for name, v in self._variables().items()}
        if bad := [name for name, x in values.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]:
            run.failed = True
            raise CheckpointError(
                f"After {step} iterations {_some(bad)} aren't finite, so they aren't saved. "
                f"The checkpoint after {run.saved[0]} is kept. Try a lower learning-rate. {_RESTART}"
            )
        values["learning_curve"] = np.array(curve, np.float64)
        values["record"] = json.dumps(run.record)
        path = run.folder / f"cifar10_cnn-{step}"
        try:
            if _is_chief():
                _clear_unfinished(run.folder)
                if _list(run.folder, path.name + _ENDINGS) and not self._owns(path):
                    raise FileExistsError(0, "another checkpoint has that name; move it away", str(path))
                _write(path, values)
                self._delete_old()
        except (OSError, tf.errors.OpError) as error:
            print(f"\nCOULD NOT SAVE {path}: {_first_line(error)}\n{_advice(error)}Training goes on.")
            return False
        run.saved = step, updates
        return True

    @contextlib.contextmanager
    def training(self):
        """Let only this process train in the folder, and let it finish its work when interrupted.

        Within this context the first SIGINT (the stop-button of Jupyter, Ctrl-C), and each SIGTERM and SIGHUP
        (the terminal is closed), does nothing but set the event. A second SIGINT raises KeyboardInterrupt.
        Damaged checkpoints that are newer than the network are renamed, never deleted. What a run begins from
        is saved first.

        :return: Context that gives an object whose method `is_set()` returns the boolean whether there was an
            interrupt, in any of the processes that train together.
        :raises CheckpointError: `restore` wasn't called, something has changed since then, an iteration has
            failed, another process is training there, there are newer checkpoints, or the processes that
            train together have restored different ones.
        :raises OSError: The folder can't be written.
        """
        run, interrupted = self._run, _Interrupted()
        with contextlib.ExitStack() as stack:
            try:
                self._check_objects(needs_folder=True)
                if changes := _differences(run.record, _describe(self._functions, run.settings)):
                    raise CheckpointError(
                        f"Changed since saver.restore(save_dir): {_some(changes)}. {_RESTART} Then this is "
                        "another training, in a folder of its own."
                    )
                if _is_chief():
                    stack.enter_context(_lock(run.folder))
                    self._prepare_folder()
            except (CheckpointError, OSError):
                _of_all_processes(-1)  # So that none waits for this one.
                raise
            if len(set(steps := _of_all_processes(self._progress()[0]))) > 1:
                have = ", ".join(f"process {i}: {'none' if n < 0 else n}" for i, n in enumerate(steps))
                raise CheckpointError(
                    f"The processes must begin after the same iteration, but have restored: {have}. Let all "
                    "read the same save_dir, and restart them."
                )
            for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
                before = signal.getsignal(number)
                with contextlib.suppress(ValueError):  # Other threads get no signals.
                    if before != signal.SIG_IGN:  # As nohup lets SIGHUP be.
                        signal.signal(number, functools.partial(interrupted.note, before))
                        stack.callback(signal.signal, number, before)
            if run.record["began"] and not _checkpoints(run.folder):
                self.save()
            try:
                yield interrupted
            except tf.errors.OpError:
                run.failed = True
                raise

    def _progress(self):
        """Return the numbers of iterations and of the optimizer's updates so far."""
        objects = self._objects
        return int(objects["global_step"].numpy()), int(objects["optimizer"].iterations.numpy())

    def _check_objects(self, needs_folder=False):
        """Check that the notebook still uses the objects of this saver, and perhaps that they are sound."""
        run, namespace = self._run, inspect.unwrap(_inner(self._functions[0])).__globals__
        changed = [name for name, x in self._objects.items() if namespace.get(name, x) is not x]
        changed += ["network"] * (_networks[self._objects["optimizer"]]() is not self._objects["network"])
        if changed:
            raise CheckpointError(f"Made again, so not what this saver saves: {_some(changed)}. {_RESTART}")
        if needs_folder and run.folder is None:
            raise CheckpointError("It isn't known yet where to save: run saver.restore(save_dir) first.")
        if needs_folder and run.failed:
            raise CheckpointError(
                "An iteration failed half-way, or its numbers aren't finite, so the network isn't sound. Run "
                "saver.restore(save_dir) again, which goes back to the last checkpoint."
            )

    def _variables(self):
        """Return all variables by their names in a checkpoint."""
        variables = [*self._objects["network"].variables, *self._objects["optimizer"].variables]
        names = _stable_names(v.path for v in variables)
        for old, new in _ORIGINAL_NAMES.items():
            names = {path: re.sub(old, new, name) for path, name in names.items()}
        return {names[v.path]: v for v in variables} | {"global_step": self._objects["global_step"]}

    def _misfits(self, values):
        """Return the names of the variables for which there is no value that fits."""
        shapes = {name: tuple(v.shape) for name, v in self._variables().items()}
        return [name for name, shape in shapes.items() if name not in values or values[name].shape != shape]

    def _assign(self, values, but=()):
        """Assign all variables, but for those of some names, their values, and record the learning curve."""
        for name, v in self._variables().items():
            if name not in but:
                v.assign(values[name])
        self._objects["learning_curve"][:] = values.get("learning_curve", np.zeros(0)).tolist()

    def _begin(self, folder, other, start, values):
        """Begin a run in an empty folder, with new variables or from a checkpoint."""
        run, place = self._run, f"{folder}{os.sep}"
        if start:
            misfits = self._misfits(values)
            self._assign(
                values, but=[*misfits, *(name for name in values if name.endswith("/learning_rate"))]
            )
            print(f"{other}Started from {start}, to be trained on in {place}")
            new = [name for name in misfits if "learning_rate" not in name]
            if new := [name for name in new if name.split("/Adam")[0] not in new or "/Adam" not in name]:
                print(f"New, because none there fits: {_some(new)}.")
            return
        if any(run.saved) or self._progress()[1]:
            text = (
                f"There is no checkpoint of this training in {place}, but the network in memory is trained. "
            )
            text += "To begin with a new one, restart the kernel and run all cells."
            if run.folder:
                text += f' To go on with this one: saver.restore(save_dir, start_from="{run.folder}")'
            raise CheckpointError(text)
        self._objects["global_step"].assign(0)
        self._objects["learning_curve"].clear()
        if other:
            print(f"{other}To train on from its weights: saver.restore(save_dir, start_from=save_dir)")
        print(f"No checkpoint in {place}, so the variables are new ones.")

    def _owns(self, path):
        with contextlib.suppress(OSError, _DamagedError):
            record, mine = _read(path)["record"], self._run.record
            return record.get("began") == mine["began"] and not _differences(record, mine)
        return False

    def _prepare_folder(self):
        """Tidy up after a process that was killed, and let nothing be newer than the network."""
        folder, step = self._run.folder, self._progress()[0]
        _clear_unfinished(folder)
        for path in (path for path in _checkpoints(folder) if _number(path) > step):
            try:
                _read(path)
            except _DamagedError as error:
                for file in _list(folder, re.escape(path.name) + _ENDINGS):
                    names = (file.with_name(f"{file.name}.damaged-{n}") for n in itertools.count(1))
                    file.rename(next(name for name in names if not name.exists()))
                print(f"Damaged, so it is set aside: {path} ({error})")
            else:
                raise CheckpointError(
                    f"{path} is newer than this network, which has had {step} iterations. Run "
                    "saver.restore(save_dir) again, or choose another save_dir."
                )

    def _delete_old(self):
        """Delete the oldest checkpoints of this run. When killed on the way, the next call goes on."""
        folder = self._run.folder
        try:
            for path in _checkpoints(folder)[MAX_TO_KEEP:]:
                if _number(path) % KEEP_EVERY and self._owns(path):
                    (folder / _UNFINISHED).mkdir(exist_ok=True)
                    os.replace(f"{path}{_INDEX}", folder / _UNFINISHED / f"{path.name}{_INDEX}")
            _clear_unfinished(folder)
        except OSError as error:
            _print_once(f"Old checkpoints can't be deleted, so they are kept: {error.strerror}")


def read_learning_curve(folder):
    """Return the learning curve in the newest checkpoint of a folder, an array with a row for each entry."""
    return _newest(Path(folder).expanduser())[1]["learning_curve"]


########################################################################
# The record of a run.

# From Keras' names of variables to those of the original program, with Adam's moments.
_PART = r"^adam/network_(\w+)_(kernel|bias|beta|gamma)"
_ORIGINAL_NAMES = {
    rf"{_PART}_momentum$": r"network/\1/\2/Adam",
    rf"{_PART}_velocity$": r"network/\1/\2/Adam_1",
    "/layer_softmax/": "/fully_connected/",
    "_batch_normalize/": "/batch_normalize/",
    "/kernel": "/weights",
}


def _stable_names(names):
    """Return names by their names in Keras, which counts on for a layer that is made again."""
    stable, counts = {}, {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"_\d+(?=[/_]|$)", "", name)
        counts[plain] = counts.get(plain, -1) + 1
        stable[name] = f"{plain}_{counts[plain]}" if counts[plain] else plain
    return stable


def _settings(network, optimizer):
    """Return the settings of the layers and the optimizer by dotted names."""
    names = _stable_names(layer.name for layer in network.layers)
    settings = {"layers": list(names.values())}
    for name, x in [*((names[layer.name], layer) for layer in network.layers), ("optimizer", optimizer)]:
        with warnings.catch_warnings(), contextlib.suppress(NotImplementedError, TypeError, ValueError):
            warnings.simplefilter("ignore")  # Keras warns of each lambda.
            settings |= _flat(x.get_config(), name)
        settings[name] = type(x).__name__
    return {name: x for name, x in settings.items() if not name.endswith(".name")}


def _flat(x, name):
    """Return the settings of a Keras object, with those of objects within it, by dotted names."""
    if isinstance(x, dict) and x.get("class_name") == "DTypePolicy":
        return {name: x["config"]["name"]}
    if isinstance(x, dict) and (x.get("class_name") == "__lambda__" or x.keys() == {"value"}):
        return {}  # A lambda has no stable text.
    if isinstance(x, dict) and "class_name" in x:
        return _flat(x["config"], name) | {name: x["class_name"]}
    if isinstance(x, list) and any(isinstance(v, dict) for v in x):
        x = dict(enumerate(x))
    if isinstance(x, dict):
        return {key: part for k, v in x.items() for key, part in _flat(v, f"{name}.{k}").items()}
    return {name: x if isinstance(x, (bool, int, float, str, type(None))) else str(np.ravel(x).tolist())}


def _inner(function):
    """Return a function without what is put around it by tf.function, @property or @classmethod."""
    function = getattr(function, "python_function", getattr(function, "fget", function))
    return getattr(function, "__func__", function)


def _describe(functions, settings):
    """Return the settings, and the source of the functions and of all functions of the notebook that these
    and the classes in the settings use, with the numbers, texts and arrays that they use.
    """
    namespace = inspect.unwrap(_inner(functions[0])).__globals__
    sources, values = {}, {}
    waiting = [namespace.get(_inner(function).__name__, function) for function in functions]
    waiting += [namespace.get(name) for name in settings.values() if isinstance(name, str)]
    for x in waiting:  # It grows on the way.
        waiting += vars(x).values() if isinstance(x, type) else []
        x = _inner(x)
        waiting += [x.__wrapped__] if hasattr(x, "__wrapped__") else []
        if not isinstance(x, types.FunctionType) or x.__globals__ is not namespace:
            continue
        source, names = _source(x)
        if sources.get(x.__code__.co_qualname) == source:
            continue
        sources[x.__code__.co_qualname] = source
        used = {name: namespace[name] for name in names & namespace.keys()}
        used |= inspect.getclosurevars(x).nonlocals
        waiting += filter(callable, used.values())
        values |= {name: text for name, value in used.items() if (text := _value(value)) is not None}
    return {"settings": settings | values, "functions": sources}


def _source(function):
    """Return the source of a function without comments and docstrings, and the names that it uses."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):  # E.g. a lambda in the middle of a call.
        return function.__code__.co_code.hex(), set(function.__code__.co_names)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    codes = [function.__code__]  # With those of the functions within it.
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    variables = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return ast.unparse(tree), variables & {name for code in codes for name in code.co_names}


def _value(x):
    """Return what stands for a number, a text, a list of these or an array in JSON, or None."""
    if isinstance(x, np.ndarray) or (isinstance(x, tf.Tensor) and hasattr(x, "numpy")):
        x = np.ascontiguousarray(x)
        data = repr(x.tolist()).encode() if x.dtype == object else x.reshape(-1).view(np.uint8)
        return f"{x.dtype} {x.shape} {hashlib.sha256(data).hexdigest()[:16]}"
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(json.dumps(x.item() if isinstance(x, np.generic) else x))


def _differences(old, new):
    """Return sentences that say what differs between two records.

    Settings and functions that only one has make no difference: versions of Keras differ in these, and a
    function that isn't used any more has changed the one that used it.
    """
    if "functions" not in old:
        return [old.get("origin", "it was saved by another program")]
    old_layers, new_layers = old["settings"]["layers"], new["settings"]["layers"]
    sentences = [f"{layer} is removed" for layer in old_layers if layer not in new_layers]
    sentences += [f"{layer} is new" for layer in new_layers if layer not in old_layers]
    for name, x in old["settings"].items():
        if name in new["settings"] and name != "layers" and x != new["settings"][name]:
            pair = x, new["settings"][name]
            text = (f"{x:.6g}" if isinstance(x, float) else textwrap.shorten(str(x), 40) for x in pair)
            sentences.append(f"{name} {' → '.join(text)}")
    for name in sorted(old["functions"].keys() & new["functions"].keys()):
        pair = [record["functions"][name].splitlines() for record in (old, new)]
        signs = [line[0] for line in difflib.ndiff(*pair)]
        removed, added = signs.count("-"), signs.count("+")
        counts = (min(removed, added), "changed"), (removed - added, "removed"), (added - removed, "new")
        if text := ", ".join(f"{n} line{'s' * (n > 1)} {what}" for n, what in counts if n > 0):
            sentences.append(f"{name}: {text}")
    return sentences


def _some(names):
    """Return a text that tells the first three of a list."""
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


########################################################################
# Interrupts, and other processes.


class _Interrupted(threading.Event):
    """Whether there was an interrupt, in any of the processes that train together."""

    def is_set(self):
        return any(_of_all_processes(super().is_set()))

    def note(self, before, number, frame):
        if number == signal.SIGINT:  # The next one breaks off.
            signal.signal(number, before)
        text = "\nInterrupted: this iteration is finished and saved. Stop again to break off."
        with contextlib.suppress(RuntimeError, OSError):  # In another print; without a terminal.
            if not super().is_set():
                print(text, flush=True)
        self.set()


def _is_chief():
    return tf.distribute.get_strategy().extended.should_checkpoint


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
    owner, lock = folder / "training.owner", folder / "training.lock"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(folder_lock(lock, timeout=0))
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise CheckpointError(
                f"{folder} is in use: {who} is training there. Wait for it, stop it (in Jupyter, shut down "
                f"the other kernel), or choose another save_dir. If it is gone, delete {lock}"
            ) from None
        except OSError as error:
            text = f"{error.strerror}: checkpoints can't be saved in {folder}, so training was not begun. "
            raise OSError(
                error.errno, f"{text}{_advice(error)}You can also choose another save_dir."
            ) from error
        yield


########################################################################
# Files.

_INDEX, _DATA = ".index", ".data-00000-of-00001"
_ENDINGS = r"\.(index|data-00000-of-00001)"
_UNFINISHED = "cifar10_cnn-unfinished"
# What a file system says that lacks something, or lets nobody open a folder.
_LACKING = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EACCES, errno.EPERM}
# The names of what the version before this one numbered.
_NUMBERED = """layer_conv1/weights layer_conv1/bias layer_conv1/batch_normalize/beta layer_conv2/weights
    layer_conv2/bias layer_fc1/weights layer_fc1/bias layer_fc2/weights layer_fc2/bias
    fully_connected/weights fully_connected/bias""".split()


class _DamagedError(Exception):
    """A checkpoint isn't whole."""


def _list(folder, pattern=r".*"):
    """Return the paths in a folder, which need not exist, whose names match a pattern."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if re.fullmatch(pattern, path.name)]


def _may_be_listed(path):
    with contextlib.suppress(OSError):
        return path.name != _UNFINISHED and os.listdir(path) is not None
    return False


def _checkpoints(folder):
    """Return the paths of the checkpoints in a folder, whole or not, without endings, the newest first."""
    names = {path.name.split(".")[0] for path in _list(folder, r"cifar10_cnn-\d+" + _ENDINGS)}
    names -= {path.stem for path in _unfinished(folder)}
    return sorted((folder / name for name in names), key=_number, reverse=True)


def _number(path):
    return int(path.name.split("-")[1])


def _unfinished(folder):
    """Return the indices of saves and deletions that were broken off: an index comes last, and goes first."""
    indices = _list(folder / _UNFINISHED, r"cifar10_cnn-\d+\.index")
    return [index for index in indices if not (folder / index.name).exists()]


def _clear_unfinished(folder):
    for index in _unfinished(folder):
        (folder / index.name.replace(_INDEX, _DATA)).unlink(missing_ok=True)
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)


def _newest(place):
    """Return the path and the values of the newest whole checkpoint in a folder, or of the given one.

    They are (None, {}) if there is none. One that can't be read, or none that is whole, is an error.
    """
    damaged, given = [], place.with_name(place.name.removesuffix(_INDEX))
    for path in [given] if Path(f"{given}{_INDEX}").exists() else _checkpoints(place):
        try:
            values = _read(path)
        except OSError as error:
            raise CheckpointError(f"{_first_line(error)}. Make it readable, or move it away.") from error
        except _DamagedError as error:
            damaged.append(f"{path} ({error})")
            continue
        for text in damaged:
            print(f"Damaged, so it is not used: {text}")
        return path, values
    damaged += map(str, _list(place, r"cifar10_cnn-\d+\..*\.damaged-\d+"))
    if damaged:
        raise CheckpointError(
            "There are checkpoints, but none is whole:\n  {}\nNothing was changed. Put a whole copy there, "
            "move these files away to begin anew, or choose another save_dir.".format("\n  ".join(damaged))
        )
    return None, {}


def _read(path):
    """Return all values in a checkpoint by name, and as "record" the dictionary that describes its run.

    Reading all compares the checksums. It is done in memory: TensorFlow takes a folder named [1] for a
    pattern, and what it raises doesn't tell a damaged file from one that can't be read.
    """
    copy = f"ram://saver/{path.name}"
    tf.io.gfile.makedirs("ram://saver")
    try:
        for ending in (_INDEX, _DATA):
            tf.io.write_file(copy + ending, Path(f"{path}{ending}").read_bytes())
        reader = tf.compat.v1.train.NewCheckpointReader(copy)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except FileNotFoundError as error:
        raise _DamagedError(f"{Path(error.filename).name} is missing") from error
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:  # Cut short, altered, ...
        raise _DamagedError(_first_line(error)) from error
    finally:
        tf.io.gfile.rmtree("ram://saver")
    values = _with_present_names(values)
    if values.get("global_step", _number(path)) != _number(path):
        raise _DamagedError(f"its name says {_number(path)} iterations, but it is of {values['global_step']}")
    return values


def _with_present_names(values):
    """Return the values in a checkpoint by the names of this version, whichever program has saved it."""
    with contextlib.suppress(KeyError, TypeError, ValueError):  # Else another program has saved it.
        return values | {"record": dict(json.loads(values["record"]))}
    if "beta1_power" in values:
        origin = "the original program saved it"
        return values | {
            "record": {"origin": origin},
            "adam/iteration": np.int64(values.get("global_step", 0)),
        }
    values = {name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): value for name, value in values.items()}
    names = {"optimizer/_iterations": "adam/iteration"}
    for kind in ("moving_mean", "moving_variance"):
        names[f"network/_functional/_operations/2/{kind}"] = f"network/layer_conv1/batch_normalize/{kind}"
    for i, name in enumerate(_NUMBERED):
        names[f"optimizer/_trainable_variables/{i}"] = f"network/{name}"
        names[f"optimizer/_variables/{2 * i + 2}"] = f"network/{name}/Adam"
        names[f"optimizer/_variables/{2 * i + 3}"] = f"network/{name}/Adam_1"
    record = {"origin": "an older version saved it"} if "settings" in values else {}
    return {names.get(name, name): value for name, value in values.items()} | {"record": record}


def _write(path, values):
    """Write values by name into a checkpoint, which is there completely or not at all."""
    unfinished = path.parent / _UNFINISHED / path.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    tensors = [tf.constant(value) for value in values.values()]
    tf.raw_ops.SaveV2(
        prefix=str(unfinished),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=tensors,
    )
    for ending in (_DATA, _INDEX):
        _sync(Path(f"{unfinished}{ending}"))
    for ending in (_DATA, _INDEX):  # Whoever finds the index finds the data too.
        _replace(f"{unfinished}{ending}", f"{path}{ending}")
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    _sync(path.parent)
    _sync(path.parent.parent)


def _replace(source, target):
    """Rename a file, for some seconds, since a virus scanner or a sync client may have it open."""
    for seconds in (0.1, 0.4, 1.5, 3.0):
        with contextlib.suppress(OSError):
            return os.replace(source, target)
        time.sleep(seconds)
    return os.replace(source, target)


def _sync(path):
    """Wait until a file, or the names in a folder, are on the disk, where the file system can tell."""
    try:
        if path.is_file() or os.name != "nt":  # Windows does that for folders by itself.
            file = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        _print_once(f"This file system can't tell when files are on the disk: {error.strerror}.")


def _advice(error):
    """Return a sentence with what to do about an error, if that is known."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, tf.errors.ResourceExhaustedError):
        return "Free some space on that disk. "
    return "Make the folder writable. " if number in (errno.EACCES, errno.EPERM, errno.EROFS) else ""


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
