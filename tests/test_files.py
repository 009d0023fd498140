"""The files of a checkpoint: damaged, gone, renamed, on a full disk or a weak file system, in odd folders."""

import errno
import fcntl
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import cifar10
import saver as saver_module
from saver import CheckpointError
from tests.conftest import largest_file, mostly_slow
from tests.toy import DATA, INDEX, Kernel, copy, files, numbers, values_of, write

LOCK = {"training.lock", "training.owner"}
LARGE = {"Dense(3,": "Dense(100_000,"}  # Each checkpoint has 4.8 MB.


def names(*steps):
    """The names of the files in the folder of a run with these checkpoints."""
    return {f"cifar10_cnn-{step}{ending}" for step in steps for ending in (INDEX, DATA)} | LOCK


def contents(folder):
    """The contents of all files in a folder by name, but for those of the lock."""
    paths = (path for path in folder.iterdir() if path.is_file() and path.name not in LOCK)
    return {path.name: path.read_bytes() for path in paths}


def fail(monkeypatch, module, name, number, when=lambda *arguments: True, times=1_000_000):
    """Let a function of the system fail so many times, with the number of an error."""
    function, failures = getattr(module, name), iter(range(times))

    def failing(*arguments, **others):
        if when(*arguments) and next(failures, None) is not None:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **others)

    monkeypatch.setattr(module, name, failing)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints after iterations 1 and 2, and the states after 0, 1, 2 and 3."""
    kernel = Kernel(tmp_path_factory.mktemp("two") / "checkpoints")
    states = [kernel.state(), *(kernel.optimize(1) and kernel.state() for _ in range(3))]
    folder = tmp_path_factory.mktemp("copies")
    for step in (1, 2):
        copy(kernel.save_dir / f"cifar10_cnn-{step}", folder / f"cifar10_cnn-{step}")
    return SimpleNamespace(folder=folder, states=states)


@pytest.fixture(scope="module")
def looking(tmp_path_factory):
    """A kernel that restores from one folder after the other."""
    return Kernel(tmp_path_factory.mktemp("none"))


@pytest.fixture
def folder(two, tmp_path):
    """A copy of the two checkpoints."""
    return shutil.copytree(two.folder, tmp_path / "checkpoints")


@pytest.fixture
def once():
    """Let what is said once in a process be said again."""
    for x in [*vars(saver_module).values(), *vars(cifar10).values()]:
        if hasattr(x, "cache_clear"):
            x.cache_clear()


########################################################################
# Damaged. Every byte is tried.


def check_restored(folder, two, looking, capsys, harmless=False):
    """Check that the first checkpoint takes the place of the damaged second one, and return its number."""
    before = contents(folder)
    capsys.readouterr()
    looking.saver.restore(folder)
    output, step = capsys.readouterr().out, int(looking.global_step)
    assert contents(folder) == before  # It was a mere look.
    if harmless and step == 2:  # E.g. a byte of padding.
        assert "Damaged" not in output
    else:
        assert step == 1
        assert f"Damaged, so it is not used: {folder / 'cifar10_cnn-2'} (" in output
        assert f"Restored checkpoint from: {folder / 'cifar10_cnn-1'}\n" in output
    assert looking.state() == two.states[step]
    return step


def check_damage(folder, two, looking, capsys, harmless=False):
    """Check that too, and that the damaged one is kept, under another name once training begins."""
    step, before = check_restored(folder, two, looking, capsys, harmless), contents(folder)
    with looking.saver.training():
        pass
    aside = {name for name in before if step == 1 and "-2." in name and "damaged" not in name}
    said = f"Damaged, so it is set aside: {folder / 'cifar10_cnn-2'} (" in capsys.readouterr().out
    assert said == (step == 1) and looking.state() == two.states[step]
    after = contents(folder)  # Nothing is lost, nothing altered.
    assert sorted(after.values()) == sorted(before.values()) and before.keys() - after.keys() == aside


def try_each_byte(damage, ending, two, looking, folder, capsys, request, harmless=False):
    """Restore after a damage at each byte of a file, and train after it at eight of them, or only these."""
    file = folder / f"cifar10_cnn-2{ending}"
    content = file.read_bytes()
    some = range(0, len(content), len(content) // 7)
    for n in range(len(content)) if request.config.getoption("--full") else some:
        file.write_bytes(damage(content, n))
        if n in some:
            copied = shutil.copytree(folder, folder.with_name(str(n)))
            check_damage(copied, two, looking, capsys, harmless)
        else:
            check_restored(folder, two, looking, capsys, harmless)


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_file_cut_short(ending, two, looking, folder, capsys, request):
    try_each_byte(lambda content, n: content[:n], ending, two, looking, folder, capsys, request)


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_flipped_bit(ending, two, looking, folder, capsys, request):
    def flip(content, n):  # Each bit of a byte in turn.
        return content[:n] + bytes([content[n] ^ 1 << n % 8]) + content[n + 1 :]

    try_each_byte(flip, ending, two, looking, folder, capsys, request, harmless=True)


DAMAGES = {
    "index zeroed": lambda index, data: index.write_bytes(bytes(index.stat().st_size)),
    "data zeroed": lambda index, data: data.write_bytes(bytes(data.stat().st_size)),
    "index empty": lambda index, data: index.write_bytes(b""),
    "data empty": lambda index, data: data.write_bytes(b""),
    "index garbage": lambda index, data: index.write_bytes(random.Random(1).randbytes(500)),
    "data garbage": lambda index, data: data.write_bytes(random.Random(2).randbytes(500)),
    "index missing": lambda index, data: index.unlink(),
    "data missing": lambda index, data: data.unlink(),
    "data of another": lambda index, data: shutil.copy(str(data).replace("-2.", "-1."), data),
    "index of another": lambda index, data: shutil.copy(str(index).replace("-2.", "-1."), index),
}


@pytest.mark.parametrize("damage", mostly_slow(DAMAGES, "index empty", "data missing", "data of another"))
def test_file_zeroed_missing_or_garbage(damage, two, looking, folder, capsys):
    DAMAGES[damage](folder / f"cifar10_cnn-2{INDEX}", folder / f"cifar10_cnn-2{DATA}")
    check_damage(folder, two, looking, capsys)
    assert looking.optimize(2) == [True, True]  # All goes on, as if nothing had been.
    assert looking.state() == two.states[3] and Kernel(folder).global_step == 3


def test_damage_in_the_middle_of_a_large_checkpoint(tmp_path, capsys):
    whole, kernel = (Kernel(tmp_path / name, LARGE) for name in ("whole", "damaged"))
    whole.optimize(3)
    kernel.optimize(2)
    file = tmp_path / "damaged" / f"cifar10_cnn-2{DATA}"
    content = bytearray(file.read_bytes())
    content[2_000_000] ^= 16
    file.write_bytes(content)
    resumed = Kernel(tmp_path / "damaged", LARGE)
    assert "Damaged, so it is not used" in capsys.readouterr().out and resumed.global_step == 1
    assert resumed.optimize(2) == [True, True] and resumed.state() == whole.state()


def test_none_is_whole(folder, looking):
    for path in folder.iterdir():
        path.write_bytes(b"garbage")
    before = contents(folder)
    text = "none is whole:\n  .*cifar10_cnn-2 .*\n  .*cifar10_cnn-1 .*\nNothing was changed. Put a whole copy"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=text):
            looking.saver.restore(folder)
        assert contents(folder) == before
    for path in folder.iterdir():  # As after they were set aside.
        path.rename(f"{path}.damaged-1")
    with pytest.raises(CheckpointError, match="none is whole:\n  .*cifar10_cnn-1.*damaged-1"):
        Kernel(folder)


def test_names_of_damaged_files_are_never_used_twice(two, looking, folder, capsys):
    for _ in range(3):
        shutil.copytree(two.folder, folder, dirs_exist_ok=True)
        (folder / f"cifar10_cnn-2{INDEX}").write_bytes(b"")
        check_damage(folder, two, looking, capsys)
    assert sum(".damaged-" in path.name for path in folder.iterdir()) == 6


########################################################################
# What else is in the folder.


@pytest.mark.parametrize("content", [b"", b"garbage", b'model_checkpoint_path: "cifar10_cnn-1"'])
def test_state_file_makes_no_difference(content, folder):
    (folder / "checkpoint").write_bytes(content)
    assert Kernel(folder).global_step == 2


@pytest.mark.parametrize("name", ["[1] ünï", "a*b?", "with space", "{x}", "%s", "cifar10_cnn-1"])
def test_folder_with_a_difficult_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step, path in ((0, tmp_path / name), (4, Path(name))):  # Absolute and relative.
        kernel = Kernel(path)
        assert kernel.global_step == step and kernel.optimize(4) == 4 * [True]
    assert set(os.listdir(name)) == names(4, 5, 6, 7, 8)


def test_empty_or_missing_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        assert Kernel(tmp_path / name).global_step == 0
        assert "the variables are new ones" in capsys.readouterr().out
    assert not (tmp_path / "missing").exists() and not os.listdir(tmp_path / "empty")


def test_a_run_keeps_its_last_five_and_each_50000th(tmp_path):
    kernel = Kernel(tmp_path)
    steps = [49_000, 50_000, 51_000, *range(99_000, 107_000, 1000)]
    for step in steps:
        kernel.global_step.assign(step)
        kernel.optimizer.iterations.assign(step)
        assert kernel.saver.save()
    assert numbers(tmp_path) == [50_000, 100_000, *steps[-5:]]


def test_files_of_the_user_are_left_alone(folder):
    mine = ["cifar10_cnn-1.index.bak", "cifar10_cnn-4.index.bak", "cifar10_cnn-1-copy.index", "notes.txt"]
    for name in mine:
        (folder / name).write_text("mine")
    assert Kernel(folder).optimize(7) == 7 * [True]
    assert set(os.listdir(folder)) == names(5, 6, 7, 8, 9) | {*mine}
    assert all((folder / name).read_text() == "mine" for name in mine)


SETTINGS = "settings/.ATTRIBUTES/VARIABLE_VALUE"  # In checkpoints of the version before this one.


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights", 1.5), (SETTINGS, "no JSON"), ("record", "no JSON"), ("record", "[1]"), ("record", 1.5)],
)
def test_checkpoint_of_another_program(name, value, tmp_path, capsys):
    """It is kept, whatever its number; even with a value of a name that is used here as well."""
    write(tmp_path / "cifar10_cnn-3", {name: value})
    before = contents(tmp_path)
    kernel = Kernel(tmp_path)
    output = capsys.readouterr().out
    assert re.search(f"{tmp_path}/ holds another training .changed: .*(saved by|version saved)", output)
    kernel.optimize(7)
    assert contents(tmp_path) == before and Kernel(tmp_path).global_step == 7


def test_only_what_is_needed_is_read(tmp_path):
    """Restoring reads the newest checkpoint, and saving the one that it may delete."""
    kernel = Kernel(tmp_path)
    for step in range(50_000, 300_000, 50_000):
        kernel.global_step.assign(step)
        kernel.optimizer.iterations.assign(step)
        kernel.saver.save()
    kernel.optimize(5)
    opened, on = set(), True
    # Such a hook stays, so it is switched off.
    sys.addaudithook(lambda event, arguments: on and event == "open" and opened.add(str(arguments[0])))

    def read():
        steps = {int(step) for step in re.findall(rf"{tmp_path}/\S*cifar10_cnn-(\d+)\.", " ".join(opened))}
        opened.clear()
        return {step - 250_000 for step in steps}

    Kernel(tmp_path)
    assert read() == {5}
    kernel.train_step(kernel.random_batch(6))
    kernel.saver.save()
    assert read() <= {6, 1}
    with kernel.saver.training():
        assert read() <= {6}
    on = False


########################################################################
# What others make of a checkpoint.


def test_others_read_a_checkpoint_without_this_project(folder, tmp_path):
    tf.train.Checkpoint().write(str(tmp_path / "x"))
    endings = {path.name[1:] for path in tmp_path.glob("x.*")}
    assert set(os.listdir(folder)) == {f"cifar10_cnn-{n}{ending}" for n in (1, 2) for ending in endings}
    values = values_of(folder / "cifar10_cnn-2")
    assert values["learning_curve"].shape == (2, 2) and list(values["learning_curve"][:, 0]) == [1, 2]
    assert (saver_module.read_learning_curve(folder) == values["learning_curve"]).all()
    with pytest.raises(CheckpointError, match=f"There is no checkpoint in {tmp_path}/none"):
        saver_module.read_learning_curve(tmp_path / "none")
    assert values["global_step"] == 2 and values["network/layer_fc1/weights"].dtype == np.float32


def test_only_the_chief_writes(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path / "checkpoints")
    other = SimpleNamespace(extended=SimpleNamespace(should_checkpoint=False))
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: other)
    assert kernel.optimize(2) == [True, True]
    assert not (tmp_path / "checkpoints").exists()


########################################################################
# The power goes off.


def test_all_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """A file before it gets its name, and the names before an older checkpoint goes."""
    kernel = Kernel(tmp_path)
    kernel.optimize(6)
    events = []

    def note(name, of):
        function = getattr(os, name)

        def noting(*arguments, **others):
            events.append((name, Path(of(*arguments)).name))
            return function(*arguments, **others)

        monkeypatch.setattr(os, name, noting)

    note("fsync", lambda file: os.readlink(f"/proc/self/fd/{file}"))
    note("replace", lambda source, target: target)
    note("unlink", lambda path: path)
    kernel.optimize(1)
    new = [f"cifar10_cnn-7{ending}" for ending in (DATA, INDEX)]
    events = [event for event in events if "training" not in event[1]]
    assert {*events[:2]} == {("fsync", name) for name in new}
    assert events[2:4] == [("replace", name) for name in new]
    assert {*events[4:6]} == {("fsync", tmp_path.name), ("fsync", tmp_path.parent.name)}
    assert events[6] == ("replace", f"cifar10_cnn-2{INDEX}")
    assert events[7:] == [("unlink", f"cifar10_cnn-2{DATA}"), ("unlink", f"cifar10_cnn-2{INDEX}")]


########################################################################
# A full disk, and folders and files without the rights.


def test_file_size_limit_while_saving(tmp_path, capsys):
    """The disk is full during some saves. Training goes on, and so does saving later."""
    whole, kernel = (Kernel(tmp_path / name, LARGE) for name in ("whole", "limited"))
    whole.optimize(8)
    kernel.optimize(2)
    before = contents(kernel.save_dir)
    capsys.readouterr()
    with largest_file(1_000_000):
        assert kernel.optimize(4) == 4 * [False]
    output = capsys.readouterr().out
    assert output.count(f"COULD NOT SAVE {kernel.save_dir}/cifar10_cnn-") == 4
    assert output.count("File too large") == output.count("Training goes on.") == 4
    assert contents(kernel.save_dir) == before
    assert kernel.global_step == 6 and kernel.saver.save()
    resumed = Kernel(kernel.save_dir, LARGE)
    assert resumed.global_step == 6
    resumed.optimize(2)
    assert resumed.state() == whole.state() and set(os.listdir(kernel.save_dir)) == names(1, 2, 6, 7, 8)


def test_full_disk(small_disk, capsys):
    folder = small_disk("16m") / "checkpoints"  # Holds three of them.
    kernel = Kernel(folder, LARGE)
    assert kernel.optimize(5) == [True, True, True, False, False]
    output = capsys.readouterr().out
    assert output.count("COULD NOT SAVE") == output.count("Free some space on that disk. Training") == 2
    assert Kernel(folder, LARGE).global_step == 3
    (folder / f"cifar10_cnn-1{DATA}").unlink()  # The user frees some space.
    assert kernel.saver.save() and Kernel(folder, LARGE).global_step == 5


ADVICE = {
    "full": (errno.ENOSPC, "fsync", "No space left.*\nFree some space on that disk. Training goes on.\n"),
    "quota": (errno.EDQUOT, "fsync", "quota exceeded.*\nFree some space on that disk. Training goes on.\n"),
    "no rights": (errno.EACCES, "replace", "Permission denied.*\nMake the folder writable. Training goes"),
    "read-only": (errno.EROFS, "replace", "Read-only file.*\nMake the folder writable. Training goes on.\n"),
    "bad disk": (errno.EIO, "fsync", "Input/output error.*\nTraining goes on.\n"),
}


@pytest.mark.parametrize("what", mostly_slow(ADVICE, "full", "no rights"))
def test_a_save_that_fails_gives_advice_that_fits(what, tmp_path, monkeypatch, capsys):
    number, function, text = ADVICE[what]
    kernel = Kernel(tmp_path)
    kernel.optimize(1)
    before = contents(tmp_path)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        fail(patch, os, function, number)
        assert kernel.optimize(2) == [False, False]
    output = capsys.readouterr().out
    assert len(re.findall(f"COULD NOT SAVE .*{text}", output)) == 2, output
    assert before.items() <= contents(tmp_path).items() and Kernel(tmp_path).global_step == 1
    assert kernel.optimize(1) == [True] and Kernel(tmp_path).global_step == 4


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    kernel = Kernel(tmp_path / "file" / "checkpoints")
    text = "can't be saved in .*, so training was not begun. (?!Or).*[Cc]hoose another save_dir"
    with pytest.raises(OSError, match=text):
        kernel.optimize(1)
    assert not kernel.saver.save() and (tmp_path / "file").read_text() == "mine"


def test_read_only_folder_can_be_looked_at(two, small_disk, capsys):
    disk = small_disk("1m")
    shutil.copytree(two.folder, disk / "checkpoints")
    (disk / "checkpoints" / f"cifar10_cnn-2{DATA}").write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    kernel = Kernel(disk / "checkpoints")
    assert kernel.state() == two.states[1]
    assert "Damaged, so it is not used: " in capsys.readouterr().out
    with pytest.raises(OSError, match="Read-only.*can't be saved in.*Make the folder writable.*choose an"):
        kernel.optimize(1)


@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_a_file_that_cannot_be_read(ending, folder, looking, as_user):
    """It isn't damaged. It is named, and nothing is changed."""
    before, kept = looking.state(), files(folder)
    (folder / f"cifar10_cnn-2{ending}").chmod(0)
    as_user(folder)
    with pytest.raises(CheckpointError, match=f"Permission denied: .*-2{ending}.*Make it readable"):
        looking.saver.restore(folder)
    as_user()
    assert looking.state() == before and files(folder) == kept


