"""Tests that the port computes what the original program computed, by the outputs that it left.

`pytest tests/test_fidelity.py --fidelity` writes the measured differences to tests/fidelity.md.

The original's outputs are its softmax for 256 test images with the weights of one checkpoint, after 1,000
iterations, and its distorted images. It left no gradients: its update is that of Adam in NumPy, in float64,
from the moments in its checkpoint and from this port's gradients, which test_notebook.py compares with NumPy.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import softmax

from tests import reference
from tests.conftest import NO_PICTURES, SLOW, mostly_slow, needs_cifar10, needs_original
from tests.reference import CHECKPOINT, ORIGINAL
from tests.toy import original_name
from tools.notebook import run_cells

FEWER = {'Dense(256, activation="relu"': 'Dense(200, activation="relu"'}
pytestmark = [needs_original, needs_cifar10]


@pytest.fixture(scope="module")
def open_original(cifar10_path, tmp_path_factory):
    """A function that runs the notebook from an original checkpoint, in a new folder."""

    def run(path, replace=None):
        files = {file: file.read_bytes() for file in path.parent.glob(path.name + ".*")}
        start = {"saver.restore(save_dir)": f"saver.restore(save_dir, start_from={str(path)!r})"}
        folder = tmp_path_factory.mktemp("original")
        notebook = run_cells(cifar10_path, folder, NO_PICTURES | start | (replace or {}))
        assert files and {file: file.read_bytes() for file in files} == files
        return SimpleNamespace(**notebook)

    return run


@pytest.fixture(scope="module")
def restored(open_original):
    """The notebook with the original weights. Don't train this one."""
    return open_original(CHECKPOINT)


def at_most(difference):
    """Round up to one digit."""
    power = 10.0 ** np.floor(np.log10(difference))
    return f"at most {np.ceil(difference / power) * power:.0e}"


def test_number_of_parameters(restored, fidelity):
    _, values = reference.original_checkpoint(None)
    variables = restored.network.trainable_variables
    theirs = sum(values[original_name(variable)].size for variable in variables)
    ours = sum(variable.shape.num_elements() for variable in variables)
    assert ours == theirs
    fidelity("trainable parameters", f"{theirs:,}", f"{ours:,}", "0")


def test_outputs_with_the_original_weights(restored, fidelity):
    expected = np.load(ORIGINAL / "softmax-1000.npz")["y_pred"]
    assert expected.shape == (256, 10)
    outputs = restored.y_pred(restored.images_test[:256]).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=0)
    largest = np.abs(outputs - expected).max()
    quantity = "softmax outputs of 256 test images, with the weights of the checkpoint after 1,000 iterations"
    fidelity(quantity, "as it left them", "computed", at_most(largest))


