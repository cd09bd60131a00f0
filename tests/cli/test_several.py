"""Several references: as arguments, on stdin, in a file."""

import pytest


@pytest.mark.parametrize("way", ["stdin", "file", "beside"])
def test_a_list_names_what_the_arguments_would(run, sd1, sdxl, tmp_path, way):
    text = f"{sd1}\n\n{sdxl}\n"
    (tmp_path / "list.txt").write_text(text)
    words = {"stdin": ["-"], "file": ["--from-file", tmp_path / "list.txt"], "beside": [sd1, "-"]}[way]
    done = run("inspect", "--json", *words, input=text if way == "stdin" else f"{sdxl}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("inspect", "--json", sd1, sdxl).stdout
    assert run("hash", "-", input="\n").returncode == 2
