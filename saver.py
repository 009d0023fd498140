"""Saves a training run to disk so that it can be stopped, or killed, at any moment and goes on later.

    saver = Saver(network=network, optimizer=optimizer, global_step=global_step,
                  learning_curve=learning_curve, functions=[main_network, random_batch, train_step])
    saver.restore("checkpoints/")
    with saver.training() as interrupted:
        while ... and not interrupted.is_set():
            ...
            saver.save()

A checkpoint is a pair of files in TensorFlow's own format, cifar10_cnn-<iterations>.index and
cifar10_cnn-<iterations>.data-00000-of-00001. The variables have the names that they had in the original
program of 2016, and "record" describes the run. A folder holds one run: that of its newest checkpoint.
"""

import ast
import contextlib
import difflib
import errno
import functools
import hashlib
import inspect
import itertools
import json
import linecache
import os
import re
import shutil
import signal
import socket
import textwrap
import time
import types
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf
from filelock import Timeout
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from cifar10 import folder_lock

# The last checkpoints are kept, and those after a multiple of so many iterations for good.
MAX_TO_KEEP = 5
KEEP_EVERY = 50_000

_RESTART = "Restart the kernel and run all cells."
_print_once = functools.cache(print)


class CheckpointError(RuntimeError):
    """Training can't be restored, begun or saved. The message says why, and what to do."""


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
        # What is known goes with the network and the optimizer, also when the saver is made again.
        known = vars(network).get("training_run")
        if known is None or any(known.objects[name] is not x for name, x in objects.items()):
            vars(network)["training_run"] = types.SimpleNamespace(
                objects=objects,
                settings=_settings(network, optimizer),  # A rate set by hand is saved like the weights.
                saved=known.saved if known else (0, 0),  # Iterations and the optimizer's updates.
                folder=None,
                failed=False,  # In the middle of an iteration.
            )
        vars(optimizer).setdefault("trained_network", network)
        self._run, self._objects, self._functions = vars(network)["training_run"], objects, functions
        self._namespace = inspect.unwrap(functions[0]).__globals__

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
        record = {"began": start and str(start)} | self._describe()
        within = {path.parent for path in base.glob("*/cifar10_cnn-*")} - {base / _UNFINISHED}
        for folder in [base, *sorted(within)]:
            path, found = _newest(folder)
            if not path:
                continue
            differences = _differences(found["record"], record)
            began = found["record"].get("began")
            if start and start.parent != folder and (not began or Path(began).parent != start.parent):
                differences.append(f"it began {f'from {began}' if began else 'with new variables'}")
            differences = differences or [f"{name} doesn't fit" for name in self._assign(found)]
            if not differences:
                record["began"] = began
                print(f"Restored checkpoint from: {path}" + (f", which began from {began}" if began else ""))
                break
            if folder is base:
                other = f"{folder}{os.sep} holds another training (changed: {_some(differences)}).\n"
        else:
            folders = itertools.chain([base], (base / f"changed-{n}" for n in itertools.count(1)))
            folder = next(folder for folder in folders if not _checkpoints(folder))
            self._begin(f"{folder}{os.sep}", other, start, values)
        run.folder, run.record, run.saved, run.failed = folder.absolute(), record, self._progress(), False

    def save(self):
        """Save a checkpoint in the folder of `restore`, and delete the oldest ones of this run.

        A checkpoint is there completely or not at all. When it can't be saved, e.g. because the disk is full,
        that is printed, no other file is touched, and training can go on.

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
        values |= {"learning_curve": np.array(curve, np.float64), "record": json.dumps(run.record)}
        path = run.folder / f"cifar10_cnn-{step}"
        try:
            if tf.distribute.get_strategy().extended.should_checkpoint:
                _clear_unfinished(run.folder)
                if path in _checkpoints(run.folder) and not self._owns(path):
                    raise FileExistsError(0, "another checkpoint has that name; move it away", str(path))
                _write(path, values)
                self._delete_old()
        except (OSError, tf.errors.OpError) as error:
            print(f"\nCOULD NOT SAVE {path}: {error}\n{_advice(error)}Training goes on.")
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
            failed, another process is training there, there are newer checkpoints or none is whole, or the
            processes that train together have restored different ones.
        :raises OSError: The folder can't be written.
        """
        run, interrupted = self._run, _Interrupted()
        with contextlib.ExitStack() as stack:
            try:
                self._check_objects(needs_folder=True)
                if changes := _differences(run.record, self._describe()):
                    raise CheckpointError(
                        f"Changed since saver.restore(save_dir): {_some(changes)}. {_RESTART} Then this is "
                        "another training, in a folder of its own."
                    )
                if tf.distribute.get_strategy().extended.should_checkpoint:
                    self._enter_folder(stack)
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
        return int(self._objects["global_step"].numpy()), int(self._objects["optimizer"].iterations.numpy())

    def _check_objects(self, needs_folder=False):
        """Check that the notebook still uses the objects of this saver, and perhaps that they are sound."""
        changed = [name for name, x in self._objects.items() if self._namespace.get(name, x) is not x]
        if vars(self._objects["optimizer"])["trained_network"] is not self._objects["network"]:
            changed.append("network")
        if changed:
            raise CheckpointError(f"Made again, so not what this saver saves: {_some(changed)}. {_RESTART}")
        if needs_folder and self._run.folder is None:
            raise CheckpointError("It isn't known yet where to save: run saver.restore(save_dir) first.")
        if needs_folder and self._run.failed:
            raise CheckpointError(
                "An iteration failed half-way, or its numbers aren't finite, so the network isn't sound. Run "
                "saver.restore(save_dir) again, which goes back to the last checkpoint."
            )

    def _variables(self):
        """Return all variables by their names in a checkpoint."""
        variables = [*self._objects["network"].variables, *self._objects["optimizer"].variables]
        names = _names(v.path for v in variables)
        return {names[v.path]: v for v in variables} | {"global_step": self._objects["global_step"]}

    def _assign(self, values, partly=False):
        """Assign the variables, if all fit or partly, and return the names of those that don't fit."""
        variables = self._variables()
        shapes = {name: np.shape(x) for name, x in values.items()}
        misfits = [name for name, v in variables.items() if shapes.get(name) != tuple(v.shape)]
        if partly or not misfits:
            for name in variables.keys() - misfits:
                variables[name].assign(values[name])
            self._objects["learning_curve"][:] = values.get("learning_curve", np.zeros(0)).tolist()
        return misfits

    def _describe(self):
        """Return the settings, and the source of all functions of the notebook that the given ones and the
        classes in the settings use, with the numbers, texts and arrays that they use.
        """
        sources, values, settings = {}, {}, self._run.settings
        waiting = [self._namespace.get(function.__name__, function) for function in self._functions]
        waiting += [self._namespace.get(name) for name in settings.values() if isinstance(name, str)]
        for x in waiting:  # It grows on the way.
            waiting += vars(x).values() if isinstance(x, type) else []
            # What tf.function, @property, @classmethod or a decorator is put around.
            waiting += [getattr(x, name) for name in ("__wrapped__", "__func__", "fget") if hasattr(x, name)]
            if not isinstance(x, types.FunctionType) or x.__globals__ is not self._namespace:
                continue
            source, names = _source(x)
            if sources.get(x.__code__.co_qualname) == source:
                continue
            sources[x.__code__.co_qualname] = source
            used = {name: self._namespace[name] for name in names & self._namespace.keys()}
            used |= inspect.getclosurevars(x).nonlocals
            waiting += filter(callable, used.values())
            values |= {name: text for name, value in used.items() if (text := _value(value)) is not None}
        return {"settings": settings | values, "functions": sources}

    def _begin(self, place, other, start, values):
        """Begin a run in an empty folder, with new variables or from a checkpoint."""
        run = self._run
        if start:
            values = {name: x for name, x in values.items() if not name.endswith("/learning_rate")}
            new = [name for name in self._assign(values, partly=True) if "learning_rate" not in name]
            print(f"{other}Started from {start}, to be trained on in {place}")
            if new := [name for name in new if name.rpartition("/Adam")[0] not in new]:
                print(f"New, because none there fits: {_some(new)}.")
        elif any(run.saved) or self._progress()[1]:
            on = f' To go on with this one: saver.restore(save_dir, start_from="{run.folder}")'
            raise CheckpointError(
                f"There is no checkpoint of this training in {place}, but the network in memory is trained. "
                f"To begin with a new one, restart the kernel and run all cells.{on if run.folder else ''}"
            )
        else:
            self._assign({"global_step": np.int64(0)}, partly=True)
            if other:
                print(f"{other}To train on from its weights: saver.restore(save_dir, start_from=save_dir)")
            print(f"No checkpoint in {place}, so the variables are new ones.")

    def _owns(self, path):
        with contextlib.suppress(OSError, ValueError):
            record, mine = _read(path)["record"], self._run.record
            return record.get("began") == mine["began"] and not _differences(record, mine)
        return False  # It can't be read, or isn't whole.

    def _enter_folder(self, stack):
        """Let no other process train in the folder, and nothing in it be newer than the network."""
        folder, step = self._run.folder, self._progress()[0]
        owner, lock = folder / "training.owner", folder / "training.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(folder_lock(lock, timeout=0))
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            path, _ = _newest(folder, set_aside=True)
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise CheckpointError(
                f"{folder} is in use: {who} is training there. Wait for it, stop it (in Jupyter, shut down "
                f"the other kernel), or choose another save_dir. If it is gone, delete {lock}"
            ) from None
        except OSError as error:
            text = f"{error.strerror}: checkpoints can't be saved in {folder}, so training was not begun. "
            text += f"{_advice(error)}You can also choose another save_dir."
            raise OSError(error.errno, text) from error
        if path and _number(path) > step:
            raise CheckpointError(
                f"{path} is newer than this network, which has had {step} iterations. Run "
                "saver.restore(save_dir) again, or choose another save_dir."
            )

    def _delete_old(self):
        """Delete the oldest checkpoints of this run, after a save. What is broken off, the next one ends."""
        try:
            for path in _checkpoints(self._run.folder)[MAX_TO_KEEP:]:
                if _number(path) % KEEP_EVERY and self._owns(path):
                    os.replace(f"{path}{_INDEX}", path.parent / _UNFINISHED / f"{path.name}{_INDEX}")
            _clear_unfinished(self._run.folder)
        except OSError as error:
            _print_once(f"Old checkpoints can't be deleted, so they are kept: {error.strerror}")


