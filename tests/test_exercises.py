"""Tests of the exercises' answers: each change does what it says, and each block of code runs."""

import ast
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image

import tools.exercises
from tests import reference
from tests.conftest import SLOW, mostly_slow
from tests.reference import state
from tests.train import OFTEN
from tools.exercises import read_changes
from tools.notebook import NOTEBOOK, ROOT, changed_notebook, run_cells

CHANGES = read_changes()

# What each change makes of the network and its training, in the words of its answer.
AS_IT_IS = {
    "widths": [64, 64, 256, 128, 10],
    "normalized": 1,
    "precision": "float32",
    "optimizer": "Adam",
    "rates": (1e-4, 1e-4),  # At the beginning and at the end.
    "batch": 64,
    "size": 24,
    "last": 10_000,
}
SGD = {"optimizer": "SGD", "rates": (0.01, 0), "last": 25_000}
WHOLE = SGD | {"widths": [24, 64, 64, *[128] * 4, 10], "normalized": 6, "batch": 500, "size": 32}
WHOLE |= {"rates": (0.2, 0), "last": 1_600}
EXPECTED = {
    "half as wide": {"widths": [32, 32, 128, 64, 10]},
    "twice as wide": {"widths": [128, 128, 512, 256, 10]},
    "a third convolutional layer": {"widths": [64, 64, 64, 256, 128, 10]},
    "batch-normalization in both layers": {"normalized": 2},
    "batch-normalization in none": {"normalized": 0},
    "learning-rate 1e-3": {"rates": (1e-3, 1e-3)},
    "learning-rate falling from 1e-3 to 0": {"rates": (1e-3, 0)},
    "trained on without colours": {"last": 160_000},
    "lower precision": {"precision": "bfloat16"},
    "all three": {"precision": "bfloat16"},
    "better trained": SGD,
    "small filters": SGD | {"widths": [32, 32, 64, 64, 128, 128, 10], "normalized": 6},
    **dict.fromkeys(["whole images", "whitening", "fast biases", "six views"], WHOLE),
    "wider": WHOLE | {"widths": [24, 64, 64, *[256] * 4, 10], "last": 1_200},
    "79 % in half a minute": WHOLE
    | {"widths": [24, 48, 48, *[96] * 4, 10], "batch": 125, "rates": (0.1, 0), "last": 800},
}
EXPECTED["wider in lower precision"] = EXPECTED["wider"] | {"precision": "bfloat16"}
EXPECTED["half a minute in lower precision"] = EXPECTED["79 % in half a minute"] | {"precision": "bfloat16"}


