"""Saves the confusion matrix, as the committed notebook shows it, as the README's picture.

python -m images.save_results
"""

import base64
from pathlib import Path

import nbformat

from tests.notebook import NOTEBOOK

PICTURE = Path(__file__).resolve().parent / "confusion_matrix.png"


def main():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.source.startswith("print_test_accuracy("):
            pictures = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
            PICTURE.write_bytes(base64.b64decode(pictures[-1]))
            print(PICTURE)


if __name__ == "__main__":
    main()