def read_learning_curve(folder):
    """Return the learning curve in the newest checkpoint of a folder, an array with a row for each entry.

    :raises CheckpointError: There is none, or none that is whole or can be read.
    """
    path, values = _newest(Path(folder).expanduser())
    if not path:
        raise CheckpointError(f"There is no checkpoint in {folder}")
    return values["learning_curve"]


########################################################################
# The record of a run.

# From Keras' names of variables to those of the original program, with Adam's moments.
_ORIGINAL_NAMES = {
    r"^adam/network_(\w+)_(kernel|bias|beta|gamma)_momentum$": r"network/\1/\2/Adam",
    r"^adam/network_(\w+)_(kernel|bias|beta|gamma)_velocity$": r"network/\1/\2/Adam_1",
    "/layer_softmax/": "/fully_connected/",
    "_batch_normalize/": "/batch_normalize/",
    "/kernel": "/weights",
    # Keras 3.15 has renamed these optimizers.
    "^SGD/": "sgd/",
    "^adamw/": "adam_w/",
    "^rmsprop/": "rm_sprop/",
}


def _names(names):
    """Return names by those in Keras, whose numbers count on when a network is made again."""
    present, counts = {}, {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"_\d+(?=[/_]|$)", "", name)
        counts[plain] = counts.get(plain, -1) + 1
        present[name] = f"{plain}_{counts[plain]}" if counts[plain] else plain
        for old, new in _ORIGINAL_NAMES.items():
            present[name] = re.sub(old, new, present[name])
    return present


