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

from tools.exercises import CHANGES

SEED = [7, 11]


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


def uniform_draws(number, low, high, seed):
    draws = tf.random.stateless_uniform([number, 1, 1, 1], seed, maxval=2**24, dtype=tf.int32)
    return (low + (high - low) * draws.numpy().ravel() / 2**24).astype(np.float32)


########################################################################
# Pre-processing.


def distort_one_by_one(images, seed):
    """The distortions by tf.image for one image at a time, with the same draws."""
    seeds = tf.random.stateless_uniform([6, 2], seed, maxval=2**31 - 1, dtype=tf.int32)
    number = len(images)
    corners = tf.random.stateless_uniform([number, 2, 1], seeds[0], maxval=9, dtype=tf.int32)
    flips = uniform_draws(number, 0, 1, seeds[1])
    hues = uniform_draws(number, -0.05, 0.05, seeds[2])
    contrasts = uniform_draws(number, 0.3, 1.0, seeds[3])
    brightnesses = uniform_draws(number, -0.2, 0.2, seeds[4])
    saturations = uniform_draws(number, 0.0, 2.0, seeds[5])
    result = []
    for i, image in enumerate(images):
        top, left = corners[i, :, 0].numpy()
        image = tf.image.crop_to_bounding_box(image, top, left, 24, 24)
        image = tf.image.flip_left_right(image) if flips[i] < 0.5 else image
        image = tf.image.adjust_hue(image, hues[i])
        image = tf.image.adjust_contrast(image, contrasts[i])
        image = tf.image.adjust_brightness(image, brightnesses[i])
        image = tf.image.adjust_saturation(image, saturations[i])
        result.append(np.clip(image, 0, 1))
    return np.array(result)


@pytest.mark.parametrize("seed", [[0, 1], [42, 1000], [42, 150_000]])
def test_distortions_equal_tf_image_on_single_images(notebook, seed):
    images = extreme_images()
    distorted = notebook.pre_process_image(tf.constant(images), training=True, seed=seed)
    np.testing.assert_allclose(distorted, distort_one_by_one(images, seed), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "low", "high", "reference"),
    [
        ("random_hue", (0.05,), -0.05, 0.05, tf.image.adjust_hue),
        ("random_hue", (0.5,), -0.5, 0.5, tf.image.adjust_hue),
        ("random_contrast", (0.3, 1.0), 0.3, 1.0, tf.image.adjust_contrast),
        ("random_brightness", (0.2,), -0.2, 0.2, tf.image.adjust_brightness),
        ("random_saturation", (0.0, 2.0), 0.0, 2.0, tf.image.adjust_saturation),
        ("random_saturation", (0.0, 1e-6), 0.0, 1e-6, tf.image.adjust_saturation),
        ("random_saturation", (50.0, 100.0), 50.0, 100.0, tf.image.adjust_saturation),
    ],
)
def test_each_distortion_equals_tf_image(notebook, name, arguments, low, high, reference):
    images = extreme_images()
    if name == "random_saturation":  # It comes after contrast and brightness, which overflow.
        images = np.concatenate([images, images - 0.2, images + 0.2, images * 0.3 - 0.15])
    result = getattr(notebook, name)(tf.constant(images), *arguments, seed=SEED)
    draws = uniform_draws(len(images), low, high, SEED)
    expected = [reference(image, draw).numpy() for image, draw in zip(images, draws, strict=True)]
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_each_image_has_draws_of_its_own(notebook):
    same = np.repeat(byte_images()[:1], 64, axis=0)
    distorted = notebook.pre_process(same, training=True, seed=SEED).numpy()
    assert len({image.tobytes() for image in distorted}) == 64
    again = notebook.pre_process(same, training=True, seed=SEED).numpy()
    np.testing.assert_array_equal(distorted, again)
    other = notebook.pre_process(same, training=True, seed=[7, 12]).numpy()
    assert not any((a == b).all() for a, b in zip(distorted, other, strict=True))


