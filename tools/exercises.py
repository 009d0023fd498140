"""The changes of the notebook that answer its exercises, read from the answers in the notebook itself.

    python -m tools.exercises                     # list them
    python -m tools.exercises "half as wide"      # write exercise-half-as-wide.ipynb, to open in Jupyter

In an answer a line "**name**", or "**name**, from *other name*", or "... and *other name*", begins a change,
with all that those others change. A block of code takes the place of a cell when "instead of the cell:"
stands above it, and of lines when "instead of:" stands above these and "write:" above it.
`benchmarks.accuracy` measures the same changes.
"""

import argparse
import os
import re
from pathlib import Path

import nbformat

from tools.notebook import NOTEBOOK, ROOT, changed_notebook, defined_names, find_assignment

_NAME = re.compile(r"\*\*([^*]+)\*\*(?:, from (\*.+\*))?")
EXPLANATION = """\
# {title}

This is the tutorial's notebook with the changes of its exercise *{title}*, which its answers explain. Nothing
else differs. Changed cells say so, and where only some lines are changed, these end with `# Changed.`:

{links}

*Run All* trains it up to iteration {last}, in the folder `{folder}`, unless that was done before. What to
expect is in the tables of the answers, in `cifar10_cnn.ipynb`; the text below, with its figures, is about the
tutorial's own network."""


def read_changes():
    """Return for each name of a change what `changed_notebook` replaces, by reading the answers.

    :raises ValueError: A block of code stands where it isn't told what it takes the place of.
    """
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    names = {name for cell in cells if cell.cell_type == "code" for name in defined_names(cell.source)}
    changes = {"as it is": {}}
    for cell in cells:
        name = old = None
        if not cell.source.startswith("<details>"):
            continue
        lines = cell.source.splitlines()
        for number, line in enumerate(lines):
            if match := _NAME.fullmatch(line):
                name, others = match[1], re.findall(r"\*(.+?)\*", match[2] or "")
                changes[name] = {old: new for other in others for old, new in changes[other].items()}
            if name is None or line != "```python":
                continue
            block = "\n".join(lines[number + 1 : lines.index("```", number)])
            above = next(text for text in reversed(lines[:number]) if text)
            if above.endswith("nstead of the cell:"):
                # The cell that defines the first of the block's names that the notebook has.
                changes[name][next(filter(names.__contains__, defined_names(block)))] = block
            elif above.endswith("nstead of:"):
                old = block
            elif above.endswith("write:"):
                changes[name][old] = block
            else:
                raise ValueError(f"{name}: it isn't told what this takes the place of:\n{block}")
    return changes


def write(change, folder=ROOT):
    """Write the changed notebook into a folder and return its path.

    :raises FileExistsError: There is a file of that name.
    """
    name = change.replace(" ", "-").replace("%", "percent")
    save_dir = f"checkpoints/{name}/"
    replace = read_changes()[change] | {'save_dir = "checkpoints/"': f'save_dir = "{save_dir}"'}
    before = {cell.id: cell.source.splitlines() for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    notebook, changed = changed_notebook(replace)
    cells, links, heading = [], [], ""
    for cell in notebook.cells:
        if cell.source.startswith("## Exercises"):  # They are about the tutorial's own network.
            break
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = [heading, *headings][-1]
        if cell.id in changed:
            anchor = f"changed-{len(links) + 1}"
            links.append(f"* [{heading}](#{anchor})")
            mark = nbformat.v4.new_markdown_cell(f'<a id="{anchor}"></a>\n**Changed:**', id=anchor)
            cells.append(mark)
            cell.source = _with_marks(cell.source.splitlines(), before[cell.id])
        cells.append(cell)
    _, last = find_assignment(notebook, "last_iteration")
    top = EXPLANATION.format(title=change, links="\n".join(links), last=last[1], folder=save_dir)
    cells.insert(0, nbformat.v4.new_markdown_cell(top, id="changes"))
    if folder != ROOT:
        place = os.path.relpath(ROOT, folder)
        for cell in cells:
            cell.source = cell.source.replace("](images/", f"]({place}/images/")
        code = f'# The project\'s folder.\nimport os\n\nos.chdir("{place}")'
        cells.insert(1, nbformat.v4.new_code_cell(code, id="folder"))
    notebook.cells = cells
    path = folder / f"exercise-{name}.ipynb"
    with path.open("x", encoding="utf-8") as file:
        nbformat.write(notebook, file)
    return path


def _with_marks(lines, before):
    """Return a changed cell with a comment behind each changed line, if these are the smaller part."""
    changed = [line.strip() != "" and line not in before for line in lines]
    if 2 * sum(changed) < len(lines):
        marks = ["  # Changed." * mark for mark in changed]
        lines = [line + mark for line, mark in zip(lines, marks, strict=True)]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="change", help="see the list")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where to write the notebook")
    arguments, known = parser.parse_args(), read_changes()
    changes = arguments.changes
    if unknown := set(changes) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}")
    if not changes:
        print("\n".join(known))
    for change in changes:
        try:
            print(write(change, arguments.folder.resolve()))
        except FileExistsError as error:
            parser.error(f"{error.filename} is there already. Move it away first.")


if __name__ == "__main__":
    main()