def _settings(network, optimizer):
    """Return the settings of the layers and the optimizer by dotted names."""
    names = _names(layer.name for layer in network.layers)
    settings = {"network.layers": list(names.values())}
    for name, x in [*((names[layer.name], layer) for layer in network.layers), ("optimizer", optimizer)]:
        with warnings.catch_warnings(), contextlib.suppress(NotImplementedError, TypeError, ValueError):
            warnings.simplefilter("ignore")  # Keras warns of each lambda.
            settings |= _flat(x.get_config(), name)
        settings[name] = type(x).__name__
    return {name: x for name, x in settings.items() if not name.endswith(".name")}


def _flat(x, name):
    """Return the settings of a Keras object, with those of objects within it, by dotted names."""
    if isinstance(x, dict) and (x.get("class_name") == "__lambda__" or x.keys() == {"value"}):
        return {}  # A lambda has no stable text.
    if isinstance(x, dict) and "class_name" in x:
        text = x["config"]["name"] if x["class_name"] == "DTypePolicy" else x["class_name"]
        return _flat(x["config"], name) | {name: text}
    if isinstance(x, list) and any(isinstance(v, dict) for v in x):
        x = dict(enumerate(x))
    if isinstance(x, dict):
        return {key: part for k, v in x.items() for key, part in _flat(v, f"{name}.{k}").items()}
    return {name: x if isinstance(x, (bool, int, float, str, type(None))) else str(np.ravel(x).tolist())}


