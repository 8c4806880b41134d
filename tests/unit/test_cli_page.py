"""`pagemove page`: the command line around a trial."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pagemove import StoreError, UnsupportedError
from pagemove.cli import app, main
from pagemove.paging import storage_options
from pagemove.stores import RedisStore
from pagemove.trial import trying
from support.servers import Moto, Redis, Web, free_ports
from support.slowness import SLOWNESS

CONTENTS = np.random.default_rng(12).bytes(700_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.bin"
    found.write_bytes(CONTENTS)
    return found


def call(*arguments: object):
    return CliRunner().invoke(app, ["page", *map(str, arguments)], env={"COLUMNS": "200"})


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pagemove", "page", *map(str, arguments)]


@pytest.mark.needs("move")
class TestEndToEnd:
    @pytest.mark.parametrize("options", [["--plot"], ["--pattern", "random", "--write"]])
    def test_measures_and_leaves_the_file_as_it_is(self, path, tmp_path, options):
        figure = tmp_path / "figure.png"
        if options[0] == "--plot":
            options = ["--plot", figure]
        done = subprocess.run(
            command(
                path,
                *("--limit", "256KiB", "--block", "16KiB", "--seconds", "0.3", *options),
                *("--json", tmp_path / "all.json"),
            ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == CONTENTS
        assert done.stderr == ""
        assert "of data.bin (684 KiB), blocks of 16 KiB, at most 256 KiB resident" in done.stdout
        assert "How long faults took" in done.stdout
        assert "\x1b[" not in done.stdout
        data = json.loads((tmp_path / "all.json").read_text())
        assert data["plan"]["write"] == ("--write" in options)
        assert 0 < data["most_resident"] <= 256 << 10
        assert figure not in options or figure.read_bytes().startswith(b"\x89PNG")

    def test_ctrl_c_ends_it_early(self, path):
        process = subprocess.Popen(
            command(path, "--limit", "256KiB", "--block", "4KiB", "--seconds", "60", "--write"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Its three threads run when there is something to be stopped.
            limit = time.monotonic() + 30
            while len(os.listdir(f"/proc/{process.pid}/task")) < 4:
                assert time.monotonic() < limit
                time.sleep(0.01)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert "stopped early" in out
        assert path.read_bytes() == CONTENTS

    def test_ctrl_c_before_it_has_begun(self):
        """The server takes the connection, and never answers."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(60 * SLOWNESS)
            process = subprocess.Popen(
                command(f"http://127.0.0.1:{server.getsockname()[1]}/a.npy"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                connection, _ = server.accept()
                process.send_signal(signal.SIGINT)
                with connection:
                    out, err = process.communicate(timeout=30 * SLOWNESS)
            finally:
                process.kill()
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err


def test_ctrl_c_while_the_command_is_imported(monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pagemove.cli.application.app", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130


def page(*arguments: object) -> tuple[dict, str]:
    """Run it for a moment; return what it measured and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        limits = ("--limit", "256KiB", "--block", "16KiB", "--seconds", "0.3")
        # In a process of its own: a read that comes too late would be the end of this one.
        done = subprocess.run(
            command(*arguments, *limits, "--json", f"{folder}/all.json"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(Path(folder, "all.json").read_text()), done.stdout


@pytest.mark.needs("move")
class TestSources:
    """Whatever open_array takes, from servers that are real."""

    @pytest.mark.needs("s3")
    def test_s3(self, tmp_path):
        import s3fs

        with Moto(tmp_path, free_ports(1)[0]) as server:
            filesystem = s3fs.S3FileSystem(**server.options)
            filesystem.mkdir("bucket")
            filesystem.pipe("bucket/x", CONTENTS)
            pairs = (f"{key}={json.dumps(value)}" for key, value in server.options.items())
            options = [word for pair in pairs for word in ("--storage-option", pair)]
            data, text = page("s3://bucket/x", *options, "--storage-option", "timeout=30")
            assert "of s3://bucket/x (684 KiB)" in text
            assert data["plan"]["source"] == "s3://bucket/x"
            assert data["stats"]["bytes_read"] > 0
            result = call("s3://bucket/none", *options)
            assert (result.exit_code, "bucket/none" in result.output) == (2, True)
            result = call("s3://bucket/x", "--write", *options)
            assert (result.exit_code, "can only be read" in result.output) == (2, True)

    def test_http_and_a_member_of_an_archive_there(self, tmp_path):
        pytest.importorskip("aiohttp")
        with Web(tmp_path, free_ports(1)[0]) as server:
            (server.root / "x").write_bytes(CONTENTS)
            with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
                archive.writestr("member", CONTENTS)
            for url in (f"{server.url}/x", f"zip://member::{server.url}/x.zip"):
                data, text = page(url, "--pattern", "random")
                assert f"of {url} (684 KiB)" in text
                assert data["nbytes"] == len(CONTENTS)
            result = call(f"{server.url}/none")
            assert (result.exit_code, "no such file" in result.output) == (2, True)

    @pytest.mark.needs("redis")
    @pytest.mark.parametrize("write", [False, True])
    def test_an_array_in_redis(self, tmp_path, write):
        with Redis(tmp_path, free_ports(1)[0]) as server:
            size = {"nbytes": len(CONTENTS), "block_size": 16 << 10}
            with RedisStore(server.url, "my array", create=True, **size) as store:
                store.write(0, CONTENTS)
            url = f"{server.url}/0#my%20array"
            data, text = page(url, *(["--write"] if write else []))
            assert f"of {url} (684 KiB)" in text
            assert (data["stats"]["bytes_written"] > 0) == write
            found = bytearray(len(CONTENTS))
            # Nobody holds the lease any more.
            with RedisStore(server.url, "my array", writable=True) as store:
                store.read_into(0, found)
            assert found == CONTENTS
            result = call(f"{server.url}#none")
            assert (result.exit_code, "no such array" in result.output) == (2, True)

    def test_a_member_of_an_archive_and_a_file_by_url(self, path, tmp_path):
        pytest.importorskip("fsspec")
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "member")
        data, _ = page(f"zip://member::{tmp_path}/x.zip")
        assert data["nbytes"] == len(CONTENTS)
        _, text = page(f"file://{path}", "--write")
        assert "reads and rewrites" in text
        assert path.read_bytes() == CONTENTS


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([], {}),
        (["anon=true", "timeout=2.5"], {"anon": True, "timeout": 2.5}),
        (
            ["key=abc", "endpoint_url=http://h/?a=b"],
            {"key": "abc", "endpoint_url": "http://h/?a=b"},
        ),
        (['key="123"', "empty="], {"key": "123", "empty": ""}),
        (['client_kwargs={"region_name": "eu"}'], {"client_kwargs": {"region_name": "eu"}}),
    ],
)
def test_storage_options(texts, options):
    assert storage_options.parsed(texts) == options


class TestRefused:
    @pytest.fixture(autouse=True)
    def _never_measure(self, monkeypatch):
        def run(*_):
            raise AssertionError("measured in spite of a wrong argument")

        monkeypatch.setattr(trying, "run", run)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--limit", "lots"], "limit 'lots' is not a number of bytes"),
            (["--limit", "lots"], "--limit 'lots'"),
            (["--limit", "100KiB"], "less than four blocks of 64 KiB"),
            (["--limit", "100KiB"], "--limit '100KiB'"),
            (["--limit", "9" * 26], f"--limit '{'9' * 26}' is larger than any address space"),
            (["--limit", "1e26"], "at most 9223372036854775807 bytes"),
            (["--block", "3KiB"], "--block must be a power of two"),
            (["--block", "9" * 26], f"not '{'9' * 26}'"),
            (["--seconds", "inf"], "31536000"),
            (["--seconds", "nan"], "--seconds"),
            (["--pattern", "spiral"], "sequential"),
            (["--seconds", "0"], "0.1"),
            (["--plot", "figure.pdf"], "must end in .png or .svg"),
            (["--json", "nowhere/all.json"], "create it first"),
        ],
    )
    def test_before_anything_is_touched(self, path, tmp_path, monkeypatch, arguments, reason):
        monkeypatch.chdir(tmp_path)
        result = call(path, *arguments)
        assert result.exit_code == 2
        assert reason in result.output

    def test_files_that_cannot_be_paged(self, tmp_path):
        (tmp_path / "empty").touch()
        for name, reason in (
            ("none", "No such file"),
            ("empty", "is empty"),
            (".", "is a directory"),
            ("/dev/zero", "is a character device"),
        ):
            result = call(tmp_path / name)
            assert result.exit_code == 2
            assert reason in result.output

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["nosuch://file"], "nosuch"),
            (["http://127.0.0.1:1/x", "--storage-option", "timeout=0.2"], "Cannot connect"),
            (["redis://127.0.0.1:1#a", "--storage-option", "timeout=0.2"], "cannot open"),
            (["redis://:secret@127.0.0.1"], "#NAME"),
            (["http://h/x", "--storage-option", "secret"], "must be KEY=VALUE"),
            (["http://h/x", *["--storage-option", "a=secret"] * 2], "a was given twice"),
            (["redis://h#a", "--storage-option", "writable=true"], "writable"),
        ],
    )
    def test_urls_that_cannot_be_paged(self, arguments, reason):
        pytest.importorskip("fsspec")
        pytest.importorskip("redis")
        result = call(*arguments)
        assert result.exit_code == 2
        assert reason in result.output
        assert "secret" not in result.output

    @pytest.mark.parametrize(
        ("url", "module", "extra"),
        [
            ("memory://x", "fsspec", "fsspec"),
            pytest.param("https://host/x", "aiohttp", "fsspec", marks=pytest.mark.slow),
            ("s3://bucket/x", "s3fs", "s3"),
            pytest.param("zip://x::s3://bucket/x.zip", "s3fs", "s3", marks=pytest.mark.slow),
            ("redis://host#x", "redis", "redis"),
        ],
    )
    def test_what_is_not_installed(self, url, module, extra):
        # In a process of its own: what has been imported would still be there.
        without = f"import sys; sys.modules[{module!r}] = None"
        program = f"{without}; from pagemove.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, "page", url],
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert f"pip install 'pagemove[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr

    def test_options_are_for_urls(self, path):
        result = call(path, "--storage-option", "anon=true")
        assert result.exit_code == 2
        assert "--storage-option is for URLs, and this is a path" in result.output

    def test_help_says_that_writing_is_harmless_and_to_whom_not(self):
        text = " ".join(call("--help").output.replace("│", " ").split())
        assert "the file, or the array in Redis, keeps its contents" in text
        assert "Not while another program writes to it" in text


@pytest.mark.needs("move")
def test_sizes_as_people_write_them_and_json_on_standard_output(path):
    limits = ("--limit", "1g", "--block", "4k", "--seconds", "0.1", "--json", "-")
    done = subprocess.run(
        command(path, *limits), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)["plan"]
    assert (plan["limit"], plan["block_size"]) == (1 << 30, 4096)


@pytest.mark.parametrize("error", [OSError(24, "cannot set up: too many files"), MemoryError("x")])
def test_a_limit_of_the_process_is_said_in_one_line(path, monkeypatch, error):
    def run(*_):
        raise error

    monkeypatch.setattr(trying, "run", run)
    result = call(path)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {error}\n"


@pytest.mark.parametrize(
    "error",
    [
        StoreError(28, "cannot write: no space", store="x", operation="write"),
        UnsupportedError(1, "userfaultfd: the remedy"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(path, monkeypatch, error):
    def run(*_):
        raise error

    monkeypatch.setattr(trying, "run", run)
    result = call(path)
    assert result.exit_code == 1
    assert f"Error: {error}" in result.output
    assert "Traceback" not in result.output
