"""Tests that the port computes what the original program computed, by the outputs that it left.

`pytest tests/test_fidelity.py --fidelity` writes the measured differences to tests/fidelity.md.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import softmax

from tests.conftest import NO_PICTURES, SHARED, needs_cifar10, needs_original
from tests.test_notebook import forward
from tools.notebook import run_cells

ORIGINAL = SHARED / "original"
CHECKPOINT = ORIGINAL / "cifar10_cnn-1000"
pytestmark = [needs_original, needs_cifar10]


@pytest.fixture(scope="module")
def open_original(cifar10_path, tmp_path_factory):
    """A function that runs the notebook with a copy of an original checkpoint in a new folder."""

    def run(path, step, replace=None):
        folder = tmp_path_factory.mktemp("original")
        for ending in (".index", ".data-00000-of-00001"):
            shutil.copy(f"{path}{ending}", folder / f"cifar10_cnn-{step}{ending}")
        before = {file: file.read_bytes() for file in folder.iterdir()}
        notebook = SimpleNamespace(**run_cells(cifar10_path, folder, NO_PICTURES | (replace or {})))
        assert {file: file.read_bytes() for file in before} == before
        return notebook

    return run


@pytest.fixture(scope="module")
def restored(open_original):
    """The notebook with the original weights. Don't train this one."""
    return open_original(CHECKPOINT, 1000)


def save_original(path, values):
    """Write a checkpoint in the form of the original program."""
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )


def original_values():
    """All variables of the original checkpoint by their names."""
    reader = tf.train.load_checkpoint(CHECKPOINT)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def original_name(variable):
    """The name that a variable had in the original program."""
    layer, name = variable.path.split("/")[-2:]
    layer = layer.replace("layer_softmax", "fully_connected").replace("_batch_normalize", "/batch_normalize")
    return f"network/{layer}/{name.replace('kernel', 'weights')}"


def values_after(step):
    """Made-up variables of the original program after a number of iterations."""
    values = original_values()
    random = np.random.default_rng(step)
    for name, value in values.items():
        if value.ndim:
            values[name] = value * random.uniform(0.5, 1.5, value.shape).astype(np.float32)
    values["global_step"] = values["global_step"].dtype.type(step)
    with np.errstate(under="ignore"):  # After 150,000 iterations they are zero.
        values["beta1_power"] = np.float32(0.9) ** np.float32(step + 1)
        values["beta2_power"] = np.float32(0.999) ** np.float32(step + 1)
    return values


def at_most(difference):
    """Round up to one digit."""
    power = 10.0 ** np.floor(np.log10(difference))
    return f"at most {np.ceil(difference / power) * power:.0e}"


def test_number_of_parameters(restored, fidelity):
    names = {original_name(variable) for variable in restored.network.trainable_variables}
    theirs = sum(value.size for name, value in original_values().items() if name in names)
    ours = sum(variable.shape.num_elements() for variable in restored.network.trainable_variables)
    assert ours == theirs
    fidelity("trainable parameters", f"{theirs:,}", f"{ours:,}", "0")


def test_outputs_with_the_original_weights(restored, fidelity):
    expected = np.load(ORIGINAL / "softmax-1000.npz")["y_pred"]
    outputs = restored.y_pred(restored.images_test[:256]).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=0)
    largest = np.abs(outputs - expected).max()
    fidelity("softmax outputs of 256 test images, same weights", "", "", at_most(largest))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 12_000, 150_000])