def _source(function):
    """Return the source of a function without comments and docstrings, and the names that it uses."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:  # inspect.getsource looks through all modules first, which takes a hundred times as long.
        tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))
    except SyntaxError:  # E.g. a lambda in the middle of a call.
        lines = []
    if not lines:
        return code.co_code.hex(), set(code.co_names)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    codes = [code]  # With those of the functions within it.
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
    """Return sentences that say what differs between two records, in what both have."""
    # Versions of Keras have other settings; where a function isn't used any more, another one has changed.
    if "functions" not in old:
        return [old.get("origin", "it was saved by another program")]
    sentences = []
    for name, x in old["settings"].items():
        y = new["settings"].get(name, x)
        if name == "network.layers":
            sentences += [f"{layer} is removed" for layer in x if layer not in y]
            sentences += [f"{layer} is new" for layer in y if layer not in x]
        elif x != y:
            texts = (f"{v:.6g}" if isinstance(v, float) else textwrap.shorten(str(v), 40) for v in (x, y))
            sentences.append(f"{name} {' → '.join(texts)}")
    for name, x in old["functions"].items():
        if x != (y := new["functions"].get(name, x)):
            signs = [line[0] for line in difflib.ndiff(x.splitlines(), y.splitlines())]
            removed, added = signs.count("-"), signs.count("+")
            counts = {"changed": min(removed, added), "removed": removed - added, "new": added - removed}
            parts = (f"{n} line{'s' * (n > 1)} {what}" for what, n in counts.items() if n > 0)
            sentences.append(f"{name}: {', '.join(parts)}")
    return sentences


def _some(names):
    """Return a text that tells the first three of a list."""
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


########################################################################
# Interrupts, and other processes.


class _Interrupted:
    """Whether there was an interrupt, in any of the processes that train together."""

    noted = False  # An event of threading has a lock, on which a signal within a signal would wait for ever.

    def is_set(self):
        return any(_of_all_processes(self.noted))

    def note(self, before, number, frame):
        if number == signal.SIGINT:  # The next one breaks off.
            signal.signal(number, before)
        text = "\nInterrupted: finishing this iteration, then saving. Stop again to break off."
        with contextlib.suppress(RuntimeError, OSError):  # In another print; without a terminal.
            if not self.noted:
                print(text, flush=True)
        self.noted = True


@tf.function
def _gather(number):
    strategy = tf.distribute.get_strategy()
    return strategy.gather(strategy.run(lambda: number[tf.newaxis]), axis=0)


def _of_all_processes(number):
    """Return the list of the numbers that all processes which train together give, in all the same."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return [int(number)]
    return _gather(tf.constant(int(number), tf.int64)).numpy().tolist()


########################################################################
# Files.

_INDEX, _DATA = ".index", ".data-00000-of-00001"
_FILE = r"cifar10_cnn-\d+(\.index|\.data-00000-of-00001)"
_UNFINISHED = "cifar10_cnn-unfinished"
# What a file system says that lacks something, or lets nobody open a folder.
_LACKING = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EACCES, errno.EPERM}


def _checkpoints(folder):
    """Return the paths of the checkpoints in a folder, whole or not, without endings, the newest first."""
    files = os.listdir(folder) if folder.is_dir() else []
    names = {file.split(".")[0] for file in files if re.fullmatch(_FILE, file)}
    names -= {data.name.split(".")[0] for data in _unfinished(folder)}
    return sorted((folder / name for name in names), key=_number, reverse=True)


def _number(path):
    return int(path.name.split("-")[1])


def _unfinished(folder):
    """Return the data of saves and deletions that were broken off: an index comes last, and goes first."""
    indices = (folder / _UNFINISHED).glob(f"cifar10_cnn-*{_INDEX}")
    return [folder / f"{index.stem}{_DATA}" for index in indices if not (folder / index.name).exists()]


def _clear_unfinished(folder):
    for data in _unfinished(folder):
        data.unlink(missing_ok=True)
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)


