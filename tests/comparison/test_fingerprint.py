"""Which of our files decide whether finished work can be used again."""

from vidsparse.comparison.fingerprint import PACKAGE, code, pixel_files, score_files


def names(paths):
    return {path.relative_to(PACKAGE).as_posix() for path in paths}


def test_every_folder_that_makes_pixels_counts_however_deep():
    found = names(pixel_files())
    everything = {
        path.relative_to(PACKAGE).as_posix()
        for room in ("policies", "kernels", "pipelines")
        for path in (PACKAGE / room).rglob("*.py")
    }
    assert everything <= found
    assert {"grid.py", "kernels/measured.json", "kernels/triton/select.py"} <= found
    rooms = {name.partition("/")[0] for name in found}
    assert not rooms & {"cli", "comparison", "bench", "metrics"}


def test_a_new_folder_counts_without_being_named(tmp_path, monkeypatch):
    monkeypatch.setattr("vidsparse.comparison.fingerprint.PACKAGE", tmp_path)
    deep = tmp_path / "policies" / "new" / "deeper"
    deep.mkdir(parents=True)
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "a.py").touch()
    (deep / "a.py").write_text("x = 1\n")
    before = code(pixel_files())
    assert [path.name for path in pixel_files()] == ["a.py"]
    (deep / "a.py").write_text("x = 2\n")
    assert code(pixel_files()) != before


def test_scores_depend_on_the_metrics_and_not_on_the_report():
    found = names(score_files())
    assert {"metrics/psnr.py", "metrics/scores.py"} <= found
    assert not [name for name in found if "report" in name]