def test_crops_and_flips_are_uniform(notebook):
    """Chi-squared tests of 9 x 9 places and of flipping, with 1 % of false alarms if seeds were random."""
    place = np.arange(32 * 32, dtype=np.float32).reshape(1, 32, 32, 1).repeat(20_000, axis=0)
    crops = notebook.random_crop(tf.constant(place), seed=SEED).numpy()[:, 0, 0, 0].astype(int)
    counts = np.bincount(crops, minlength=32 * 32).reshape(32, 32)
    assert counts[9:].sum() == counts[:, 9:].sum() == 0
    assert stats.chisquare(counts[:9, :9].ravel()).pvalue > 0.01
    flips = notebook.random_flip_left_right(tf.constant(place[:, :1, :2]), seed=SEED)
    flipped = int((flips.numpy()[:, 0, 0, 0] == 1).sum())
    assert stats.binomtest(flipped, 20_000).pvalue > 0.01


def test_testing_crops_the_centre(notebook):
    images = byte_images()
    expected = np.float32(images[:, 4:28, 4:28] / 255)
    np.testing.assert_allclose(notebook.pre_process(images, training=False), expected, rtol=2**-23)


def test_bytes_become_numbers_between_0_and_1(notebook):
    pixels = np.arange(256 * 12, dtype=np.uint8).reshape(1, 32, 32, 3)
    images = np.float32(pixels / 255)
    cropped = notebook.pre_process(pixels, training=False)
    np.testing.assert_allclose(cropped, images[:, 4:28, 4:28], rtol=2**-23)
    distorted = notebook.pre_process(pixels, training=True, seed=SEED)
    np.testing.assert_allclose(distorted, distort_one_by_one(images, SEED), atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_numbers_instead_of_bytes_are_an_error(notebook, dtype):
    """Numbers between 0 and 1 would make black images."""
    images = extreme_images().astype(dtype)
    for function in (notebook.y_pred, lambda x: notebook.pre_process(x, training=True, seed=SEED)):
        with pytest.raises(TypeError, match="Give the images as bytes"):
            function(images)


########################################################################
# The network.


def test_shapes_and_number_of_parameters(notebook):
    shapes = [layer.output.shape[1:] for layer in notebook.network.layers]
    assert shapes == [
        *[(24, 24, 64)] * 3,
        (12, 12, 64),
        *[(12, 12, 64)] * 2,
        (6, 6, 64),
        (2304,),
        (256,),
        (128,),
        (10,),
    ]
    count = [int(np.prod(v.shape)) for v in notebook.network.trainable_variables]
    assert count == [4800, 64, 64, 102_400, 64, 589_824, 256, 32_768, 128, 1280, 10]
    assert sum(count) == 731_658
    assert sum(int(np.prod(v.shape)) for v in notebook.network.non_trainable_variables) == 128


def test_initial_weights(notebook):
    for name in ("layer_conv1", "layer_conv2", "layer_fc1", "layer_fc2"):
        layer = notebook.network.get_layer(name)
        weights = layer.kernel.numpy().ravel()
        sigma = np.sqrt(2 / np.prod(layer.kernel.shape[:-1]))
        # A truncated normal distribution, Keras' "he_normal", fails this test.
        assert stats.kstest(weights, stats.norm(0, sigma).cdf).pvalue > 0.001, name
        assert np.abs(weights).max() > 2.9 * sigma
        assert not layer.bias.numpy().any()
    layer = notebook.network.get_layer("layer_softmax")
    limit = np.sqrt(6 / (128 + 10))
    uniform = stats.uniform(-limit, 2 * limit)
    assert stats.kstest(layer.kernel.numpy().ravel(), uniform.cdf).pvalue > 0.001
    assert not layer.bias.numpy().any()
    batch_normalize = notebook.network.get_layer("layer_conv1_batch_normalize")
    assert [v.path.split("/")[-1] for v in batch_normalize.variables] == [
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    assert [float(v.numpy().mean()) for v in batch_normalize.variables] == [0, 0, 1]


def convolve(images, layer):
    """5 x 5 convolution with padding, in float64."""
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    kernel, bias = (variable.numpy().astype(np.float64) for variable in (layer.kernel, layer.bias))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True) + bias


def max_pool(images):
    number, height, width, channels = images.shape
    return images.reshape(number, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def forward(network, images, training):
    """The whole network in float64 NumPy. Returns the outputs and the batch's mean and variance."""
    layers = {layer.name: layer for layer in network.layers}
    x = convolve(images.astype(np.float64), layers["layer_conv1"])
    batch_normalize = layers["layer_conv1_batch_normalize"]
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    used = (mean, variance)
    if not training:
        used = batch_normalize.moving_mean.numpy(), batch_normalize.moving_variance.numpy()
    x = (x - used[0]) / np.sqrt(used[1] + 0.001) + batch_normalize.beta.numpy()
    x = max_pool(np.maximum(x, 0))
    x = max_pool(np.maximum(convolve(x, layers["layer_conv2"]), 0)).reshape(len(images), -1)
    for name in ("layer_fc1", "layer_fc2"):
        x = np.maximum(x @ layers[name].kernel.numpy() + layers[name].bias.numpy(), 0)
    x = x @ layers["layer_softmax"].kernel.numpy() + layers["layer_softmax"].bias.numpy()
    return x, mean, variance


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
    logits = random.normal(0, 30, (64, 10))
    cls = random.integers(0, 10, 64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    expected = -log_softmax[np.arange(64), cls].mean()
    loss = notebook.calculate_loss(logits.astype(np.float32), np.eye(10, dtype=np.float32)[cls])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_adam_equals_numpy(new_notebook):
    """Three updates in TensorFlow 1's form: epsilon is added outside the bias correction."""
    notebook = new_notebook()
    variables = notebook.network.trainable_variables
    random = np.random.default_rng(2)
    values = [v.numpy().astype(np.float64) for v in variables]
    m, v = [[np.zeros(value.shape) for value in values] for _ in range(2)]
    for t in (1, 2, 3):
        # Tiny gradients too, where epsilon matters.
        gradients = [random.normal(size=value.shape) * 10.0 ** random.integers(-9, 1) for value in values]
        rate = 1e-4 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        for i, gradient in enumerate(gradients):
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.999 * v[i] + 0.001 * gradient**2
            values[i] = values[i] - rate * m[i] / (np.sqrt(v[i]) + 1e-8)
        tensors = [tf.constant(gradient, tf.float32) for gradient in gradients]
        notebook.optimizer.apply_gradients(zip(tensors, variables, strict=True))
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=2e-7)


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
    images = np.float32(notebook.images_test[:2, 4:28, 4:28] / 255)
    layers = {layer.name: layer for layer in notebook.network.layers}
    x = convolve(images.astype(np.float64), layers["layer_conv1"]) / np.sqrt(1 + 0.001)
    conv1 = np.maximum(x, 0)
    np.testing.assert_allclose(notebook.output_conv1(images, training=False), conv1, atol=1e-4)
    conv2 = np.maximum(convolve(max_pool(conv1), layers["layer_conv2"]), 0)
    np.testing.assert_allclose(notebook.output_conv2(images, training=False), conv2, atol=1e-4)


########################################################################
# Batches and training.


def test_random_batch_is_a_function_of_the_iteration(notebook):
    images, labels = notebook.random_batch(5)
    assert images.shape == (64, 32, 32, 3) and labels.shape == (64, 10)
    again, _ = notebook.random_batch(5)
    np.testing.assert_array_equal(images, again)
    other, _ = notebook.random_batch(6)
    assert not (images == other).numpy().all()


def test_random_batch_draws_64_different_training_images(notebook):
    pixels = notebook.images_train.numpy()
    number_of = {image.tobytes(): i for i, image in enumerate(pixels)}
    assert len(number_of) == len(pixels)
    counts = np.zeros(len(pixels), int)
    for step in range(1, 1001):
        images, labels = notebook.random_batch(step)
        numbers = [number_of[image.tobytes()] for image in images.numpy()]
        assert len(set(numbers)) == 64
        counts[numbers] += 1
    assert np.array_equal(labels.numpy().argmax(axis=1), notebook.cls_train[numbers])
    # Each image comes up equally often. Its count is hypergeometric, with this variance.
    share = 64 / len(pixels)
    statistic = ((counts - 1000 * share) ** 2).sum() / (1000 * share * (1 - share))
    assert 0.005 < stats.chi2(len(pixels) - 1).cdf(statistic) < 0.995


@pytest.mark.slow
def test_training_improves_the_network_and_saves_checkpoints(new_notebook, tmp_path, capsys):
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
    assert notebook.global_step == notebook.optimizer.iterations == 400
    text = capsys.readouterr().out
    assert "Training from iteration 1 to 400.\n" in text
    status = r"Global Step: +(\d+), Training Batch Accuracy: +[\d.]+%, [\d.]+ per second, (\S+) left"
    shown = re.findall(status, text)
    assert [step for step, _ in shown] == ["100", "200", "300", "400"] and shown[-1][1] == "0:00:00"
    assert "Saved checkpoint." in text and "Time usage: 0:0" in text
    assert (tmp_path / "checkpoints" / "cifar10_cnn-400.index").is_file()


def test_progress_tells_the_rate_and_the_time_left(notebook, capsys):
    notebook.print_progress(step=50, loss=1.0, seconds=5.0, speed=10.0, num_left=36_050)
    assert capsys.readouterr().out.endswith("%, 10.0 per second, 1:00:05 left\n")


@pytest.mark.parametrize("num_iterations", [0, -1])
def test_no_iterations(num_iterations, notebook, capsys):
    notebook.optimize(num_iterations)
    assert notebook.global_step == 0 and capsys.readouterr().out == ""


@pytest.mark.slow
def test_each_run_keeps_its_code(new_notebook):
    """TensorFlow reads the code when it makes a graph, which may be after the next run."""
    plain, changed = new_notebook(), new_notebook(replace={"2 * train_batch_size": "3 * train_batch_size"})
    assert "2 * train_batch_size" in inspect.getsource(plain.random_batch)
    assert "3 * train_batch_size" in inspect.getsource(changed.random_batch)


def weights(notebook):
    return [v.numpy().tobytes() for v in [*notebook.network.variables, *notebook.optimizer.variables]]


def test_resumed_training_equals_uninterrupted_training(new_notebook, tmp_path, capsys):
    uninterrupted = new_notebook(tmp_path / "uninterrupted")
    uninterrupted.optimize(25)
    new_notebook(tmp_path / "resumed").optimize(12)
    assert "so the variables are new ones" in capsys.readouterr().out
    resumed = new_notebook(tmp_path / "resumed")
    assert f"Restored checkpoint from: {tmp_path}/resumed/cifar10_cnn-12" in capsys.readouterr().out
    assert resumed.global_step == 12
    resumed.optimize(13)
    assert weights(resumed) == weights(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("change", [change for change in CHANGES if change != "as it is"])
def test_exercises_work_by_changing_cells(change, new_notebook, tmp_path):
    """Each change is noticed, so that it is trained in a folder of its own, and resumes there to the bit."""
    new_notebook().optimize(1)
    whole = new_notebook(tmp_path / "whole", replace=CHANGES[change])
    whole.optimize(3)
    for step in (1, 3):
        notebook = new_notebook(replace=CHANGES[change])
        notebook.optimize(step - int(notebook.global_step.numpy()))
        assert (tmp_path / "checkpoints" / "changed-1" / f"cifar10_cnn-{step}.index").is_file()
    assert weights(notebook) == weights(whole)


########################################################################
# Results.


def test_predictions_do_not_depend_on_the_batch_size(notebook):
    images, cls = notebook.images_test[:300], notebook.cls_test[:300]
    expected = notebook.y_pred(images).numpy().argmax(axis=1)
    for size in (256, 7):
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