def test_files_that_cannot_be_deleted(tmp_path, as_user, once, capsys):
    """As in a folder where each may only delete what is his own. It is said once, and all is saved."""
    if os.geteuid():
        pytest.skip("Files of another user take the rights of root.")
    kernel = Kernel(tmp_path / "checkpoints")
    for number_of_saves, kept in ((5, range(1, 6)), (3, range(1, 9)), (1, range(5, 10))):
        if number_of_saves == 3:
            kernel.save_dir.chmod(0o1777)
            as_user(tmp_path)
        assert kernel.optimize(number_of_saves) == number_of_saves * [True]
        as_user()
        assert numbers(kernel.save_dir) == list(kept)
        for name in LOCK:
            (kernel.save_dir / name).unlink()
    output = capsys.readouterr().out
    assert output.count("can't be deleted, so they are kept") == 1 and "COULD NOT" not in output


def test_folders_that_may_not_be_listed(tmp_path, as_user, once, capsys):
    """The parent, as on shared disks; and one within, as lost+found on a disk of its own."""
    folder = tmp_path / "parent" / "checkpoints"
    (folder / "lost+found").mkdir(parents=True)
    for path, mode in ((folder / "lost+found", 0), (folder, 0o777), (folder.parent, 0o311)):
        path.chmod(mode)
    as_user(tmp_path)
    assert Kernel(folder).optimize(8) == 8 * [True] and Kernel(folder).optimize(1) == [True]
    assert numbers(folder) == [5, 6, 7, 8, 9]
    assert "COULD NOT" not in capsys.readouterr().out


