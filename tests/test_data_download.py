"""load and its downloads, against a server on 127.0.0.1."""

import hashlib
import io
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from test_data_cifar import batch_contents, tar_gz
from test_data_idx import write_set

from scratchnet import data
from scratchnet.data.cifar import ARCHIVE, TEST_FILES, TRAIN_FILES, read_cifar10
from scratchnet.data.idx import read_idx_set
from scratchnet.data.sources import SOURCES, Remote, Source


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.path in self.server.truncated
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with .url, .files (path -> bytes), .truncated (paths) and .requests (in order)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.url = f"http://127.0.0.1:{running.server_port}/"
        running.files, running.truncated, running.requests = {}, set(), []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def digits(tmp_path, server):
    """A small data set of four IDX files, served at /good/. Returns its table of sources."""
    made = tmp_path / "made"
    write_set(made)
    remotes = []
    for path in sorted(made.iterdir()):
        content = path.read_bytes()
        server.files[f"/good/{path.name}"] = content
        sha256 = hashlib.sha256(content).hexdigest()
        remotes.append(Remote(path.name, sha256, (path.name.removesuffix(".gz"),)))
    return table(remotes, server.url + "good/")


def table(remotes, *mirrors):
    source = Source(
        title="Digits",
        folder="digits",
        files=tuple(remotes),
        mirrors=mirrors,
        classes=tuple("0123456789"),
        read=partial(read_idx_set, train=4, test=3, side=5),
    )
    return {"digits": source}


def test_a_good_file_is_downloaded_once(tmp_path, server, digits):
    assert not data.is_present("digits", tmp_path, sources=digits)
    first = data.load("digits", tmp_path, sources=digits)
    assert data.is_present("digits", tmp_path, sources=digits)
    assert len(server.requests) == 4
    again = data.load("digits", tmp_path, sources=digits)
    assert len(server.requests) == 4
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (len(first.train), len(first.test), first.name) == (4, 3, "digits")
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == sorted(
        file.name for file in digits["digits"].files
    )


def test_only_what_is_missing_is_downloaded(tmp_path, server, digits):
    data.load("digits", tmp_path, sources=digits)
    (tmp_path / "digits" / "t10k-labels-idx1-ubyte.gz").unlink()
    data.load("digits", tmp_path, sources=digits)
    assert server.requests[4:] == ["/good/t10k-labels-idx1-ubyte.gz"]


def test_nothing_is_downloaded_beside_unpacked_files(tmp_path, server, digits):
    write_set(tmp_path / "digits", suffix="")
    data.load("digits", tmp_path, sources=digits)
    assert server.requests == []


def test_the_next_mirror_is_tried_after_a_404(tmp_path, server, digits):
    mirrors = (server.url + "gone/", server.url + "good/")
    data.load("digits", tmp_path, sources=table(digits["digits"].files, *mirrors))
    name = digits["digits"].files[0].name
    assert server.requests[:2] == [f"/gone/{name}", f"/good/{name}"]


def refused(tmp_path, sources):
    """The message of load, after a look that no file, whole or half, was left."""
    with pytest.raises(data.DataError) as raised:
        data.load("digits", tmp_path, sources=sources)
    folder = tmp_path / "digits"
    assert not folder.exists() or list(folder.iterdir()) == []
    return str(raised.value)


def test_a_wrong_hash_leaves_nothing(tmp_path, server, digits):
    name = digits["digits"].files[0].name
    server.files[f"/good/{name}"] += b"!"
    message = refused(tmp_path, digits)
    assert f"{server.url}good/{name}: wrong SHA-256" in message


def test_a_truncated_transfer_leaves_nothing(tmp_path, server, digits):
    name = digits["digits"].files[0].name
    server.truncated.add(f"/good/{name}")
    assert f"{name}: the transfer broke off" in refused(tmp_path, digits)


def test_a_bad_mirror_is_made_good_by_the_next(tmp_path, server, digits):
    for file in digits["digits"].files:
        server.files[f"/bad/{file.name}"] = b"another file"
        server.files[f"/cut/{file.name}"] = server.files[f"/good/{file.name}"]
        server.truncated.add(f"/cut/{file.name}")
    mirrors = [server.url + folder for folder in ("bad/", "cut/", "good/")]
    data.load("digits", tmp_path, sources=table(digits["digits"].files, *mirrors))
    assert len(server.requests) == 3 * 4


