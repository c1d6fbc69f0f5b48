"""Tests that files of runs are found where they are, after a database was moved or copied, and in odd folders."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nanochat.tracking.database import artifact_folder, holds_runs
from nanochat.tracking.mlflow_store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


class Project:
    """A folder with a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, experiment="nanochat"):
        return open_store(f"sqlite:///{self.folder}/mlflow.db", experiment)

    def add(self, content: str, experiment="nanochat") -> str:
        """Log a file in a new run, and return the run's id."""
        store, file = self.open(experiment), self.folder / "note.txt"
        file.write_text(content)
        run_id = store.client.create_run(store.experiment_id).info.run_id
        store.client.log_artifact(run_id, str(file))
        return run_id

    def read(self, run_id: str, target: Path) -> str:
        """Return the content of the run's file, as MLflow finds it."""
        return Path(self.open().client.download_artifacts(run_id, "note.txt", str(target))).read_text()

    def locations(self) -> dict[str, str]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as connection:
            return dict(connection.execute("select name, artifact_location from experiments"))


@pytest.fixture
def project(tmp_path, fresh_database) -> Project:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(fresh_database, folder / "mlflow.db")
    return Project(folder)


def test_files_of_a_moved_project_are_found_and_new_ones_lie_beside_them(project, tmp_path):
    """Also if it is moved twice, and with an experiment that has no files yet."""
    first = project.add("first")
    project.open("empty")
    for name in ("new", "newer"):
        project.folder = project.folder.rename(tmp_path / name)
        second = project.add("second")
        third = project.add("third", experiment="empty")
        assert project.read(first, tmp_path) == "first"
        assert project.read(second, tmp_path) == "second"
        assert {path.parts[-3] for path in project.folder.glob("mlartifacts/*/*/artifacts/note.txt")} >= {first, third}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["newer"]


def test_copied_project_and_its_original_keep_their_files_apart(project, tmp_path):
    first = project.add("first")
    copy = Project(Path(shutil.copytree(project.folder, tmp_path / "copy")))
    second, third = copy.add("second"), project.add("third")
    assert copy.read(first, tmp_path) == project.read(first, tmp_path) == "first"
    ids = {path.parts[-3] for path in copy.folder.glob("mlartifacts/*/*/artifacts/note.txt")}
    assert ids == {first, second}
    ids = {path.parts[-3] for path in project.folder.glob("mlartifacts/*/*/artifacts/note.txt")}
    assert ids == {first, third}


def test_files_that_stay_behind_are_still_found(project, tmp_path):
    """Only the database is moved."""
    first = project.add("first")
    (tmp_path / "new").mkdir()
    (project.folder / "mlflow.db").rename(tmp_path / "new" / "mlflow.db")
    moved = Project(tmp_path / "new")
    second = moved.add("second")
    assert moved.read(first, tmp_path) == "first"
    assert moved.read(second, tmp_path) == "second"


def test_place_that_a_user_chose_is_kept(project, tmp_path):
    """It need not exist now: it may be a disk that is not attached."""
    store = project.open("unused")
    places = {"chosen": (tmp_path / "big" / "disk").as_uri(), "bucket": "s3://bucket/mlartifacts/bucket"}
    for name, place in places.items():
        store.client.create_experiment(name, place)
    project.open("chosen")
    assert places.items() <= project.locations().items()


@pytest.mark.parametrize("has_files", [True, False])
def test_files_that_a_server_stored_beside_the_database_are_used_without_it(project, has_files):
    """If they are somewhere else, only the server knows where."""
    number = project.open("unused").client.create_experiment("served", "mlflow-artifacts:/7")
    folder = project.folder / "mlartifacts" / number
    if has_files:
        folder.mkdir(parents=True)
    project.open("served")
    assert project.locations()["served"] == (folder.as_uri() if has_files else "mlflow-artifacts:/7")


@pytest.mark.usefixtures("quick_creation")
@pytest.mark.parametrize("name", ["a b", "ü", "100%20x", "q?mode=ro", "h#y", "[x]", "p%zz"])
def test_folder_may_have_any_name(tmp_path, fresh_database, name):
    """The database is created in it, too."""
    project = Project(tmp_path / name)
    project.folder.mkdir()
    if name != "q?mode=ro":
        shutil.copy(fresh_database, project.folder / "mlflow.db")
    run_id = project.add("here", experiment="nano chat?")
    assert project.read(run_id, tmp_path) == "here"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [name]
    assert sorted(path.name for path in project.folder.iterdir()) == ["mlartifacts", "mlflow.db", "note.txt"]
    database = project.folder / "mlflow.db"
    assert holds_runs(database, [run_id])
    project.open().client.delete_run(run_id)
    assert not holds_runs(database, [run_id]) and not holds_runs(database.with_name("none.db"), [run_id])


@pytest.mark.parametrize("experiment", ["..", ".", "ü" * 300])
def test_folder_of_an_experiment_is_a_file_name(tmp_path, experiment):
    folder = artifact_folder(tmp_path / "mlflow.db", experiment)
    folder.mkdir(parents=True)
    assert folder.resolve().parent == tmp_path / "mlartifacts"
