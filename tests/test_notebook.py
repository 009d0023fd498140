"""Tests of the notebook's functions, taken from the notebook itself.

They compare with something independent: NumPy in float64, tf.image on single images, scikit-learn.
"""

import inspect
import re

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix

from saver import CheckpointError
from tests import reference
from tests.conftest import SLOW
from tests.reference import forward, state, weights_of
from tests.toy import original_name
from tests.train import OFTEN
from tools.notebook import TRAINING

SEED = np.array([7, 11])


def extreme_images():
    """Images of noise, black, white, greys, pure colours and faint colours."""
    random = np.random.default_rng(0)
    images = [random.random((32, 32, 3)) for _ in range(10)]
    colors = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    colors += [(1, 1, 0), (0.5, 0.5, 0.501), (1, 0, 1e-3), (1e-3, 0, 0), (0, 1, 1)]
    images += [np.broadcast_to(color, (32, 32, 3)) for color in colors]
    images += [np.rint(255 * random.random((32, 32, 3)) ** 8) / 255, np.indices((32, 32, 3))[0] / 31]
    return np.array(images, np.float32)


def byte_images():
    """The same as bytes."""
    return np.rint(255 * extreme_images()).astype(np.uint8)


########################################################################
# Pre-processing.


def distort_one_by_one(images, seed):
    """The distortions by the operations of tf.image, which the original had too, on one image at a time."""
    result = []
    for image, image_seed in zip(images, tf.random.split(seed, num=len(images)), strict=True):
        crop, flip, hue, contrast, brightness, saturation = tf.random.split(image_seed, num=6)
        with tf.device("CPU"):  # As in the notebook; a GPU rounds otherwise.
            image = tf.image.stateless_random_crop(image, [24, 24, 3], crop)
            image = tf.image.stateless_random_flip_left_right(image, flip)
            image = tf.image.stateless_random_hue(image, 0.05, hue)
            image = tf.image.stateless_random_contrast(image, 0.3, 1.0, contrast)
            image = tf.image.stateless_random_brightness(image, 0.2, brightness)
            image = tf.image.stateless_random_saturation(image, 0.0, 2.0, saturation)
        result.append(np.clip(image, 0, 1))
    return np.array(result)


@pytest.mark.parametrize("seed", [[0, 1], [42, 1000], [42, 150_000]])
@pytest.mark.parametrize("make", [extreme_images, byte_images])
def test_distortions_equal_tf_image_on_single_images_and_numpy(notebook, make, seed):
    """Bytes become numbers between 0 and 1, and other numbers stay."""
    images = np.float32(make() / 255) if make is byte_images else make()
    distorted = notebook.pre_process(make(), training=True, seed=np.array(seed))
    np.testing.assert_allclose(distorted, distort_one_by_one(images, np.array(seed)), atol=1e-6)
    np.testing.assert_allclose(distorted, reference.distort(images, np.array(seed)), atol=2e-5)


def test_each_image_has_draws_of_its_own(notebook):
    same = np.repeat(byte_images()[:1], 64, axis=0)
    distorted = notebook.pre_process(same, training=True, seed=SEED).numpy()
    assert len({image.tobytes() for image in distorted}) == 64
    np.testing.assert_array_equal(distorted, notebook.pre_process(same, training=True, seed=SEED))
    other = notebook.pre_process(same, training=True, seed=SEED + [0, 1]).numpy()
    assert not any((a == b).all() for a, b in zip(distorted, other, strict=True))


def test_crops_and_flips_are_uniform(notebook):
    """Chi-squared tests of 9 x 9 places and of flipping, with 1 % of false alarms if seeds were random.

    All is grey but for a light point and a dark one to its right, which no change of colour makes equal.
    """
    image = np.full((32, 32, 3), 0.5, np.float32)
    image[16, 16], image[16, 17] = 0.7, 0.3
    counts, flipped = np.zeros((9, 9), int), 0
    for i in range(20):
        distorted = notebook.pre_process(np.repeat(image[None], 1000, axis=0), True, SEED + [0, i])
        pixels = distorted.numpy()[..., 0].reshape(1000, -1)
        row, light = np.divmod(pixels.argmax(axis=1), 24)
        dark = pixels.argmin(axis=1) % 24
        assert (abs(light - dark) == 1).all()
        np.add.at(counts, (16 - row, 16 - np.where(dark < light, 23 - light, light)), 1)
        flipped += (dark < light).sum()
    assert stats.chisquare(counts.ravel()).pvalue > 0.01
    assert stats.binomtest(flipped, 20_000).pvalue > 0.01


