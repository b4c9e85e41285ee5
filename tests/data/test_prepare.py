"""Downloads from a server of the test's own, checks, and what is said where there is no network."""

import gzip
import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from formats import write_cifar, write_omniglot

from pyro_vsm.cli import main
from pyro_vsm.data import SOURCES, DataConfig, catalogue, prepare
from pyro_vsm.data.catalogue import Entry, RemoteFile
from pyro_vsm.data.download import WrongChecksum, download
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; `server.cut` breaks off after so many bytes, `server.ranges` allows resuming."""

    def do_GET(self):
        server = self.server
        content, wanted = server.content, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : server.cut] if server.cut else content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cut, server.ranges, server.status, server.requests = CONTENT, None, True, 200, []
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server, target, md5=MD5):
    return download(server.url, target, md5, log=lambda _: None)


def test_download_makes_folders_and_does_nothing_twice(server, tmp_path):
    target = tmp_path / "new" / "file"
    for _ in range(2):
        assert fetch(server, target).read_bytes() == CONTENT
    assert server.requests == [None]
    assert [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on_or_starts_anew(server, tmp_path, ranges):
    target = tmp_path / "file"
    server.cut, server.ranges = 100_000, ranges
    with pytest.raises(UserError, match="100000 bytes are kept, run it again to go on"):
        fetch(server, target)
    assert not target.exists()
    server.cut = None
    assert fetch(server, target).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]
    assert not target.with_name("file.part").exists()


def test_parts_of_different_files_are_thrown_away(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"another version" * 10)
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == ["bytes=150-", None]


def test_a_part_that_is_whole_is_taken(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_is_named(server, tmp_path):
    with pytest.raises(WrongChecksum, match=f"wrong checksum: its md5 is {MD5}, the published one is 123"):
        fetch(server, tmp_path / "file", "123")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(WrongChecksum, match="delete it and get it again"):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_refusals_are_one_sentence(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r"cannot download http://127.*\(Not Found\): check the network"):
        fetch(server, tmp_path / "file")
    with pytest.raises(UserError, match="no address"):
        download("file:///etc/passwd", tmp_path / "file", MD5)
    (tmp_path / "wall").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fetch(server, tmp_path / "wall" / "file")


def test_no_network_is_one_sentence(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        with pytest.raises(UserError, match="check the network, or get the file elsewhere"):
            download(f"http://127.0.0.1:{closed.getsockname()[1]}/x", tmp_path / "file", MD5, log=lambda _: None)
    assert list(tmp_path.iterdir()) == []


# --- prepare and check ----------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(server, tmp_path, monkeypatch):
    """CIFAR-100's archive in miniature, on the server, known to the catalogue."""
    import numpy as np

    rng = np.random.default_rng(0)
    classes = [c for names in split_names("cifar_fs").values() for c in names]
    images = {c: list(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)) for c in classes}
    server.content = (write_cifar(tmp_path / "made", images, tar=True) / "cifar-100-python.tar.gz").read_bytes()
    file = RemoteFile("cifar-100-python.tar.gz", hashlib.md5(server.content).hexdigest(), server.url)
    sizes = {"train": (64, 192), "validation": (16, 48), "test": (20, 60)}
    monkeypatch.setattr(catalogue, "catalogue", lambda: {"cifar-fs": Entry("CIFAR", (file,), published=sizes)})
    return DataConfig(name="cifar-fs", root=str(tmp_path / "root"))


def test_prepare_downloads_and_check_agrees(cifar, server):
    lines = []
    splits = prepare.prepare(cifar, log=lines.append)
    assert splits.train.n_classes == 64
    assert prepare.prepare(cifar, log=lines.append).identity == splits.identity
    assert len(server.requests) == 1
    lines.clear()
    prepare.check(cifar, lines.append)
    assert [line[:5] for line in lines].count("ok   ") == 5


def test_prepare_says_whether_files_are_the_published_ones(cifar, tmp_path):
    prepare.prepare(cifar, log=lambda _: None)
    lines = []
    prepare.prepare(cifar, log=lines.append)
    assert lines[0] == "cifar-100-python.tar.gz has the published checksum"
    path = tmp_path / "root" / "cifar-100-python.tar.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))  # packed anew, the same content
    lines.clear()
    assert prepare.prepare(cifar, log=lines.append).train.n_classes == 64
    assert re.fullmatch(r"cifar-100-python\.tar\.gz is another file than published \(md5 \w{32}\)", lines[0])


