"""The downloader against a server on this machine: whole, resumed, mirrored, damaged, cut short."""

import hashlib
import multiprocessing
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchsuite.data import datasets, fetch
from benchsuite.errors import UserError

BODY = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        range_ = self.headers.get("Range")
        self.server.requests.append((self.path, range_))
        if self.path == "/missing":
            return self.send_error(404)
        body = BODY[::-1] if self.path == "/wrong" else BODY
        start = 0
        if range_ and self.path != "/noranges":
            start = int(re.fullmatch(r"bytes=(\d+)-", range_)[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.path == "/slow":  # so that two who ask at about the same time overlap
            time.sleep(1)
        if self.path in ("/cut", "/cutonce") and not (self.path == "/cutonce" and start):
            body = body[: start + 100_000]
        self.wfile.write(body[start:])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        s.requests = []
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        s.url = f"http://127.0.0.1:{s.server_port}"
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture
def said():
    return []


def left_over(folder):
    return sorted(f.name for f in folder.iterdir())


def test_whole_file(server, tmp_path, said):
    path = tmp_path / "sub" / "file.bin"
    fetch.download([f"{server.url}/ok"], path, md5=MD5, size=len(BODY), report=said.append)
    assert path.read_bytes() == BODY
    assert left_over(path.parent) == ["file.bin"]
    assert said[-1] == "file.bin: 1.0 of 1.0 MB"
    fetch.download([f"{server.url}/ok"], path, md5=MD5, report=said.append)
    assert len(server.requests) == 1, "a right file is not fetched again"


def test_resumes_where_it_stopped(server, tmp_path, said):
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(BODY[:300_000])
    fetch.download([f"{server.url}/ok"], path, md5=MD5, report=said.append)
    assert server.requests == [("/ok", "bytes=300000-")]
    assert path.read_bytes() == BODY


def test_part_that_is_already_complete(server, tmp_path, said):
    (tmp_path / "file.bin.part").write_bytes(BODY)
    fetch.download([f"{server.url}/ok"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_broken_connection_goes_on_by_itself(server, tmp_path, said):
    fetch.download([f"{server.url}/cutonce"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert server.requests == [("/cutonce", None), ("/cutonce", "bytes=100000-")]
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_server_without_ranges_starts_over(server, tmp_path, said):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch.download([f"{server.url}/noranges"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert server.requests == [("/noranges", "bytes=1000-")]
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_damaged_part_is_thrown_away(server, tmp_path, said):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch.download([f"{server.url}/ok"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert any("deleted" in line for line in said)


def test_falls_back_to_the_next_mirror(server, tmp_path, said):
    urls = [f"{server.url}/missing", f"{server.url}/wrong", f"{server.url}/ok"]
    fetch.download(urls, tmp_path / "file.bin", md5=MD5, report=said.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/missing", "/wrong", "/ok"]


def test_wrong_checksum_leaves_nothing(server, tmp_path, said):
    with pytest.raises(UserError, match=f"could not be fetched.*md5 .* expected {MD5}"):
        fetch.download([f"{server.url}/wrong"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert [range_ for _, range_ in server.requests] == [None, None]
    assert left_over(tmp_path) == []
    assert any("deleted" in line for line in said)


def test_file_of_the_wrong_size_is_refused(server, tmp_path, said):
    with pytest.raises(UserError, match="has 1,024,000 bytes, expected 5"):
        fetch.download([f"{server.url}/ok"], tmp_path / "file.bin", size=5, report=said.append)


def test_truncated_transfer_keeps_the_part_and_says_what_failed_where(server, tmp_path, said):
    with pytest.raises(UserError) as error:
        fetch.download([f"{server.url}/missing", f"{server.url}/cut"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert "/missing: HTTP Error 404" in str(error.value)
    assert "/cut: the connection closed after 200,000 of 1,024,000 bytes" in str(error.value)
    assert "\n" not in str(error.value)
    assert left_over(tmp_path) == ["file.bin.part"]


def test_damaged_file_is_fetched_again(server, tmp_path, said):
    (tmp_path / "file.bin").write_bytes(b"half")
    fetch.download([f"{server.url}/ok"], tmp_path / "file.bin", md5=MD5, report=said.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_unwritable_folder_is_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*/file"):
        fetch.download([f"{server.url}/ok"], tmp_path / "file" / "file.bin")


def test_two_processes_fetch_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "file.bin"
    both = [context.Process(target=fetch.download, args=([f"{server.url}/slow"], path), kwargs={"md5": MD5}) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(server.requests) == 1
    assert left_over(tmp_path) == ["file.bin"]


def test_addresses_and_checksums_are_those_of_torchvision():
    from torchvision import datasets as theirs

    def form(name):
        return datasets.get(name).fetch[0]

    for name, cls in (("cifar10", theirs.CIFAR10), ("cifar100", theirs.CIFAR100)):
        assert [(r.urls, r.path, r.md5) for r in form(name)] == [((cls.url,), cls.filename, cls.tgz_md5)]
    for name, cls in (("mnist", theirs.MNIST), ("fashion_mnist", theirs.FashionMNIST)):
        wanted = [(tuple(m + f for m in cls.mirrors), f"{cls.__name__}/raw/{f}", md5) for f, md5 in cls.resources]
        assert [(r.urls, r.path, r.md5) for r in form(name)] == wanted
    wanted = [((url,), file, md5) for url, file, md5 in (theirs.SVHN.split_list[part] for part in ("train", "test"))]
    assert [(r.urls, r.path, r.md5) for r in form("svhn")] == wanted
    batches = dict([*theirs.CIFAR10.train_list, *theirs.CIFAR10.test_list])
    assert datasets.get("cifar10").official.md5 == {**batches, theirs.CIFAR10.filename: theirs.CIFAR10.tgz_md5}
    assert datasets.get("svhn").official.md5 == {file: md5 for _, file, md5 in wanted}
