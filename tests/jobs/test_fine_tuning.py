"""What the routes work with shares one database."""

from some_jobs import create, opened

from polyvera.jobs.fine_tuning import FineTuning


def test_files_and_jobs_are_of_one_folder(tmp_path):
    tuning = opened(tmp_path / "training")
    job = create(tuning, "acme")
    again = FineTuning.open(tuning.policy)
    assert again.jobs.get("acme", job.id) == job and again.files.get("acme", job.training_file).tenant == "acme"