@pytest.mark.parametrize("make", [extreme_images, byte_images])
def test_testing_crops_the_centre(notebook, make):
    expected = np.float32(make()[:, 4:28, 4:28] / (255 if make is byte_images else 1))
    np.testing.assert_allclose(notebook.pre_process(make(), training=False), expected, rtol=2**-23)


########################################################################
# The network.


def test_shapes_and_number_of_parameters(notebook):
    shapes = [layer.output.shape[1:] for layer in notebook.network.layers]
    convolutions = [*[(24, 24, 64)] * 3, (12, 12, 64), *[(12, 12, 64)] * 2, (6, 6, 64)]
    assert shapes == [*convolutions, (2304,), (256,), (128,), (10,)]
    count = [int(np.prod(v.shape)) for v in notebook.network.trainable_variables]
    assert count == [4800, 64, 64, 102_400, 64, 589_824, 256, 32_768, 128, 1280, 10]
    assert sum(count) == 731_658
    assert sum(int(np.prod(v.shape)) for v in notebook.network.non_trainable_variables) == 128


def test_initial_weights(notebook):
    for name in ("layer_conv1", "layer_conv2", "layer_fc1", "layer_fc2"):
        weights = notebook.network.get_layer(name).kernel
        sigma = np.sqrt(2 / np.prod(weights.shape[:-1]))
        # A truncated normal distribution, Keras' "he_normal", fails this test.
        assert stats.kstest(weights.numpy().ravel(), stats.norm(0, sigma).cdf).pvalue > 0.001, name
        assert np.abs(weights).max() > 2.9 * sigma
    limit = np.sqrt(6 / (128 + 10))
    weights = notebook.network.get_layer("layer_softmax").kernel.numpy().ravel()
    assert stats.kstest(weights, stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.001
    for name, value in weights_of(notebook.network).items():
        if not name.endswith("weights"):
            assert (value == name.endswith("variance")).all(), name


def test_testing_network_equals_numpy(notebook):
    images = notebook.images_test[:4]
    logits, _, _ = forward(notebook.network, images[:, 4:28, 4:28] / 255, training=False)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(notebook.y_pred(images), softmax, atol=1e-5)
    np.testing.assert_array_equal(notebook.y_pred_cls(images), logits.argmax(axis=1))


def test_training_network_equals_numpy(new_notebook):
    notebook = new_notebook()
    images = np.float32(notebook.images_test[:8, :24, :24] / 255)
    expected, mean, variance = forward(notebook.network, images, training=True)
    number = 8 * 24 * 24  # The moving average takes the variance with number - 1.
    variance = variance * number / (number - 1)
    layer = notebook.network.get_layer("layer_conv1_batch_normalize")
    for iteration in (1, 100, 1000, 200_000):
        notebook.global_step.assign(iteration)
        layer.moving_mean.assign(np.zeros(64))
        layer.moving_variance.assign(np.ones(64))
        np.testing.assert_allclose(notebook.network(images, training=True), expected, rtol=1e-4, atol=1e-4)

        keep = min(0.9997, max(0.9, (1 + iteration) / (10 + iteration)))
        np.testing.assert_allclose(layer.moving_mean, (1 - keep) * mean, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(layer.moving_variance, keep + (1 - keep) * variance, rtol=1e-5)


def test_loss_equals_numpy(notebook):
    random = np.random.default_rng(1)
    logits, cls = random.normal(0, 30, (64, 10)), random.integers(0, 10, 64)
    loss = notebook.calculate_loss(logits.astype(np.float32), np.eye(10, dtype=np.float32)[cls])
    np.testing.assert_allclose(loss, reference.cross_entropy(logits, cls), rtol=1e-5)


def test_adam_equals_numpy(new_notebook):
    notebook = new_notebook()
    variables = notebook.network.trainable_variables
    random = np.random.default_rng(2)
    expected = [(v.numpy().astype(np.float64), np.zeros(v.shape), np.zeros(v.shape)) for v in variables]
    for step in (1, 2, 3):
        # Tiny gradients too, where epsilon matters.
        gradients = [random.normal(size=v.shape) * 10.0 ** random.integers(-9, 1) for v in variables]
        expected = [reference.adam(*values, g, step) for values, g in zip(expected, gradients, strict=True)]
        tensors = [tf.constant(gradient, tf.float32) for gradient in gradients]
        notebook.optimizer.apply_gradients(zip(tensors, variables, strict=True))
    for variable, (value, _, _) in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=2e-7)


def test_an_iteration_equals_numpy(new_notebook):
    """Its distortions, loss, gradients and update, for the first two iterations on a small batch.

    The gradients are compared with how the loss changes when a variable is moved a little in a random
    direction, all in float64. The bias below the batch-normalization changes nothing.
    """
    notebook = new_notebook()
    random = np.random.default_rng(3)
    moments = {}
    for step in (1, 2):
        x_batch, y_true_batch = (x[:8] for x in notebook.random_batch(step))
        images = reference.distort(np.float32(x_batch / 255), np.array([notebook.random_seed, step]))
        values, cls = weights_of(notebook.network), y_true_batch.argmax(axis=1)

        def loss(changed, images=images, values=values, cls=cls):
            return reference.cross_entropy(forward(values | changed, images, training=True)[0], cls)

        np.testing.assert_allclose(notebook.train_step(x_batch, y_true_batch), loss({}), rtol=1e-5)
        assert notebook.global_step == notebook.optimizer.iterations == step
        for variable in notebook.network.trainable_variables:
            if (name := original_name(variable)) == "network/layer_conv1/bias":
                continue
            slot = variable.path.replace("/", "_") + "_momentum"
            [m] = [v.numpy() for v in notebook.optimizer.variables if v.path.endswith(slot)]
            before = moments.get(name, (0.0, 0.0))
            gradient = (m.astype(np.float64) - 0.9 * before[0]) / 0.1
            value, *moments[name] = reference.adam(values[name], *before, gradient, step)
            np.testing.assert_allclose(variable, value, atol=2e-6, err_msg=name)
            direction = random.normal(size=value.shape)
            direction *= 1e-6 / np.linalg.norm(direction)
            rise = loss({name: values[name] + direction}) - loss({name: values[name] - direction})
            size = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs(rise / 2 - (gradient * direction).sum()) < 1e-3 * size, name


def test_training_and_testing_network_share_variables_but_differ(new_notebook):
    notebook = new_notebook()
    images = notebook.images_test[:8]
    before = notebook.testing_network(images).numpy()
    np.testing.assert_array_equal(notebook.testing_network(images), before)
    training = notebook.training_network(images, seed=SEED).numpy()
    assert np.abs(training - before).max() > 1e-3
    notebook.get_weights_variable("layer_softmax").assign(np.zeros((128, 10)))
    assert not notebook.testing_network(images).numpy().any()
    assert not notebook.training_network(images, seed=SEED).numpy().any()


def test_layer_output_is_that_of_the_testing_network(notebook):
    images, values = np.float32(notebook.images_test[:2, 4:28, 4:28] / 255), weights_of(notebook.network)
    conv1 = np.maximum(
        reference.convolve(images.astype(np.float64), values, "layer_conv1") / np.sqrt(1 + 0.001), 0
    )
    np.testing.assert_allclose(notebook.output_conv1(images, training=False), conv1, atol=1e-4)
    conv2 = np.maximum(reference.convolve(reference.max_pool(conv1), values, "layer_conv2"), 0)
    np.testing.assert_allclose(notebook.output_conv2(images, training=False), conv2, atol=1e-4)


########################################################################
# Batches.


def test_random_batch_is_a_function_of_the_iteration(notebook):
    images, labels = notebook.random_batch(5)
    assert images.shape == (64, 32, 32, 3) and labels.shape == (64, 10)
    np.testing.assert_array_equal(images, notebook.random_batch(5)[0])
    assert not (images == notebook.random_batch(6)[0]).all()


def test_random_batch_draws_64_different_training_images(notebook):
    number_of = {image.tobytes(): i for i, image in enumerate(notebook.images_train)}
    assert len(number_of) == len(notebook.images_train)
    counts = np.zeros(len(number_of), int)
    for step in range(1, 1001):
        images, labels = notebook.random_batch(step)
        numbers = [number_of[image.tobytes()] for image in images]
        assert len(set(numbers)) == 64
        np.testing.assert_array_equal(labels.argmax(axis=1), notebook.cls_train[numbers])
        counts[numbers] += 1
    # Each image comes up equally often. Its count is hypergeometric, with this variance.
    share = 64 / len(counts)
    statistic = ((counts - 1000 * share) ** 2).sum() / (1000 * share * (1 - share))
    assert 0.005 < stats.chi2(len(counts) - 1).cdf(statistic) < 0.995


########################################################################
# Training.


@SLOW
def test_training_improves_the_network(new_notebook):
    notebook = new_notebook()
    x_batch, y_true_batch = notebook.random_batch(1)

    def loss():
        return float(notebook.calculate_loss(notebook.testing_network(x_batch), y_true_batch))

    loss_before = loss()
    correct, _ = notebook.predict_cls_test()
    assert 0.02 < correct.mean() < 0.25
    notebook.optimize(400)
    assert loss() < 0.8 * loss_before
    correct, _ = notebook.predict_cls_test()
    assert correct.mean() > 0.35


def train_up_to(notebook, last_iteration):
    """Run the notebook's cell that trains."""
    namespace = notebook.optimize.__globals__
    namespace["last_iteration"] = last_iteration
    exec(TRAINING, namespace)


def test_training_goes_up_to_a_number_and_shows_and_records_its_progress(new_notebook, tmp_path, capsys):
    other = new_notebook(tmp_path / "other")
    losses = [float(other.train_step(*other.random_batch(step))) for step in range(1, 11)]
    notebook = new_notebook(replace=OFTEN | {"if i_global in (1000, 5000)": "if i_global in (10, 5000)"})
    capsys.readouterr()
    train_up_to(notebook, 10)
    assert notebook.global_step == notebook.optimizer.iterations == 10
    rows = notebook.learning_curve
    assert [row[:2] for row in rows] == [[5, losses[4]], [10, losses[9]]]
    assert 0 < rows[0][3] < rows[1][3] and np.isnan(rows[0][4])
    x_batch, y_true_batch = notebook.random_batch(10)
    logits, _, _ = forward(notebook.network, x_batch[:, 4:28, 4:28] / 255, training=False)
    np.testing.assert_allclose(rows[1][2], (logits.argmax(1) == y_true_batch.argmax(1)).mean(), rtol=1e-6)
    assert rows[1][4] == notebook.predict_cls_test()[0].mean()

    lines = re.split(r"[\r\n]+", capsys.readouterr().out)
    for step, loss, batch_acc, _, test_acc in rows:
        line = f"Global Step: {step:>6}, Loss: {loss:.2f}, Training Batch Accuracy: {batch_acc:>6.1%}, "
        line += "" if np.isnan(test_acc) else f"Accuracy on Test-Set: {test_acc:.1%}, "
        assert f"{line}Saved checkpoint." in lines
        assert (tmp_path / "checkpoints" / f"cifar10_cnn-{step}.index").is_file()
    assert re.fullmatch(r"Time usage: 0:0\d:\d\d", lines[-2])

    before, files = state(notebook), {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").iterdir()}
    for last_iteration in (10, 9, 0):
        train_up_to(notebook, last_iteration)
        assert capsys.readouterr().out == "The network has had 10 iterations already.\n"
    assert state(notebook) == before and len(rows) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()} == files


def test_nothing_is_printed_before_a_refusal(notebook, capsys):
    namespace, network = notebook.optimize.__globals__, notebook.network
    namespace["network"] = notebook.main_network()
    try:
        with pytest.raises(CheckpointError, match="Made again"):
            notebook.optimize(1)
    finally:
        namespace["network"] = network
    assert capsys.readouterr().out == "" and notebook.global_step == 0


def test_a_loss_that_is_not_a_number_stops_the_training(new_notebook, tmp_path):
    notebook = new_notebook()
    notebook.optimize(2)
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").glob("*.*-*")}
    notebook.network.get_layer("layer_softmax").bias.assign(np.full(10, np.nan))
    with pytest.raises(AssertionError, match="Loss nan in iteration 3: restart, and lower the rate"):
        notebook.optimize(10)
    assert files and files == {path: path.read_bytes() for path in (tmp_path / "checkpoints").glob("*.*-*")}


def test_each_run_keeps_its_code(notebook, new_notebook):
    """TensorFlow and the saver read the code when they need it, which may be after the next run."""
    changed = new_notebook(replace={"size=min(train_batch_size": "size=min(2 * train_batch_size"})
    assert "size=min(train_batch_size" in inspect.getsource(notebook.random_batch)
    assert "size=min(2 * train_batch_size" in inspect.getsource(changed.random_batch)


########################################################################
# Results.


def test_predictions_do_not_depend_on_the_batch_size(notebook):
    images, cls = notebook.images_test[:300], notebook.cls_test[:300]
    expected = notebook.y_pred(images).numpy().argmax(axis=1)
    for size in (7, 256):
        notebook.predict_cls.__globals__["batch_size"] = size
        correct, cls_pred = notebook.predict_cls(images, None, cls)
        np.testing.assert_array_equal(cls_pred, expected)
        np.testing.assert_array_equal(correct, expected == cls)


def test_classification_accuracy_equals_scikit_learn(notebook):
    correct, cls_pred = notebook.predict_cls_test()
    accuracy, number = notebook.classification_accuracy(correct)
    assert accuracy == accuracy_score(notebook.cls_test, cls_pred)
    assert number == accuracy_score(notebook.cls_test, cls_pred, normalize=False)
    batch = notebook.images_test[:64], notebook.labels_test[:64]
    np.testing.assert_allclose(notebook.accuracy(*batch), correct[:64].mean(), rtol=1e-6)


def test_confusion_matrix_equals_scikit_learn(notebook, capsys):
    cls_pred = np.random.default_rng(3).integers(0, 9, len(notebook.cls_test))  # Never class 9.
    notebook.plot_confusion_matrix(cls_pred)
    lines = capsys.readouterr().out.splitlines()
    printed = np.array([line.split("(")[0].split() for line in lines[:10]], int)
    np.testing.assert_array_equal(printed, confusion_matrix(notebook.cls_test, cls_pred))
    np.testing.assert_array_equal(printed.sum(axis=1), np.bincount(notebook.cls_test))
    assert [line.split(") ")[1] for line in lines[:10]] == notebook.class_names


########################################################################
# Data of one's own.

LOAD = "cifar10.load_training_data()"
no_warnings = pytest.mark.filterwarnings("error", "ignore:FigureCanvasAgg is non-interactive:UserWarning")


@no_warnings
@pytest.mark.parametrize(("number", "in_a_batch"), [(100, 64), (60, 60)])
def test_a_few_training_images(new_notebook, number, in_a_batch):
    notebook = new_notebook(replace={LOAD: f"(x[:{number}] for x in {LOAD})"})
    images, _ = notebook.random_batch(1)
    assert len({image.tobytes() for image in images}) == in_a_batch
    notebook.optimize(2)
    notebook.plot_learning_curve()
    notebook.print_test_accuracy(show_example_errors=True, show_confusion_matrix=True)
    assert notebook.global_step == 2


@no_warnings
@pytest.mark.parametrize("num_mistakes", [0, 1, 8, 1000])
@pytest.mark.parametrize("absent", [None, 4])
def test_a_test_set_with_few_mistakes_or_without_a_class(notebook, monkeypatch, capsys, num_mistakes, absent):
    cls = notebook.cls_test[notebook.cls_test != absent]
    correct = np.arange(len(cls)) >= num_mistakes
    cls_pred = np.where(correct, cls, (cls + 1) % 10)
    namespace, shown = notebook.print_test_accuracy.__globals__, []
    monkeypatch.setitem(namespace, "cls_test", cls)
    monkeypatch.setitem(namespace, "images_test", notebook.images_test[notebook.cls_test != absent])
    monkeypatch.setitem(namespace, "predict_cls_test", lambda: (correct, cls_pred))
    monkeypatch.setattr(notebook.plt, "show", lambda: shown.append(notebook.plt.gcf()))
    notebook.print_test_accuracy(show_example_errors=True, show_confusion_matrix=True)
    lines = capsys.readouterr().out.splitlines()
    assert f"({correct.sum()} / {len(cls)})" in lines[-14]
    printed = np.array([line.split("(")[0].split() for line in lines[-11:-1]], int)
    assert printed.sum() == len(cls) and np.trace(printed) == correct.sum()
    errors, _ = shown
    assert sum(ax.get_visible() for ax in errors.axes) == min(9, num_mistakes, len(cls))
    notebook.plt.close("all")
