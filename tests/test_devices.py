"""Tests that the notebook's training works on several devices, and that no device waits for Python."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.train import OFTEN
from tools.notebook import NOTEBOOK, ROOT, settings

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


def test_two_devices_train_like_one_without_batch_normalization(stand_in_path, tmp_path):
    """The same 64 images with the same distortions give the same losses and gradients but for rounding."""
    plain = run_replicas("plain", stand_in_path, tmp_path)
    assert len(plain["one"]) == 2
    np.testing.assert_allclose(plain["two"], plain["one"], rtol=1e-4)
    assert len(plain["differences"]) == 2 * 10
    assert max(plain["differences"]) < ROUNDING


@pytest.mark.slow
def test_batch_normalization_takes_the_statistics_of_each_part(replicas):
    """The one difference: each device normalizes its part of the batch by the part's own statistics."""
    assert len(replicas["halves"]) == 2
    np.testing.assert_allclose(replicas["mirrored"], replicas["halves"], rtol=1e-4)


@pytest.mark.slow
def test_checkpoint_of_two_devices_opens_on_one(replicas):
    assert replicas["step on one"] == 10
    assert replicas["difference on one"] < 1e-6


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_by_the_exported_notebook(stand_in_path, tmp_path, replicas):
    """The notebook as a script, with one line more, run twice by two workers. It records each 5th loss."""
    command = [sys.executable, "-m", "nbconvert", "--to", "python", str(NOTEBOOK)]
    subprocess.run(
        [*command, "--output-dir", tmp_path, "--output", "script"], check=True, capture_output=True
    )
    script = (tmp_path / "script.py").read_text()
    above, record = "cifar10.data_path = ", "    if step % 100 == 0:"
    assert script.count(above) == script.count(record) == 1
    line = "tf.distribute.experimental_set_strategy(tf.distribute.MultiWorkerMirroredStrategy())\n"
    script = script.replace(above, line + above).replace(record, OFTEN[record])
    (tmp_path / "script.py").write_text(script)
    for end in (5, 10):
        workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        processes = []
        for index in range(2):
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "script.py"],
                    cwd=tmp_path,
                    env=settings(stand_in_path, tmp_path / "checkpoints", 5)
                    | {"TF_CONFIG": json.dumps(task), "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert [output.count("Saved checkpoint.") for output in outputs] == [1, 0]
        assert all(("Restored checkpoint" in output) == (end == 10) for output in outputs)
    assert not list(tmp_path.glob("checkpoints/changed-*"))

    # They compute what two devices in one process do, but for rounding: the same losses, and the same
    # gradients, whose averages Adam keeps.
    paths = tmp_path / "checkpoints" / "cifar10_cnn-10", replicas["folder"] / "mirrored" / "cifar10_cnn-10"
    workers, devices = (tf.train.load_checkpoint(str(path)) for path in paths)
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    assert workers.get_tensor("global_step" + ending) == 10
    curve = workers.get_tensor("learning_curve" + ending)
    assert curve[:, 0].tolist() == [5, 10]
    np.testing.assert_allclose(curve[:, 1], replicas["mirrored"], rtol=1e-4)
    # The bias below batch normalization is left out: its gradient is nothing but rounding.
    for number in {*range(2, 2 + 2 * 11)} - {4, 5}:
        name = f"optimizer/_variables/{number}{ending}"
        ours, theirs = workers.get_tensor(name), devices.get_tensor(name)
        assert np.linalg.norm(theirs) > 0
        assert np.linalg.norm(ours - theirs) < ROUNDING * np.linalg.norm(theirs), name


def test_no_python_and_no_transfer_in_the_loop(notebook):
    """What a GPU is given for many iterations is one graph that needs nothing from the host.

    It takes the number of iterations, whose images and labels are on the device already, and contains
    no call of Python, no reading of files, no iterator and no feeding or fetching within its loop.
    """
    function = notebook.train_steps.get_concrete_function(tf.TensorSpec([], tf.int32))
    definition = function.graph.as_graph_def()
    nodes = [*definition.node] + [node for f in definition.library.function for node in f.node_def]
    operations = {node.op for node in nodes}
    assert {"While", "StatelessWhile"} & operations  # The loop is in the graph,
    assert {"Conv2D", "Conv2DBackpropFilter", "FusedBatchNormGradV3"} <= operations  # with all the work,
    assert "ResourceApplyAdam" in operations or "AssignSubVariableOp" in operations  # and the updates.
    unwanted = ("PyFunc", "Iterator", "Dataset", "Feed", "Fetch", "Queue", "ReadFile", "Print")
    assert not [name for name in operations if any(word in name for word in unwanted)]
    # Besides variables it captures the training set, from the device's memory, and nothing else large.
    captured = [t for t in function.captured_inputs if t.dtype not in (tf.resource, tf.variant)]
    large = [t for t in captured if t.shape.num_elements() > 1000]
    assert {id(t) for t in large} == {id(notebook.images_train), id(notebook.labels_train)}
    assert function.structured_input_signature[0][0].shape == []
    assert function.structured_outputs.shape == []


@pytest.mark.slow
def test_python_only_starts_runs_of_iterations(new_notebook):
    """Between two lines of the status, a hundred iterations run without Python."""
    notebook = new_notebook(replace={"steps_per_run = 10": "steps_per_run = 100"})
    calls, train_steps = [], notebook.train_steps
    notebook.optimize.__globals__["train_steps"] = lambda n: calls.append(int(n)) or train_steps(n)
    notebook.optimize(200)
    assert calls == [100, 100]