########################################################################
# A weak file system, e.g. SMB, sshfs, FUSE or Lustre.

LACKS = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES]
BUSY = [errno.EACCES, errno.EBUSY, errno.ETXTBSY]


@pytest.mark.parametrize("number", mostly_slow(LACKS, errno.EINVAL), ids=errno.errorcode.get)
@pytest.mark.parametrize("of", ["folders", "files and folders"])
def test_without_fsync_all_goes_on(number, of, tmp_path, once, monkeypatch, capsys):
    fail(monkeypatch, os, "fsync", number, lambda fd: of != "folders" or stat.S_ISDIR(os.fstat(fd).st_mode))
    kernel = Kernel(tmp_path)
    assert kernel.optimize(8) == 8 * [True]
    assert set(os.listdir(tmp_path)) == names(4, 5, 6, 7, 8)
    assert Kernel(tmp_path).optimize(1) == [True]
    output = capsys.readouterr().out
    assert output.count("This file system can't tell when files are on the disk") == 1
    assert "COULD NOT" not in output and "can't be deleted" not in output


@pytest.mark.parametrize("number", mostly_slow([*LACKS, errno.ENOLCK], errno.ENOLCK), ids=errno.errorcode.get)
def test_without_locks_all_goes_on(number, tmp_path, once, monkeypatch, capsys):
    """Even if files of a lock are there, of a machine that has vanished."""
    (tmp_path / "training.lock").touch()
    (tmp_path / "training.owner").write_text("process 1 on another")
    fail(monkeypatch, fcntl, "flock", number)
    for _ in range(2):
        assert Kernel(tmp_path).optimize(3) == 3 * [True]
    assert numbers(tmp_path) == [2, 3, 4, 5, 6]
    assert capsys.readouterr().out.count("The file system has no locks") == 1


