"""Tests that the notebook trains on several devices, and that a GPU can do what the notebook gives it."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph
from tensorflow.python.framework.kernels import get_registered_kernels_for_op

from tests.conftest import SLOW, two_tasks
from tests.train import OFTEN
from tools.devices import several_devices
from tools.exercises import read_changes
from tools.notebook import ROOT, changed_notebook, choose_settings, settings

# Bound of the relative difference, for each variable, of Adam's averages of the gradients after 10
# iterations. At most 0.003 was measured between AVX-512, AVX2, no oneDNN and one thread; 0.5 and more with a
# wrong part of the batch, a lost gradient or a factor of 2. Weights aren't compared: a step of Adam is up to
# 1e-4 whatever the size of the gradient, even if that is nothing but rounding.
ROUNDING = 0.05


def run_replicas(case, stand_in_path, folder):
    command = [sys.executable, "-m", "tests.replicas", stand_in_path, folder, case]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rsplit("RESULT ", 1)[1]) | {"folder": folder}


@pytest.fixture(scope="module")
def replicas(stand_in_path, tmp_path_factory):
    return run_replicas("normalized", stand_in_path, tmp_path_factory.mktemp("replicas"))


@SLOW
def test_two_devices_train_like_one_without_batch_normalization(stand_in_path, tmp_path):
    """The same 64 images with the same distortions give the same losses and gradients but for rounding."""
    plain = run_replicas("plain", stand_in_path, tmp_path)
    assert len(plain["one"]) == 2
    np.testing.assert_allclose(plain["two"], plain["one"], rtol=1e-4)
    assert len(plain["differences"]) == 2 * 10
    assert max(plain["differences"]) < ROUNDING


@SLOW
def test_batch_normalization_takes_the_statistics_of_each_part(replicas):
    """The one difference: each device normalizes its part of the batch by the part's own statistics."""
    assert len(replicas["halves"]) == 2
    np.testing.assert_allclose(replicas["mirrored"], replicas["halves"], rtol=1e-4)


@SLOW
@pytest.mark.parametrize("program", ["mirrored", "started"])
def test_checkpoint_of_two_devices_opens_on_one(replicas, program):
    """By the same program, and as the start of a training with the tutorial's own."""
    step, difference = replicas[f"{program} on one"]
    assert step == 10
    assert difference < 1e-6


@SLOW
def test_two_processes_by_the_exported_notebook(begin, stand_in_path, tmp_path, replicas):
    """The notebook as a script, with the answer's changes, run twice by two workers."""
    change = several_devices("MultiWorkerMirroredStrategy()")
    for last_iteration in (5, 10):
        notebook, _ = changed_notebook(change | OFTEN)
        choose_settings(notebook, settings(stand_in_path, tmp_path / "checkpoints", last_iteration))
        nbformat.write(notebook, tmp_path / "script.ipynb")
        command = [sys.executable, "-m", "nbconvert", "--to", "script", str(tmp_path / "script.ipynb")]
        subprocess.run(command, check=True, capture_output=True)
        variables = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        processes = [begin("script.py", cwd=tmp_path, env=variables | task) for task in two_tasks()]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert [output.count("Saved checkpoint.") for output in outputs] == [1, 1]
        assert all(("Restored checkpoint" in output) == (last_iteration == 10) for output in outputs)
    assert not list(tmp_path.glob("checkpoints/changed-*"))

    # They compute what two devices in one process do, but for rounding: the same losses, and the same
    # gradients, whose averages Adam keeps.
    paths = tmp_path / "checkpoints" / "cifar10_cnn-10", replicas["folder"] / "mirrored" / "cifar10_cnn-10"
    workers, devices = (tf.train.load_checkpoint(str(path)) for path in paths)
    assert workers.get_tensor("global_step") == 10
    curve = workers.get_tensor("learning_curve")
    assert curve[:, 0].tolist() == [5, 10]
    np.testing.assert_allclose(curve[:, 1], replicas["mirrored"], rtol=1e-4)
    averages = {name for name in devices.get_variable_to_shape_map() if name.endswith(("/Adam", "/Adam_1"))}
    assert len(averages) == 2 * 11
    for name in averages:
        if "layer_conv1/bias" not in name:  # Below batch normalization its gradient is nothing but rounding.
            ours, theirs = workers.get_tensor(name), devices.get_tensor(name)
            assert np.linalg.norm(theirs) > 0
            assert np.linalg.norm(ours - theirs) < ROUNDING * np.linalg.norm(theirs), name


########################################################################
# What a GPU is given, as far as that can be told without one.


def operations(graph, library=None):
    """Yield all operations of a graph and of the functions in it, but for those that XLA compiles."""
    library = library or {f.signature.name: f for f in graph.as_graph_def().library.function}
    for operation in graph.get_operations():
        yield operation
        called = [f for a in operation.node_def.attr.values() for f in (a.func, *a.list.func) if f.name]
        for function in (library[f.name] for f in called):
            if not function.attr["_XlaMustCompile"].b:
                yield from operations(function_def_to_graph(function), library)


def runs_on_a_gpu(operation):
    """Tell whether TensorFlow has a kernel for GPUs at the types of an operation."""
    attributes = operation.node_def.attr
    return any(
        kernel.device_type in ("GPU", "DEFAULT")
        and not kernel.label
        and all(attributes[c.name].type in c.allowed_values.list.type for c in kernel.constraint)
        for kernel in get_registered_kernels_for_op(operation.type).kernel
    )


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="This TensorFlow has no kernels for GPUs.")
@pytest.mark.parametrize("change", ["as it is", "batched distortions", "loop in TensorFlow"])
def test_a_gpu_has_a_kernel_for_all_that_is_not_placed_on_the_processor(new_notebook, change):
    """An iteration, or the loop of them, needs no other operation, and nothing from Python or a file."""
    notebook = new_notebook(replace=read_changes()[change])
    loops = hasattr(notebook, "train_steps")
    function = notebook.train_steps if loops else notebook.train_step
    arguments = [tf.TensorSpec([], tf.int32)] if loops else notebook.random_batch(1)
    graph = function.get_concrete_function(*arguments).graph
    by_place = {True: [], False: []}
    for operation in operations(graph):
        by_place["CPU" in operation.device].append(operation)
    assert not [operation for operation in by_place[False] if not runs_on_a_gpu(operation)]

    types = {operation.type for operation in by_place[False]}
    assert {"Conv2D", "Conv2DBackpropFilter", "FusedBatchNormGradV3", "AssignSubVariableOp"} <= types
    assert ("While" in types) == loops
    distortions = {"AdjustHue", "AdjustContrastv2", "AdjustSaturation", "StatelessRandomUniformV2"}
    assert {operation.type for operation in by_place[True]} & distortions == (
        distortions if change == "as it is" else set()
    )
    unwanted = ("PyFunc", "Iterator", "Dataset", "Feed", "Fetch", "Queue", "ReadFile", "Print")
    assert not [name for name in types if any(word in name for word in unwanted)]