def test_offline_one_sentence_says_what_to_put_where(tmp_path, server, digits):
    port = server.server_port
    server.server_close()  # nothing listens there from now on
    message = refused(tmp_path, table(digits["digits"].files, f"http://127.0.0.1:{port}/"))
    assert "no connection" in message
    assert f"Digits is not in {tmp_path / 'digits'}" in message
    assert "SCRATCHNET_DATA" in message and "\n" not in message and not message.endswith(".")
    for file in digits["digits"].files:
        assert file.name in message


def test_every_failed_mirror_is_named(tmp_path, server, digits):
    mirrors = (server.url + "a/", server.url + "b/")
    message = refused(tmp_path, table(digits["digits"].files, *mirrors))
    for mirror in mirrors:
        assert f"{mirror}{digits['digits'].files[0].name}: HTTP status 404" in message


def test_a_folder_that_cannot_be_written_is_named(tmp_path, server, digits):
    (tmp_path / "digits").write_text("a file where the folder should be")
    with pytest.raises(data.DataError, match="digits: .* cannot be written there"):
        data.load("digits", tmp_path, sources=digits)


def test_the_archive_of_cifar10_is_downloaded_and_read(tmp_path, server):
    content = tar_gz(batch_contents(records=3))
    server.files[f"/{ARCHIVE}"] = content
    source = Source(
        title="CIFAR-10",
        folder="cifar-10-batches-bin",
        files=(Remote(ARCHIVE, hashlib.sha256(content).hexdigest(), TRAIN_FILES + TEST_FILES),),
        mirrors=(server.url,),
        classes=SOURCES["cifar10"].classes,
        read=partial(read_cifar10, records=3),
    )
    loaded = data.load("cifar10", tmp_path, sources={"cifar10": source}, train=7)
    assert (len(loaded.train), len(loaded.test)) == (7, 3)
    assert (tmp_path / "cifar-10-batches-bin" / ARCHIVE).read_bytes() == content


def test_the_root_is_the_argument_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_DATA", str(tmp_path / "environment"))
    assert data.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data.data_root() == tmp_path / "environment"
    monkeypatch.delenv("SCRATCHNET_DATA")
    assert data.data_root().name == "scratchnet"
    with pytest.raises(TypeError, match="root must be a folder's path, got 3"):
        data.data_root(3)


def test_the_first_images_on_request(tmp_path, digits):
    whole = data.load("digits", tmp_path, sources=digits)
    part = data.load("digits", tmp_path, sources=digits, train=2, test=1)
    np.testing.assert_array_equal(part.train.images, whole.train.images[:2])
    np.testing.assert_array_equal(part.test.labels, whole.test.labels[:1])
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"digits: train is {count}, accepted are 1 to 4"):
            data.load("digits", tmp_path, sources=digits, train=count)
    with pytest.raises(TypeError, match=r"digits: test is 1.5, accepted is an int"):
        data.load("digits", tmp_path, sources=digits, test=1.5)


def test_an_unknown_name_names_the_known():
    with pytest.raises(data.DataError, match="'minst' is no data set, accepted are glyphs, mnist,"):
        data.load("minst")
    assert data.NAMES == ("glyphs", "mnist", "fashion-mnist", "cifar10")


def test_off_a_terminal_nothing_is_printed(tmp_path, digits, capfd):
    data.load("digits", tmp_path, sources=digits)
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_a_bar_names_the_file(tmp_path, digits, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for progress in (True, False):
        monkeypatch.setattr("sys.stderr", Terminal())
        data.load("digits", tmp_path / str(progress), sources=digits, progress=progress)
        for file in digits["digits"].files:
            assert (f"{file.name}: 100%" in sys.stderr.getvalue()) is progress
            assert (file.name in sys.stderr.getvalue()) is progress


def test_the_table_is_well_formed():
    assert set(SOURCES) == {"mnist", "fashion-mnist", "cifar10"}
    for source in SOURCES.values():
        assert len(source.classes) == 10
        assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in source.mirrors)
        for file in source.files:
            assert len(bytes.fromhex(file.sha256)) == 32
