"""The URI of a database file is that file's, whatever its path has in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from cluster.tracking.client import resolve_uri, sqlite_path, sqlite_uri

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3))
def test_the_uri_of_any_path_leads_back_to_it(names: list[str]) -> None:
    path = Path("/", *names)
    uri = sqlite_uri(path)
    assert make_url(uri).database == str(path) and sqlite_path(uri) == path and not make_url(uri).query
    assert resolve_uri("", path) == sqlite_uri(path / "mlflow.db")


@given(st.text(st.sampled_from("abc /-_.,+&=@:;'ü"), min_size=1))
def test_the_uri_of_a_path_without_special_characters_is_as_it_was(text: str) -> None:
    path = Path("/data") / text.replace("/", "-")
    assert sqlite_uri(path) == f"sqlite:///{path}"  # mlflow.json beside results names it


def test_a_relative_database_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "what?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for given_uri in ("sqlite:///runs.db", "sqlite:///./runs.db"):
        uri = resolve_uri(given_uri, Path("/nowhere"))
        assert sqlite_path(uri) == Path(os.getcwd()) / "runs.db"
        assert resolve_uri(uri, Path("/nowhere")) == uri
    assert make_url(resolve_uri("sqlite:///runs.db?timeout=5", Path("/nowhere"))).query == {"timeout": "5"}
    assert sqlite_path("http://127.0.0.1:5000") is None
