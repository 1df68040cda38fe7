"""Tracking URIs: absolute, and without a secret wherever they are shown, sent or written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster.storage.results import Store
from cluster.tracking import client as mlflow_client
from cluster.tracking.client import HIDDEN, PASSWORD, TOKEN, USER, note_failure, resolve_uri, rests, shown, tracking_uri
from cluster.tracking.launches import open_tracking
from cluster.tracking.runs import Tracking

SECRET = "p4ss/w@rd"
QUOTED = "p4ss%2Fw%40rd"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of the user's, and none left behind."""
    for name in (USER, PASSWORD, TOKEN):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_servers_password_goes_to_the_environment_where_mlflow_looks_for_it() -> None:
    uri = resolve_uri(f"https://ann:{QUOTED}@mlflow.example:8443/base", Path("/results"))
    assert uri == f"https://ann:{HIDDEN}@mlflow.example:8443/base"
    assert (os.environ[USER], os.environ[PASSWORD]) == ("ann", SECRET)
    assert tracking_uri(uri) == "https://mlflow.example:8443/base"
    assert SECRET not in str(Tracking(uri=uri, experiment_id="1", parent_run="2").to_dict())


def test_a_databases_password_is_filled_in_only_when_it_is_opened() -> None:
    given = f"postgresql+psycopg2://ann:{QUOTED}@db.example/mlflow"
    uri = resolve_uri(given, Path("/results"))
    assert uri == shown(given) == f"postgresql+psycopg2://ann:{HIDDEN}@db.example/mlflow"
    assert tracking_uri(uri) == given
    assert resolve_uri(uri, Path("/results")) == uri  # *** as it was shown, with the password in the environment
    assert tracking_uri(uri) == given


def test_a_hidden_password_that_nobody_gave_is_asked_for() -> None:
    with pytest.raises(ConnectionError, match=PASSWORD):
        tracking_uri(f"postgresql://ann:{HIDDEN}@db.example/mlflow")


@pytest.mark.parametrize("uri", ["https://s3cret@mlflow.example", "postgresql://db/mlflow?user=ann&password=s3cret"])
def test_a_secret_in_another_place_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_uri(uri, Path("/results"))
    assert "s3cret" not in str(caught.value)


def test_a_warning_does_not_tell_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = resolve_uri(f"http://ann:{QUOTED}@127.0.0.1:9", tmp_path)
    with pytest.warns(UserWarning, match="can't be used") as caught:
        assert open_tracking(uri, "fake", "fake-1", Store(tmp_path), {}) is None
        mlflow_client.warn("it failed", RuntimeError(f"connection to ann:{QUOTED}@127.0.0.1 or {SECRET} refused"))
    text = " ".join(str(warning.message) for warning in caught)
    assert SECRET not in text and QUOTED not in text and HIDDEN in text


def test_a_store_that_failed_is_left_alone_for_a_minute_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "_resting", {})
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    note_failure("http://a", ConnectionError("refused"))
    assert rests("http://a") and not rests("http://b")
    clock[0] += mlflow_client.REST_SECONDS
    assert not rests("http://a")


def test_a_request_that_was_refused_says_nothing_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr(mlflow_client, "_resting", {})
    note_failure("http://a", MlflowException.invalid_parameter_value("too long"))
    note_failure("http://a", FileNotFoundError("episodes.parquet"))
    assert not rests("http://a")
    note_failure("http://a", MlflowException("API request failed"))
    assert rests("http://a")