def test_a_lock_is_named_with_its_file_and_its_owner(tmp_path):
    kernel, second = Kernel(tmp_path), Kernel(tmp_path)
    text = f"{tmp_path} is in use: process {os.getpid()} on .*If it is gone, delete {tmp_path}/training.lock"
    with kernel.saver.training():
        with pytest.raises(CheckpointError, match=text):
            second.optimize(1)
        (tmp_path / "training.lock").unlink()  # What it says.
        assert second.optimize(1) == [True]


@pytest.mark.parametrize("number", mostly_slow(BUSY, errno.EACCES), ids=errno.errorcode.get)
@pytest.mark.parametrize("ending", [INDEX, DATA])
def test_a_rename_that_is_refused_for_a_moment_is_tried_again(number, ending, tmp_path, monkeypatch, capsys):
    """A sync client or a virus scanner has the file open."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    fail(monkeypatch, os, "replace", number, lambda source, target: target.endswith(f"-2{ending}"), times=3)
    assert Kernel(tmp_path).optimize(3) == 3 * [True]
    assert len(waits) == 3 and "COULD NOT" not in capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == names(1, 2, 3)


@pytest.mark.parametrize(
    "then", mostly_slow(["is saved again", "goes on", "begins in a new kernel"], "begins in a new kernel")
)
@pytest.mark.parametrize("ending", [INDEX, DATA])
@pytest.mark.parametrize("before", [0, 2])
def test_a_rename_that_is_refused_blocks_nothing(before, ending, then, two, tmp_path, monkeypatch, capsys):
    """What is left of that save is taken for one's own, and replaced; also when it was the first save."""
    folder, waits = tmp_path / "checkpoints", []
    for step in range(1, before + 1):
        copy(two.folder / f"cifar10_cnn-{step}", folder / f"cifar10_cnn-{step}")
    kernel, kept = Kernel(folder), files(folder)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", waits.append)
        fail(patch, os, "replace", errno.EACCES, lambda source, target: target.endswith(ending))
        assert kernel.optimize(1) == [False]
    assert 2 < sum(waits) < 30 and "COULD NOT SAVE" in capsys.readouterr().out
    assert kept.items() <= files(folder).items()
    if then == "is saved again":
        assert kernel.saver.save()
    elif then == "goes on":
        assert kernel.optimize(1) == [True]
    else:
        kernel = Kernel(folder)
        assert kernel.state() == two.states[before] and kernel.optimize(1) == [True]
        assert kernel.state() == two.states[before + 1]
    assert set(os.listdir(folder)) == names(*range(1, before + 1), int(kernel.global_step))
    assert "amaged" not in capsys.readouterr().out and Kernel(folder).state() == kernel.state()


def test_a_folder_that_cannot_be_removed_blocks_nothing(tmp_path, monkeypatch, capsys):
    """Somebody has a file in the folder of the unfinished ones open."""
    fail(monkeypatch, os, "rmdir", errno.ENOTEMPTY)
    kernel = Kernel(tmp_path)
    assert kernel.optimize(7) == 7 * [True], capsys.readouterr().out
    assert Kernel(tmp_path).state() == kernel.state() and numbers(tmp_path) == [3, 4, 5, 6, 7]