def test_an_interrupted_prepare_goes_on(cifar, server, tmp_path):
    server.cut = len(server.content) // 2
    with pytest.raises(UserError, match="are kept, run it again to go on"):
        prepare.prepare(cifar, log=lambda _: None)
    server.cut = None
    assert prepare.prepare(cifar, log=lambda _: None).test.n_classes == 20
    assert server.requests == [None, f"bytes={len(server.content) // 2}-"]
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["cifar-100-python.tar.gz"]


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_without_a_network_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar"
        file = RemoteFile("cifar-100-python.tar.gz", MD5, url)
        monkeypatch.setattr(catalogue, "catalogue", lambda: {"cifar-fs": Entry("CIFAR", (file,))})
        assert main(["data", "prepare", "cifar-fs", "--data.root", str(tmp_path / "root")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pyro-vsm: cannot download {url} (")
    assert error.count("\n") == 1
    assert MD5 in error


@pytest.mark.parametrize("name", ["tiered-imagenet", "mini-imagenet"])
def test_the_command_says_where_to_get_what_cannot_be_downloaded(tmp_path, capsys, name):
    assert main(["data", "prepare", name, "--data.root", str(tmp_path / "root")]) == 2
    said = capsys.readouterr()
    assert "image-net.org" in said.out
    for file in catalogue.catalogue()[name].files:
        assert f"{file.name}  md5 {file.md5}" in said.out
    assert said.err.count("\n") == 1


def test_the_command_downloads_checks_and_draws(cifar, tmp_path, capsys):
    root = ["cifar-fs", "--data.root", cifar.root]
    assert main(["data", "prepare", *root, "--out", str(tmp_path / "sheets")]) == 0
    assert main(["data", "check", *root]) == 0
    assert "ok    test: 20 classes, 60 images (published: 20 classes, 60 images)" in capsys.readouterr().out
    names = {f"cifar-fs-{part}.png" for part in ("train", "validation", "test")}
    assert {p.name for p in (tmp_path / "sheets").iterdir()} == names


# --- what prepare and check say -------------------------------------------------------------------------------------


def test_prepare_without_download_says_where_to_get_it(cifar, server):
    lines = []
    with pytest.raises(UserError, match="does not exist"):
        prepare.prepare(cifar, fetch=False, log=lines.append)
    assert any(cifar.name in lines[0] or "CIFAR" in line for line in lines)
    assert any("md5" in line and server.url in line for line in lines)
    assert server.requests == []


def test_check_names_what_is_wrong(cifar, tmp_path):
    prepare.prepare(cifar, log=lambda _: None)
    path = tmp_path / "root" / "cifar-100-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-5000])
    lines = []
    with pytest.raises(UserError, match=r"2 of the points above are wrong, the first: .*wrong checksum"):
        prepare.check(cifar, lines.append)
    assert sum(line.startswith("WRONG") for line in lines) == 2


def test_check_compares_numbers_with_the_published(tmp_path):
    lists = split_names("omniglot_small")
    write_omniglot(tmp_path, "images_background_small1", lists["train"], 1, folder=True)
    write_omniglot(tmp_path, "images_background_small2", [*lists["validation"], *lists["test"]], 1, folder=True)
    lines = []
    with pytest.raises(UserError, match="3 of the points"):
        prepare.check(DataConfig(name="omniglot", root=str(tmp_path), variant="small"), lines.append)
    assert "WRONG train: 136 classes, 136 images (published: 136 classes, 2720 images)" in lines
    assert any("is not there, so its checksum is not compared" in line for line in lines)


def test_every_source_is_in_the_catalogue():
    names = {name.partition(":")[0] for name in catalogue.catalogue()}
    assert names == set(SOURCES)
    for known in catalogue.catalogue().values():
        assert known.how
        assert all(len(file.md5) == 32 for file in known.files)
        assert not known.published or list(known.published) == ["train", "validation", "test"]


def test_prepare_unpacks_what_must_be_and_check_counts_in_all(server, tmp_path, monkeypatch):
    import tarfile

    from PIL import Image

    made = tmp_path / "made" / "CUB_200_2011"
    for names in split_names("cub").values():
        for name in names:
            (made / "images" / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(made / "images" / name / "1.jpg")
    with tarfile.open(tmp_path / "cub.tgz", "w:gz") as archive:
        archive.add(made, "CUB_200_2011")
        archive.add(made / "images" / "200.Common_Yellowthroat" / "1.jpg", "attributes.txt")
    server.content = (tmp_path / "cub.tgz").read_bytes()
    file = RemoteFile("CUB_200_2011.tgz", hashlib.md5(server.content).hexdigest(), server.url)
    published = {"train": (100, None), "validation": (50, None), "test": (50, None)}
    known = Entry("CUB", (file,), unpack="CUB_200_2011", published=published, total=201)
    monkeypatch.setattr(catalogue, "catalogue", lambda: {"cub": known})
    config = DataConfig(name="cub", root=str(tmp_path / "root"), image_size=8)
    assert prepare.prepare(config, log=lambda _: None).test.n_classes == 50
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["CUB_200_2011", "CUB_200_2011.tgz"]
    with pytest.raises(UserError, match=r"1 of the points .*200 images in all \(published: 201\)"):
        prepare.check(config, lambda _: None)
