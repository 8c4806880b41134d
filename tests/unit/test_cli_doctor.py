import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagemove.cli import app, main
from pagemove.kernel import DEFECTS, Problem
from pagemove.probing import features

doctor_module = importlib.import_module("pagemove.cli.doctor")

LONG_REMEDY = "as root: " + "command --with-an-argument " * 20 + "end"
NEEDED = Problem("MOVE", "no UFFD_FEATURE_MOVE [bold]here[/bold]", LONG_REMEDY, needed=True)
OPTIONAL = Problem("swap", "no swap space", "as root: swapon /swapfile")


@pytest.fixture
def pretend(monkeypatch):
    """Let doctor find other features."""

    def set_features(**changes):
        found = replace(features(), **changes)
        monkeypatch.setattr(doctor_module, "features", lambda *, refresh: found)
        return found

    return set_features


def call(*arguments, **environment):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "100", **environment})


def command(*arguments, python=("-m", "pagemove"), **options):
    return subprocess.run(
        [sys.executable, *python, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


class TestJson:
    def test_is_what_features_say(self):
        result = call("doctor", "--json")
        printed = json.loads(result.stdout)
        expected = json.loads(json.dumps(features().as_dict()))
        # Their number changes from one moment to the next.
        printed.pop("vma_count"), expected.pop("vma_count")
        assert printed == expected
        assert result.stderr == ""
        assert result.exit_code == (0 if printed["remap_anon_pages"] else 1)

    def test_status_1_where_something_needed_is_missing(self, pretend):
        pretend(problems=(NEEDED, OPTIONAL))
        result = call("doctor", "--json")
        assert result.exit_code == 1
        printed = json.loads(result.stdout)
        assert printed["remap_anon_pages"] is False
        assert printed["problems"][0]["remedy"] == LONG_REMEDY
        assert printed["problems"][0]["needed"] is True
        assert printed["problems"][1]["name"] == "swap"

    def test_status_0_where_only_something_optional_is(self, pretend):
        pretend(problems=(OPTIONAL,))
        result = call("doctor", "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["remap_anon_pages"] is True

    def test_defects_have_consequences(self, pretend):
        pretend(defects=tuple(DEFECTS))
        printed = json.loads(call("doctor", "--json").stdout)
        assert {each["name"]: each["consequence"] for each in printed["defects"]} == DEFECTS


class TestTable:
    def test_shows_what_is_here(self):
        result = call("doctor")
        found = features()
        assert found.release in result.stdout
        assert f"{found.page_size} B" in result.stdout
        assert f"of at most {found.max_map_count}" in result.stdout
        assert re.search(r"UFFDIO_MOVE\s+│\s+yes", result.stdout) or not found.remap_anon_pages
        for name in found.uffd_features:
            assert name in result.stdout
        for defect in found.defects:
            assert f"defect {defect}:" in result.stdout

    def test_works(self, pretend):
        pretend(problems=(OPTIONAL,))
        result = call("doctor")
        assert result.exit_code == 0
        assert result.stdout.startswith("remap_anon_pages works here.\nPaged memory works here.\n")
        assert "swapon" not in result.stdout
        assert "Missing and not needed: swap (pagemove doctor --all)" in result.stdout

    def test_all_has_what_is_not_needed_too(self, pretend):
        pretend(problems=(OPTIONAL,))
        result = call("doctor", "--all")
        assert result.exit_code == 0
        assert result.stdout.startswith("remap_anon_pages works here.\n")
        assert "optional swap: no swap space" in result.stdout
        assert "    as root: swapon /swapfile\n" in result.stdout

    def test_is_silent_about_features_that_nothing_here_uses(self, pretend):
        pretend(problems=(OPTIONAL, Problem("RWP", "no UFFD_FEATURE_RWP", "boot Linux 7.3")))
        text = call("doctor", "--all").stdout
        assert "optional swap" in text
        assert "7.3" not in text

    def test_does_not_work(self, pretend):
        pretend(problems=(NEEDED, OPTIONAL), uffd_features=("EVENT_FORK",))
        result = call("doctor", "--all")
        assert result.exit_code == 1
        assert result.stdout.startswith(
            "remap_anon_pages cannot work here.\nPaged memory cannot work here.\nneeded MOVE"
        )
        assert re.search(r"UFFDIO_MOVE\s+│\s+no", result.stdout)
        assert result.stdout.index("needed MOVE") < result.stdout.index("optional swap")

    def test_remedy_can_be_copied_and_is_not_markup(self, pretend):
        pretend(problems=(NEEDED,))
        result = call("doctor", COLUMNS="60")
        assert f"    {LONG_REMEDY}\n" in result.stdout
        assert "[bold]here[/bold]" in result.stdout

    def test_nothing_known(self, pretend):
        pretend(
            userfaultfd_syscall=False,
            userfaultfd_user_mode=False,
            userfaultfd_device=False,
            unprivileged_userfaultfd=None,
            seccomp=2,
            uffd_features=(),
            thp="",
            ksm="",
            swap=0,
            huge_page_size=0,
        )
        output = call("doctor").stdout
        assert re.search(r"vm.unprivileged_userfaultfd\s+│ unknown", output)
        assert re.search(r"seccomp filter\s+│ filtered", output)
        assert re.search(r"userfaultfd features\s+│ unknown", output)
        assert re.search(r"transparent huge pages\s+│ none", output)
        assert re.search(r"KSM\s+│ none", output)


class TestCommandLine:
    def test_module_and_console_script_agree(self):
        script = Path(sys.executable).with_name("pagemove")
        by_module = command("doctor", "--json")
        assert by_module.stderr == ""
        assert json.loads(by_module.stdout)["release"] == os.uname().release
        if not script.exists():
            pytest.skip("the console script is not installed beside this interpreter")
        by_script = subprocess.run(
            [script, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=False
        )
        assert by_script.returncode == by_module.returncode
        one, two = json.loads(by_module.stdout), json.loads(by_script.stdout)
        one.pop("vma_count"), two.pop("vma_count")
        assert one == two

    def test_exit_status_reaches_the_shell(self):
        code = textwrap.dedent(
            """
            import errno
            from pagemove._native import calls
            from pagemove.cli import main
            def refuse(*arguments):
                raise OSError(errno.EPERM, "refused")
            calls.userfaultfd = calls.userfaultfd_new = refuse
            main()
            """
        )
        result = command("doctor", "--json", python=("-c", code))
        assert result.returncode == 1, result.stderr
        problems = {each["name"]: each for each in json.loads(result.stdout)["problems"]}
        assert problems["userfaultfd_user_mode"]["needed"]
        assert problems["userfaultfd_user_mode"]["remedy"]

    def test_output_is_plain_when_it_is_not_a_terminal(self):
        result = command("doctor")
        assert "\x1b[" not in result.stdout
        assert "remap_anon_pages" in result.stdout

    def test_version(self):
        result = call("--version")
        assert result.exit_code == 0
        assert result.stdout == f"pagemove {version('pagemove')}\n"

    @pytest.mark.parametrize(
        ("arguments", "begins"),
        [
            (["--show-completion", "zsh"], "#compdef pagemove\n"),
            (["--show-completion=fish"], "complete --command pagemove "),
            (["--show-completion", "bash"], "_pagemove_completion() {\n"),
        ],
    )
    def test_completion_of_the_shell_that_is_named(self, arguments, begins):
        result = call(*arguments)
        assert result.exit_code == 0
        assert result.stdout.startswith(begins)
        assert "_PAGEMOVE_COMPLETE=complete_" in result.stdout

    def test_completion_of_a_shell_that_is_not_known(self):
        result = call("--show-completion", "tcsh")
        assert result.exit_code == 2
        assert "tcsh" in result.output

    def test_help_lists_the_commands(self):
        result = call("--help")
        assert result.exit_code == 0
        assert re.search(r"doctor\s+Check whether pages can be moved here", result.stdout)
        assert re.search(r"compare\s+\S", result.stdout)
        assert "--install-completion" in result.stdout

    def test_without_a_command_shows_the_help(self):
        result = call()
        assert result.exit_code == 2
        assert "Usage:" in result.output
        assert "doctor" in result.output

    @pytest.mark.parametrize("arguments", [("nonsense",), ("doctor", "--nonsense"), ("os",)])
    def test_wrong_usage(self, arguments):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output

    def test_doctor_does_not_import_what_compare_needs(self):
        code = textwrap.dedent(
            """
            import sys
            from pagemove.cli import main
            try:
                main()
            finally:
                wrong = [name for name in sys.modules if "compare" in name or "matplotlib" in name]
                print(wrong, file=sys.stderr)
            """
        )
        result = command("doctor", "--json", python=("-c", code))
        assert result.stderr == "[]\n"

    @pytest.mark.parametrize("module", ["typer", "rich"])
    def test_without_its_libraries_it_says_how_to_install_them(self, module):
        code = f"import sys; sys.modules[{module!r}] = None; from pagemove.cli import main; main()"
        result = command("doctor", python=("-c", code))
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            f"pagemove: the command line needs {module}: pip install 'pagemove[cli]'\n"
        )

    @pytest.mark.parametrize(
        ("words", "completed"),
        [
            ("pagemove do", "doctor"),
            ("pagemove page --li", "--limit"),
            pytest.param("pagemove compare --q", "--quick", marks=pytest.mark.slow),
        ],
    )
    def test_a_shell_completes_commands_and_their_options(self, words, completed):
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {**os.environ, "_PAGEMOVE_COMPLETE": "complete_bash", **typed}
        result = command(env=environment)
        assert result.stdout.split() == [completed], result.stderr

    def test_main_is_the_app(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["pagemove", "--version"])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("pagemove ")

    def test_no_descriptor_is_left(self):
        call("doctor", "--json")
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(5):
            call("doctor", "--json")
        assert set(os.listdir("/proc/self/fd")) == before