def _newest(place, set_aside=False):
    """Return the path and the values of the newest whole checkpoint in a folder, or of the given one.

    They are (None, {}) if there is none. One that can't be read, or none that is whole, is an error. Those
    that are newer, but damaged, can be set aside: renamed.
    """
    damaged, given = {}, Path(str(place).removesuffix(_INDEX))
    for path in [given] if Path(f"{given}{_INDEX}").exists() else _checkpoints(place):
        try:
            values = _read(path)
        except OSError as error:
            raise CheckpointError(f"{error}. Make it readable, or move it away.") from error
        except ValueError as error:
            damaged[path] = error
            continue
        for path_damaged, error in damaged.items():
            files = [Path(f"{path_damaged}{ending}") for ending in (_INDEX, _DATA)] if set_aside else []
            for file in filter(Path.exists, files):
                names = (Path(f"{file}.damaged-{n}") for n in itertools.count(1))
                file.rename(next(name for name in names if not name.exists()))
            print(f"Damaged, so it is {'set aside' if set_aside else 'not used'}: {path_damaged} ({error})")
        return path, values
    texts = [f"{path} ({error})" for path, error in damaged.items()]
    if texts := texts + sorted(map(str, place.glob("cifar10_cnn-*.damaged-*"))):
        raise CheckpointError(
            "There are checkpoints, but none is whole:\n  {}\nNothing was changed. Put a whole copy there, "
            "move these files away to begin anew, or choose another save_dir.".format("\n  ".join(texts))
        )
    return None, {}


def _read(path):
    """Return all values in a checkpoint by name, and as "record" the dictionary that describes its run.

    One that isn't whole raises ValueError: reading all compares the checksums. TensorFlow reads from memory
    since it takes a folder named [1] for a pattern, and doesn't tell damaged files from unreadable ones.
    """
    copy = f"ram://saver/{path.name}"
    tf.io.gfile.makedirs("ram://saver")
    try:
        for ending in (_INDEX, _DATA):
            tf.io.write_file(copy + ending, Path(f"{path}{ending}").read_bytes())
        reader = tf.compat.v1.train.NewCheckpointReader(copy)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from error
    except (tf.errors.OpError, IndexError, RuntimeError) as error:  # Cut short, altered, ...
        raise ValueError(str(error)) from error
    finally:
        tf.io.gfile.rmtree("ram://saver")
    values = _with_present_names(values)
    number = re.fullmatch(r"cifar10_cnn-(\d+)", path.name)
    if number and values.get("global_step", int(number[1])) != int(number[1]):
        raise ValueError(f"its name says {number[1]} iterations, but it is of {values['global_step']}")
    return values


def _with_present_names(values):
    """Return the values in a checkpoint by the names of this version, whichever program has saved it."""
    with contextlib.suppress(KeyError, TypeError, ValueError):  # Else another program has saved it.
        return values | {"record": dict(json.loads(values["record"]))}
    if "beta1_power" in values:
        record = {"origin": "the original program saved it"}
        return values | {"record": record, "adam/iteration": values.get("global_step", np.int64(0))}
    # TensorFlow's own way of saving numbers the variables, and keeps their paths in Keras beside them.
    graph = TrackableObjectGraph.FromString(values.get("_CHECKPOINTABLE_OBJECT_GRAPH", b""))
    paths = {a.checkpoint_key: a.full_name for node in graph.nodes for a in node.attributes}
    names = _names(path for path in paths.values() if "/" in path)
    present = {names.get(paths.get(key), key.split("/.ATTRIBUTES")[0]): x for key, x in values.items()}
    return present | {"record": {"origin": "an older version saved it"} if "settings" in present else {}}


def _write(path, values):
    """Write values by name into a checkpoint, which is there completely or not at all."""
    unfinished = path.parent / _UNFINISHED / path.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    names, tensors = list(values), [tf.constant(value) for value in values.values()]
    slices = [""] * len(names)
    tf.raw_ops.SaveV2(prefix=str(unfinished), tensor_names=names, shape_and_slices=slices, tensors=tensors)
    for ending in (_DATA, _INDEX):
        _sync(Path(f"{unfinished}{ending}"))
    for ending in (_DATA, _INDEX):  # Whoever finds the index finds the data too.
        _replace(f"{unfinished}{ending}", f"{path}{ending}")
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