@pytest.fixture(scope="module")
def trained(stand_in_path, tmp_path_factory):
    """A folder with a training of the notebook as it is."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    run_cells(stand_in_path, folder)["optimize"](1)
    return folder


@SLOW
@pytest.mark.parametrize("change", [change for change in CHANGES if change != "as it is"])
def test_a_change_does_what_it_says_and_resumes(change, trained, new_notebook, tmp_path, monkeypatch):
    """It is noticed, so that it is trained in a folder of its own, and resumes there to the bit."""
    monkeypatch.chdir(tmp_path)  # One begins from "checkpoints/".
    shutil.copytree(trained, "checkpoints")
    whole = new_notebook(tmp_path / "whole", replace=CHANGES[change])
    expected, schedule = AS_IT_IS | EXPECTED.get(change, {}), whole.optimizer.iterations
    kernels = [layer.kernel.shape[-1] for layer in whole.network.layers if hasattr(layer, "kernel")]
    assert kernels == expected["widths"]
    assert sum("normalize" in layer.name for layer in whole.network.layers) == expected["normalized"]
    assert {layer.compute_dtype for layer in whole.network.layers} == {expected["precision"]}
    assert (whole.train_batch_size, whole.img_size_cropped) == (expected["batch"], expected["size"])
    code = "\n".join(cell.source for cell in changed_notebook(CHANGES[change])[0].cells)
    assert int(re.search(r"^last_iteration = ([\d_]+)$", code, re.M)[1]) == expected["last"]
    assert type(whole.optimizer).__name__ == expected["optimizer"]
    begun, rates = int(schedule.numpy()), []
    for iteration in (0, expected["last"]):
        schedule.assign(iteration)
        rates.append(whole.optimizer.learning_rate.numpy())
    schedule.assign(begun)
    np.testing.assert_allclose(rates, expected["rates"], rtol=1e-5, atol=1e-9)

    whole.optimize(2)
    after = state(whole)
    for step in (begun + 1, begun + 2):
        tf.distribute.experimental_set_strategy(None)
        notebook = new_notebook(replace=CHANGES[change])
        notebook.optimize(step - int(notebook.global_step.numpy()))
        assert (tmp_path / "checkpoints" / "changed-1" / f"cifar10_cnn-{step}.index").is_file()
    assert state(notebook) == after


@SLOW
@pytest.mark.parametrize("change", ["crop and flip only", "better trained", "no distortions"])
def test_the_colours_stay_as_they_are(new_notebook, change):
    notebook = new_notebook(replace=CHANGES[change])
    images = notebook.images_test[:9]
    crops = np.rint(255 * notebook.pre_process(images, training=True, seed=np.array([1, 2])))
    assert np.array_equal(crops, images[:, 4:28, 4:28]) == (change == "no distortions")
    for image, crop in zip(images, crops, strict=True):
        places = [np.s_[i : i + 24, j : j + 24] for i in range(9) for j in range(9)]
        assert any(np.array_equal(x[place], crop) for x in (image, image[:, ::-1]) for place in places)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_batched_distortions_equal_numpy_with_the_same_draws(new_notebook, is_compiled):
    """Compiled by XLA, which draws other numbers, and as they are."""
    notebook = new_notebook(replace=CHANGES["batched distortions"])
    images, seed = notebook.images_test[:32], np.array([1, 2])

    @tf.function(jit_compile=is_compiled)
    def draw():
        crop, *seeds = tf.unstack(tf.random.split(seed, num=6))
        lowest, highest = (0.0, -0.05, 0.3, -0.2, 0.0), (1.0, 0.05, 1.0, 0.2, 2.0)
        corners = tf.random.stateless_uniform([32, 2], crop, maxval=9, dtype=tf.int32)
        return corners, *map(tf.random.stateless_uniform, 5 * [[32]], seeds, lowest, highest)

    expected = [
        reference.distort_image(np.float32(image / 255), *corner, flip < 0.5, *colors)
        for image, corner, flip, *colors in zip(images, *(x.numpy() for x in draw()), strict=True)
    ]
    plain = notebook.pre_process.python_function
    distorted = (notebook.pre_process if is_compiled else plain)(images, training=True, seed=seed)
    np.testing.assert_allclose(distorted, expected, atol=2e-5)
    centre = notebook.pre_process(images, training=False)
    np.testing.assert_allclose(centre, np.float32(images[:, 4:28, 4:28] / 255), rtol=2**-23)


@SLOW
def test_the_loop_in_tensorflow_trains_the_same_iterations(new_notebook, tmp_path):
    """As many as it is told, with the batches of their numbers."""
    change = CHANGES["loop in TensorFlow"] | OFTEN
    loop = new_notebook(tmp_path / "loop", replace=change)
    loop.optimize(13)
    assert loop.global_step == loop.optimizer.iterations == 13
    single = new_notebook(tmp_path / "single", replace=change)
    losses = [float(single.train_step(*single.random_batch(step))) for step in range(1, 14)]
    assert [row[0] for row in loop.learning_curve] == [10]
    np.testing.assert_allclose(loop.learning_curve[0][1], losses[9], rtol=1e-4)
    images, labels = (x.numpy() for x in loop.random_batch(3))
    number_of = {image.tobytes(): i for i, image in enumerate(loop.images_train)}
    numbers = [number_of[image.tobytes()] for image in images]
    assert len(set(numbers)) == 64
    np.testing.assert_array_equal(labels, loop.labels_train[numbers])


@pytest.mark.parametrize("precision", mostly_slow(["bfloat16", "float16"], "bfloat16"))
def test_lower_precision_keeps_the_loss_and_the_averages_precise(new_notebook, precision):
    change = CHANGES["lower precision"]
    if precision == "float16":
        [answer] = [cell.source for cell in CELLS if "**lower precision**" in cell.source]
        optimizer, scale, gradient = re.findall(r"`(\w+ = [^`]*)`", answer)[-3:]
        loss = "loss = calculate_loss(logits, y_true_batch)"
        change = {old: new.replace("mixed_bfloat16", "mixed_float16") for old, new in change.items()}
        change["epsilon=1e-8)"] = f"epsilon=1e-8)\n{optimizer}"
        change |= {loss: f"{loss}\n{scale}", gradient.replace("scaled_", ""): gradient}
    notebook = new_notebook(replace=change)
    assert {layer.compute_dtype for layer in notebook.network.layers} == {precision}
    assert {v.dtype for v in notebook.network.variables} == {"float32"}
    x_batch, y_true_batch = (x[:4] for x in notebook.random_batch(1))  # On a processor float16 is very slow.
    images = reference.distort(np.float32(x_batch / 255), np.array([notebook.random_seed, 1]))
    logits, mean, _ = reference.forward(notebook.network, images, training=True)
    loss = notebook.train_step(x_batch, y_true_batch)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, reference.cross_entropy(logits, y_true_batch.argmax(axis=1)), rtol=0.02)
    average = notebook.network.get_layer("layer_conv1_batch_normalize").moving_mean.numpy()
    np.testing.assert_allclose(average, 0.1 * mean, atol=0.01 * np.abs(mean).max())
    assert (average != average.astype(np.float16)).mean() > 0.5
    assert np.isfinite(notebook.train_step(x_batch, y_true_batch))
    assert notebook.global_step == notebook.optimizer.iterations == 2


@SLOW
def test_the_better_networks_do_what_their_answers_say(new_notebook):
    notebook = new_notebook(replace=CHANGES["six views"])

    # Each epoch has every image once. Half of them are flipped, and the others in the next epoch.
    key = [x.tobytes() for x in notebook.images_train]
    number_of = {x[:, ::-1].tobytes(): (i, True) for i, x in enumerate(notebook.images_train)}
    number_of |= {x: (i, False) for i, x in enumerate(key)}
    flipped = np.zeros((2, len(key)), bool)
    for epoch in (0, 1):
        batches = [notebook.random_batch(4 * epoch + i) for i in (1, 2, 3, 4)]
        images, labels = (np.concatenate(x) for x in zip(*batches, strict=True))
        numbers, is_flipped = np.array([number_of[x.tobytes()] for x in images]).T
        assert sorted(numbers) == list(range(len(key)))
        np.testing.assert_array_equal(labels, notebook.labels_train[numbers])
        flipped[epoch, numbers] = is_flipped
    assert (flipped[0] != flipped[1]).all() and 900 < flipped[0].sum() < 1100

    # The first filters' outputs are uncorrelated and nearly equally strong, and the same with the other sign.
    kernel = notebook.network.get_layer("layer_conv1").kernel
    images = 4.0 * notebook.images_train / 255 - 2.0
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    filters = kernel.numpy().astype(np.float64).reshape(12, 24)
    np.testing.assert_array_equal(filters[:, 12:], -filters[:, :12])
    moments = filters[:, :12].T @ (patches.T @ patches / len(patches)) @ filters[:, :12]
    np.testing.assert_allclose(moments, np.eye(12), atol=0.1)
    assert not kernel.trainable

    # Six views of each image.
    images = notebook.images_test[:4]
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    views = [images, images, padded[:, :32, :32], padded[:, 2:, 2:]]
    views += [view[:, :, ::-1] for view in views]
    expected = tf.nn.softmax(np.mean([notebook.network(x / np.float32(255)) for x in views], axis=0))
    np.testing.assert_allclose(notebook.y_pred(images), expected, atol=1e-5)


########################################################################
# Blocks of code, as they are read.

CELLS = nbformat.read(NOTEBOOK, as_version=4).cells


def blocks(question):
    """The blocks of code in the answer to a question."""
    [answer] = [cell.source for cell in CELLS if f"<summary>{question}" in cell.source]
    return re.findall(r"```python\n(.*?)\n```", answer, re.S)


COMPARE, PICTURE, SEE_MORE = map(blocks, ["Compare what", "Classify a picture", "See more"])


def test_blocks_are_well_formatted(tmp_path):
    """The notebook with each change, and with the cells that are added."""
    notebooks = {change: changed_notebook(replace)[0] for change, replace in CHANGES.items()}
    notebooks["added"] = nbformat.read(NOTEBOOK, as_version=4)
    for block in (*COMPARE, *PICTURE, *SEE_MORE):
        notebooks["added"].cells.append(nbformat.v4.new_code_cell(block))
    for name, notebook in notebooks.items():
        (tmp_path / name).mkdir()
        nbformat.write(notebook, tmp_path / name / NOTEBOOK.name)
    for command in (["check"], ["format", "--diff"]):
        command = [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", tmp_path]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def own_picture(notebook, path):
    namespace = dict(notebook.optimize.__globals__)
    exec(next(cell.source for cell in CELLS if cell.source.startswith("def plot_image(")), namespace)
    exec(PICTURE[0].replace("my-picture.jpg", str(path)), namespace)
    return namespace["img"]


@pytest.mark.parametrize("name", ["colours.png", "grey.png", "16-bit grey.png", "turned.jpg", "alpha.png"])
def test_a_picture_of_ones_own(notebook, tmp_path, capsys, name):
    """A wide picture: what is left of it is the square in its middle, as bytes, upright."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, 16:80] = 240, 60, 120  # The upper half of the square.
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[:16] = 240, 60, 120
    picture, options = Image.fromarray(pixels), {}
    if "grey" in name:
        expected[:16] = pixels[:32, 16:80] = 200
        picture = Image.fromarray(pixels[..., 0])
    if name == "16-bit grey.png":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if name == "alpha.png":
        picture.putalpha(255)
    if name == "turned.jpg":  # The camera was held upright: 6 means "turn it clockwise".
        exif = Image.Exif()
        exif[0x0112] = 6
        picture, options = (
            picture.transpose(Image.Transpose.ROTATE_90),
            {"exif": exif, "quality": 100, "subsampling": 0},
        )
    picture.save(tmp_path / name, **options)
    img = own_picture(notebook, tmp_path / name)
    assert img.dtype == np.uint8
    np.testing.assert_allclose(img.astype(int), expected, atol=8 if name == "turned.jpg" else 0)
    label = notebook.y_pred(img[np.newaxis]).numpy()[0]
    best = np.argsort(-label)[:3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [f"{label[i]:.3f}  {notebook.class_names[i]}" for i in best]


def test_a_heic_picture_is_an_error_that_names_it(notebook, tmp_path):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(1000))
    with pytest.raises(PIL.UnidentifiedImageError, match="cannot identify image file .*photo.heic"):
        own_picture(notebook, path)


