"""Saves the README's pictures from the outputs of the committed notebook.

python -m tools.save_results
"""

import base64

import nbformat

from tools.notebook import NOTEBOOK, ROOT

FOLDER = ROOT / "images"

# The last picture of the cell that begins with this call.
PICTURES = {
    "plot_learning_curve()": "learning_curve.png",
    "print_test_accuracy(": "confusion_matrix.png",
}


def main():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    for start, name in PICTURES.items():
        cell = next(cell for cell in cells if cell.source.startswith(start))
        pictures = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        (FOLDER / name).write_bytes(base64.b64decode(pictures[-1]))
        print(FOLDER / name)


if __name__ == "__main__":
    main()