def test_outputs_of_checkpoints_of_other_steps(step, open_original, tmp_path):
    """Compared with NumPy in float64, which takes the weights right from the file."""
    values = values_after(step)
    save_original(tmp_path / "made-up", values)
    restored = open_original(tmp_path / "made-up", step)
    assert restored.global_step == step
    layers = []
    for name in ("layer_conv1", "layer_conv2", "layer_fc1", "layer_fc2", "fully_connected"):
        kernel, bias = (tf.constant(values[f"network/{name}/{end}"]) for end in ("weights", "bias"))
        name = name.replace("fully_connected", "layer_softmax")
        layers.append(SimpleNamespace(name=name, kernel=kernel, bias=bias))
    batch_normalize = {
        name: tf.constant(values[f"network/layer_conv1/batch_normalize/{name}"])
        for name in ("beta", "moving_mean", "moving_variance")
    }
    layers.append(SimpleNamespace(name="layer_conv1_batch_normalize", **batch_normalize))
    images = restored.images_test[:16]
    logits, _, _ = forward(SimpleNamespace(layers=layers), images[:, 4:28, 4:28] / 255, training=False)
    np.testing.assert_allclose(restored.y_pred(images), softmax(logits, axis=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "step", [1000, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 12_000, 150_000))]
)
def test_training_goes_on_from_the_original_moments(step, open_original, tmp_path, fidelity):
    """Adam's next update equals NumPy's, in float64 from the moments in the checkpoint."""
    path, values = CHECKPOINT, original_values()
    if step != 1000:
        path, values = tmp_path / "made-up", values_after(step)
        save_original(path, values)
    restored = open_original(path, step)
    assert restored.global_step == restored.optimizer.iterations == step
    variables = restored.network.trainable_variables
    x_batch, y_true_batch = restored.random_batch(step + 1)
    with tf.GradientTape() as tape:
        logits = restored.training_network(x_batch, seed=[restored.random_seed, step + 1])
        loss = restored.calculate_loss(logits, y_true_batch)
    gradients = [gradient.numpy().astype(np.float64) for gradient in tape.gradient(loss, variables)]
    for name in ("moving_mean", "moving_variance"):  # Undo that this was a training step.
        variable = getattr(restored.network.get_layer("layer_conv1_batch_normalize"), name)
        variable.assign(values[f"network/layer_conv1/batch_normalize/{name}"])

    restored.optimize(1)
    assert restored.global_step == restored.optimizer.iterations == step + 1
    rate = 1e-4 * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    largest = 0.0
    for variable, gradient in zip(variables, gradients, strict=True):
        name = original_name(variable)
        value, m, v = (values[name + end].astype(np.float64) for end in ("", "/Adam", "/Adam_1"))
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        expected = value - rate * m / (np.sqrt(v) + 1e-8)
        if name != "network/layer_conv1/bias":  # Its gradient is zero but for rounding.
            np.testing.assert_allclose(variable, expected, atol=2e-6, rtol=0, err_msg=name)
            largest = max(largest, np.abs(variable.numpy() - expected).max())
    if step == 1000:
        fidelity("Adam's update 1,001, same moments", "float64", "float32", at_most(largest))


@pytest.mark.slow
@pytest.mark.parametrize(
    "left_out", ["network/layer_fc1/bias", "network/layer_conv2/weights/Adam_1", "global_step"]
)
def test_an_incomplete_checkpoint_is_refused(open_original, new_notebook, tmp_path, left_out, capsys):
    """It is named and kept, and the variables are those of a new network."""
    values = {name: value for name, value in original_values().items() if name != left_out}
    save_original(tmp_path / "incomplete", values)
    notebook = open_original(tmp_path / "incomplete", 1000)
    assert left_out in capsys.readouterr().out
    new = new_notebook(tmp_path / "none")
    for name in ("network", "optimizer"):
        pairs = zip(getattr(notebook, name).variables, getattr(new, name).variables, strict=True)
        assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)
    assert notebook.global_step == 0


@pytest.mark.slow
def test_a_changed_network_refuses_the_checkpoint(open_original, capsys):
    change = {'Dense(256, activation="relu"': 'Dense(200, activation="relu"'}
    assert open_original(CHECKPOINT, 1000, change).global_step == 0
    output = capsys.readouterr().out
    assert "layer_fc1/weights" in output and "layer_fc2/weights" in output


def distort(notebook, images):
    """Distort images in batches of 500, with a seed for each."""
    batches = np.array_split(images, len(images) // 500)
    return np.concatenate(
        [notebook.pre_process(b, training=True, seed=[5, i]) for i, b in enumerate(batches)]
    )


def test_distortions_of_the_training_set_have_the_original_distribution(restored, fidelity):
    """Over the first 5,000 training images, against the original's draws of the same images.

    Both have one independent draw for each image. So the differences of an image's mean, or of its
    standard deviation, are independent with expectation zero: a z-test of their mean, |z| < 4 (a false
    alarm in 1 of 16,000), and a two-sample Kolmogorov-Smirnov test, p > 0.0001, for each channel.
    The histograms of all pixels are compared bin by bin with the spread between parts of the images.
    """
    reference = np.load(ORIGINAL / "distorted-train-5000.npz")
    images = restored.images_train[:5000].numpy()
    distorted = distort(restored, images)
    for name, values in [("mean", distorted.mean(axis=(1, 2))), ("std", distorted.std(axis=(1, 2)))]:
        title = {"mean": "mean of distorted pixels", "std": "their standard deviation in an image"}[name]
        for channel, color in enumerate(("red", "green", "blue")):
            difference = values[:, channel].astype(np.float64) - reference[name][:, channel]
            z = difference.mean() / (difference.std(ddof=1) / np.sqrt(5000))
            assert abs(z) < 4, (name, channel, z)
            test = stats.ks_2samp(values[:, channel], reference[name][:, channel])
            assert test.pvalue > 1e-4, (name, channel, test)
            means = (part[:, channel].mean(dtype=np.float64) for part in (reference[name], values))
            fidelity(f"{title}, {color}", *(f"{mean:.4f}" for mean in means), f"z = {z:.1f}")

    parts = np.array([np.histogram(p, 64, (0, 1))[0] for p in np.split(distorted, 100)]) / (50 * 24 * 24 * 3)
    expected = reference["histogram"] / reference["histogram"].sum()
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