def test_see_more(notebook, monkeypatch, capsys):
    namespace, shown = dict(notebook.optimize.__globals__), {}
    exec(SEE_MORE[0].split("\n\n\nplot_")[0], namespace)
    namespace["plot_images"] = lambda **images: shown.update(images)
    namespace["plot_most_exciting_images"](notebook.output_conv2, channel=5)
    images = notebook.pre_process(notebook.images_test, training=False)
    highest = notebook.output_conv2(images, training=False).numpy()[..., 5].max(axis=(1, 2))
    best = sorted(range(len(highest)), key=lambda i: -highest[i])[:9]
    np.testing.assert_array_equal(shown["images"], notebook.images_test[best])
    np.testing.assert_array_equal(shown["cls_true"], notebook.cls_test[best])

    monkeypatch.setattr(notebook.plt, "show", lambda: shown.update(figure=notebook.plt.gcf()))
    exec(SEE_MORE[1], namespace | {"img": notebook.images_test[16]})
    probability = shown["figure"].axes[1].images[0].get_array()
    assert probability.shape == (27, 27)
    image = notebook.images_test[16].copy()
    cls_pred = notebook.y_pred_cls(image[None])[0]
    image[20:26, 3:9] = 128
    np.testing.assert_allclose(probability[20, 3], notebook.y_pred(image[None])[0][cls_pred], rtol=1e-4)

    exec(SEE_MORE[2], namespace)
    assert capsys.readouterr().out.splitlines()[-2:] == ["layer_conv1: 1.00", "layer_conv2: 1.00"]