@SLOW
@pytest.mark.parametrize("step", [1, 12_000, 150_000])
def test_outputs_of_checkpoints_of_other_steps(step, open_original, tmp_path):
    """Compared with NumPy in float64, which takes the weights right from the file."""
    path, values = reference.original_checkpoint(tmp_path, step)
    restored = open_original(path)
    assert restored.global_step == step
    images = restored.images_test[:16]
    logits, _, _ = reference.forward(values, images[:, 4:28, 4:28] / 255, training=False)
    np.testing.assert_allclose(restored.y_pred(images), softmax(logits, axis=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", mostly_slow([1000, 1, 12_000, 150_000], 1000))
def test_training_goes_on_from_the_original_moments(step, open_original, tmp_path, fidelity):
    """Adam's next update equals NumPy's, in float64 from the moments in the checkpoint."""
    path, values = reference.original_checkpoint(tmp_path, step)
    restored = open_original(path)
    assert restored.global_step == restored.optimizer.iterations == step
    variables = restored.network.trainable_variables
    x_batch, y_true_batch = restored.random_batch(step + 1)
    with tf.GradientTape() as tape:
        logits = restored.training_network(x_batch, seed=np.array([restored.random_seed, step + 1]))
        loss = restored.calculate_loss(logits, y_true_batch)
    gradients = [gradient.numpy().astype(np.float64) for gradient in tape.gradient(loss, variables)]
    for name in ("moving_mean", "moving_variance"):  # Undo that this was a training step.
        variable = getattr(restored.network.get_layer("layer_conv1_batch_normalize"), name)
        variable.assign(values[f"network/layer_conv1/batch_normalize/{name}"])

    restored.optimize(1)
    assert restored.global_step == restored.optimizer.iterations == step + 1
    differences = {}
    for variable, gradient in zip(variables, gradients, strict=True):
        name = original_name(variable)
        value_m_v = (values[name + end].astype(np.float64) for end in ("", "/Adam", "/Adam_1"))
        expected, _, _ = reference.adam(*value_m_v, gradient, step + 1)
        differences[name] = np.abs(variable.numpy() - expected).max()
    del differences["network/layer_conv1/bias"]  # Its gradient is zero but for rounding.
    assert len(differences) == 10 and max(differences.values()) < 2e-6, differences
    if step == 1000:
        quantity = "variables after Adam's update 1,001, but for the bias of layer_conv1"
        original = "NumPy in float64, from its moments and the port's gradients"
        fidelity(quantity, original, "float32", at_most(max(differences.values())))


@SLOW
@pytest.mark.parametrize(
    ("without", "change", "new"),
    [
        ("network/layer_fc1/bias", {}, ["network/layer_fc1/bias"]),
        ("network/layer_conv2/weights/Adam_1", {}, ["network/layer_conv2/weights/Adam_1"]),
        ("global_step", {}, ["global_step"]),
        (None, FEWER, ["network/layer_fc1/weights", "network/layer_fc1/bias", "network/layer_fc2/weights"]),
    ],
    ids=["no bias", "no moment", "no number of iterations", "another network"],
)
def test_all_that_fits_is_taken_and_the_rest_is_named(open_original, tmp_path, capsys, without, change, new):
    path, values = reference.original_checkpoint(tmp_path, without=without)
    restored = open_original(path, change)
    assert re.search(f"^New, because .*: {', '.join(new)}[.]$", capsys.readouterr().out, re.MULTILINE)
    for variable in restored.network.variables:
        if (name := original_name(variable)) not in new:
            np.testing.assert_array_equal(variable, values[name], err_msg=name)
    step = 0 if without == "global_step" else 1000
    assert restored.global_step == restored.optimizer.iterations == step


def distort(notebook, images):
    """Distort images in batches of 500, with a seed for each."""
    batches = np.array_split(images, len(images) // 500)
    seeds = [np.array([5, i]) for i in range(len(batches))]
    distorted = [notebook.pre_process(b, True, seed) for b, seed in zip(batches, seeds, strict=True)]
    return np.concatenate(distorted)


def test_distortions_of_the_training_set_have_the_original_distribution(restored, fidelity):
    """Over the first 5,000 training images, against the original's draws of the same images.

    Both have one independent draw for each image. So the differences of an image's mean, or of its
    standard deviation, are independent with expectation zero: a z-test of their mean, |z| < 4 (a false
    alarm in 1 of 16,000), and a two-sample Kolmogorov-Smirnov test, p > 0.0001, for each channel.
    The histograms of all pixels are compared bin by bin with the spread between parts of the images.
    """
    original = np.load(ORIGINAL / "distorted-train-5000.npz")
    images = restored.images_train[:5000]
    distorted = distort(restored, images)
    for name, values in [("mean", distorted.mean(axis=(1, 2))), ("std", distorted.std(axis=(1, 2)))]:
        title = {"mean": "mean of distorted pixels", "std": "their standard deviation in an image"}[name]
        for channel, color in enumerate(("red", "green", "blue")):
            difference = values[:, channel].astype(np.float64) - original[name][:, channel]
            z = difference.mean() / (difference.std(ddof=1) / np.sqrt(5000))
            assert abs(z) < 4, (name, channel, z)
            test = stats.ks_2samp(values[:, channel], original[name][:, channel])
            assert test.pvalue > 1e-4, (name, channel, test)
            means = (part[:, channel].mean(dtype=np.float64) for part in (original[name], values))
            fidelity(f"{title}, {color}", *(f"{mean:.4f}" for mean in means), f"z = {z:.1f}")

    parts = np.array([np.histogram(p, 64, (0, 1))[0] for p in np.split(distorted, 100)]) / (50 * 24 * 24 * 3)
    expected = original["histogram"] / original["histogram"].sum()
    # The spread of one histogram of 5,000 images, twice in the difference of two.
    spread = np.sqrt(2) * parts.std(axis=0, ddof=1) / np.sqrt(100)
    assert np.abs((parts.mean(axis=0) - expected) / spread).max() < 5


def test_distortions_of_one_image_have_the_original_distribution(restored):
    """512 draws of test image 16 each: Kolmogorov-Smirnov tests of what each distortion changes."""
    original = np.load(ORIGINAL / "distorted-test-16.npz")["images"]
    port = distort(restored, np.repeat(restored.images_test[16:17], 512, axis=0))
    features = {
        "brightness": lambda x: x.mean(axis=(1, 2, 3)),
        "contrast": lambda x: x.mean(axis=3).std(axis=(1, 2)),
        "saturation": lambda x: (x.max(axis=3) - x.min(axis=3)).mean(axis=(1, 2)),
        "hue": lambda x: (
            (x[..., 0] - x[..., 1]).mean(axis=(1, 2))
            / (x.max(axis=3) - x.min(axis=3) + 1e-3).mean(axis=(1, 2))
        ),
        "left-right": lambda x: (x[:, :, :12] - x[:, :, 12:]).mean(axis=(1, 2, 3)),
        "top-bottom": lambda x: (x[:, :12] - x[:, 12:]).mean(axis=(1, 2, 3)),
    }
    for name, feature in features.items():
        assert stats.ks_2samp(feature(original), feature(port)).pvalue > 1e-4, name
