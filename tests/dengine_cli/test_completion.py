"""A shell that completes a command line is answered, and nothing else is done."""

import pytest

from dengine_cli.main import COMPLETE, app


@pytest.mark.parametrize(
    ("line", "place", "found"),
    [("dengine tr", "1", ["train-base", "train-adapter"]), ("dengine train-base --min", "2", ["--minutes"])],
)
def test_verbs_and_flags_are_completed(
    line: str, place: str, found: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ((COMPLETE, "complete_bash"), ("COMP_WORDS", line), ("COMP_CWORD", place)):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        app()
    assert left.value.code == 0
    assert capsys.readouterr().out.split() == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_lines(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETE, f"source_{shell}")
    with pytest.raises(SystemExit):
        app()
    assert COMPLETE in capsys.readouterr().out