def test_compare(new_notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = new_notebook(replace=OFTEN | {"if i_global in (1000, 5000)": "if i_global in (5, 10)"})
    notebook.optimize(10)
    shutil.copytree("checkpoints", "checkpoints/changed-1")
    capsys.readouterr()
    exec(COMPARE[0], dict(notebook.optimize.__globals__))
    lines = [
        f"{step:>8,} {test_acc:6.1%} {seconds / 60:6.1f} minutes"
        for step, _, _, seconds, test_acc in notebook.learning_curve
    ]
    assert len(lines) == 2
    assert capsys.readouterr().out.splitlines() == ["checkpoints/", *lines, "checkpoints/changed-1/", *lines]


def test_the_notebook_that_is_written_for_a_change(tmp_path, monkeypatch, capsys):
    """It has the changed code, up to the exercises, and isn't written over another file."""
    monkeypatch.setattr(tools.exercises, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["exercises", "small filters"])
    tools.exercises.main()
    path = tmp_path / "exercise-small-filters.ipynb"
    assert capsys.readouterr().out == f"{path}\n"
    folder = {'save_dir = "checkpoints/"': 'save_dir = "checkpoints/small-filters/"'}
    expected, _ = changed_notebook(CHANGES["small filters"] | folder)
    notebooks = nbformat.read(path, as_version=4), expected
    code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in notebooks]
    for cell, other in zip(*code, strict=True):
        assert ast.dump(ast.parse(cell.source)) == ast.dump(ast.parse(other.source))
        assert not cell.outputs and cell.execution_count is None
    for change, message in [("small filters", "is there already"), ("x", "unknown: x. There are: as it is")]:
        monkeypatch.setattr(sys, "argv", ["exercises", change])
        with pytest.raises(SystemExit):
            tools.exercises.main()
        assert message in capsys.readouterr().err
