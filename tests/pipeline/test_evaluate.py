"""Figures: the test split once, folds, other sets of images, classes left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score
from tiny_fit import CLASSES, PHANTOM, contents, done, metrics, refused, table, write_image, write_scans

OTHER = "phantom:patients=9,slices=1,size=32,seed=5"


def predictions(file: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """The rows of a table of predictions, and its probabilities [N, K]."""
    rows = table(file)
    return rows, np.array([[float(v) for name, v in row.items() if name.startswith("p_")] for row in rows])


def test_predictions_agree_with_the_figures(fitted: Path) -> None:
    splits = {r["path"]: r for r in table(fitted / "split.csv")}
    for name, split in (("", "test"), ("-val", "val")):
        rows, p = predictions(fitted / f"evaluation/predictions{name}.csv")
        found = metrics(fitted, f"metrics{name}")
        assert found["split"] == split and found["classes"] == list(CLASSES)
        assert [row["path"] for row in rows] == [path for path, row in splits.items() if row["split"] == split]
        assert [row["label"] for row in rows] == [splits[row["path"]]["label"] for row in rows]
        assert found["n"] == len(rows) and found["groups"] == len({splits[row["path"]]["group"] for row in rows})
        y = np.array([CLASSES.index(row["label"]) for row in rows])
        predicted = np.array([CLASSES.index(row["predicted"]) for row in rows])
        np.testing.assert_array_equal(predicted, p.argmax(1))
        np.testing.assert_allclose([float(row["confidence"]) for row in rows], p.max(1))
        assert found["accuracy"]["value"] == pytest.approx(accuracy_score(y, predicted))
        assert found["macro_f1"]["value"] == pytest.approx(f1_score(y, predicted, average="macro"))
        scaled = p / p.sum(1, keepdims=True)  # six decimals were written
        assert found["macro_auroc"]["value"] == pytest.approx(roc_auc_score(y, scaled, multi_class="ovr"), abs=1e-6)
        assert found["confusion"] == confusion_matrix(y, predicted).tolist()
        assert set(found["floors"]) == {"majority", "statistics", "pixels"}
        for key in ("accuracy", "macro_f1"):
            if found[key]["low"] is None:  # nothing to draw from
                assert max(found["groups_per_class"].values()) == 1
            else:
                assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]


def test_the_test_split_is_used_once_and_counted(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ("fit", PHANTOM, "--out", run, "--recipe", recipe)
    assert "val split" in done(*fit, "--no-test").stdout
    assert {path.name for path in (run / "evaluation").iterdir()} == {"metrics-val.json", "predictions-val.csv"}
    assert "test_evaluations" not in metrics(run, "metrics-val")
    trained = {part: contents(run / part) for part in ("diffusion", "classifier")}

    assert "test split" in done(*fit).stdout
    assert trained == {part: contents(run / part) for part in trained}, "only the evaluation was added"
    once = metrics(run)
    assert once["split"] == "test" and once["test_evaluations"] == 1
    done(*fit)
    done("evaluate", run, "--split", "test")
    assert metrics(run) == once, "nothing new was looked at"
    assert "val split" in done(*fit, "--no-test").stdout

    done("evaluate", run, "--split", "test", "--again")
    assert metrics(run) == once | {"test_evaluations": 2}
    assert "2 time(s)" in refused("evaluate", run, "--split", "test", "--set", "evaluation.level=0.9")
    done("classify", run, "--set", "classifier.dropout=0.2")
    assert "2 time(s)" in refused("evaluate", run, "--split", "test")
    done("evaluate", run, "--split", "test", "--again")
    assert metrics(run)["test_evaluations"] == 3


def test_classes_left_out(fitted: Path, copied: Path) -> None:
    done("evaluate", copied, "--set", "evaluation.without=[[normal]]")
    found = metrics(copied, "metrics-val")
    part = found["without"]["normal"]
    rows, p = predictions(copied / "evaluation/predictions-val.csv")
    kept = np.array([row["label"] != "normal" for row in rows])
    y = np.array([CLASSES.index(row["label"]) for row in rows])[kept]
    assert part["metrics"]["n"] == kept.sum() < found["n"]
    assert part["metrics"]["classes"] == ["benign", "malignant"]
    assert part["metrics"]["accuracy"]["value"] == pytest.approx((p[kept, :2].argmax(1) == y).mean())
    assert set(part["floors"]) == set(found["floors"])
    before = metrics(fitted, "metrics-val")
    assert {k: v for k, v in found.items() if k not in ("without", "inputs")} == {
        k: v for k, v in before.items() if k not in ("without", "inputs")
    }


def test_another_set_of_images(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copied / "evaluation")
    assert "external split: 9 images" in done("evaluate", copied, "--data", OTHER).stdout
    [table] = copied.glob("evaluation/external-*.csv")
    rows, p = predictions(table)
    found = json.loads(table.with_suffix(".json").read_text())
    assert found["n"] == len(rows) == 9 and found["data"] == OTHER and found["broken"] == []
    y = np.array([CLASSES.index(row["label"]) for row in rows])
    assert found["accuracy"]["value"] == pytest.approx((p.argmax(1) == y).mean())

    two = write_scans(tmp_path / "clinic" / "v1.2", 20, ("benign", "normal"))  # a class less, and a broken file
    (two / "normal/bad.png").write_text("no image")
    done("evaluate", copied, "--data", two)
    found = metrics(copied, "external-v1.2")
    assert found["n"] == 40 and "bad.png" in found["broken"][0] and found["per_class"]["malignant"]["support"] == 0

    assert len(found["warnings"]) == 40 and "benign/000.png: contrast" in found["warnings"][0]

    write_image(tmp_path / "late/test/benign/1.png", 1)  # one class, in a split that is none here
    assert "external split: 1 images" in done("evaluate", copied, "--data", tmp_path / "late").stdout
    deep = np.random.default_rng(0).integers(0, 4096, (24, 24)).astype(np.uint16)
    Image.fromarray(deep).save(write_image(tmp_path / "deep/benign/1.png", 1))
    assert "16 bits per value, but the training images had 8" in refused(
        "evaluate", copied, "--data", tmp_path / "deep"
    )

    namesake = write_scans(tmp_path / "elsewhere" / "v1.2", 21, ("benign", "normal"))
    done("evaluate", copied, "--data", namesake)
    assert metrics(copied, "external-v1.2")["data"] == str(two)
    [other] = copied.glob("evaluation/external-v1.2-*.json")
    assert json.loads(other.read_text())["data"] == str(namesake)
    names = contents(copied / "evaluation").keys()
    for place in (two, namesake):  # by a name of one part, which says nothing of the place
        monkeypatch.chdir(place.parent)
        done("evaluate", copied, "--data", place.name)
    assert contents(copied / "evaluation").keys() == names

    write_image(two / "cyst/1.png", 1)
    assert "the class 'cyst', which this run never saw; it knows benign, malignant" in refused(
        "evaluate", copied, "--data", two
    )
    assert before.items() <= contents(copied / "evaluation").items(), "the run's own figures stay"


def test_what_another_set_is_asked_with_is_no_part_of_the_run(copied: Path, recipe: Path) -> None:
    before = (copied / "experiment.yaml").read_bytes()
    other = ("evaluate", copied, "--data", OTHER)
    for change in ("evaluation.without=[[normal]]", "evaluation.floors=false"):
        assert "has no effect on another set of images (--data); leave it out" in refused(*other, "--set", change)
    done(*other, "--set", "evaluation.bootstrap=150", "--set", "evaluation.level=0.9", "--device", "cpu")
    [file] = copied.glob("evaluation/external-*.json")
    assert {"resamples": 150, "level": 0.9}.items() <= json.loads(file.read_text())["bootstrap"].items()
    assert (copied / "experiment.yaml").read_bytes() == before
    done("fit", PHANTOM, "--out", copied, "--recipe", recipe)


def test_another_set_where_the_training_images_are_gone(copied: Path) -> None:
    data = json.loads((copied / "data").read_text())
    (copied / "data").write_text(json.dumps(data | {"store": "/gone"}))
    assert "external split: 9 images" in done("evaluate", copied, "--data", OTHER).stdout


def test_the_runs_own_prepared_images_are_no_other_set(recipe: Path, scans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done("prepare", scans, "--out", store, "--recipe", recipe)
    for data in (scans, store):
        run = tmp_path / f"run-{data.name}"
        done("fit", data, "--out", run, "--recipe", recipe, "--no-test")
        assert "the run's own data" in refused("evaluate", run, "--data", store)
        assert "the run's own data" in refused("evaluate", run, "--data", scans)


def test_folds_pool_every_image_once(scans: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    fit = ("fit", scans, "--out", out, "--recipe", recipe, "--set", "data.val_fraction=0.3", "--folds")
    assert "folds split: 12 images, 6 groups" in done(*fit, 2).stdout
    manifest = {row["path"]: row for row in table(scans / "manifest.csv")}
    held_out: list[str] = []
    for fold in (0, 1):
        rows = table(out / f"fold-{fold}/split.csv")
        assert {row["path"] for row in rows if row["split"] == ""} == {
            path for path, row in manifest.items() if row["split"] == "test"
        }
        groups = {
            split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val", "test", "")
        }
        assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 8, "groups stay whole"
        held_out += [row["path"] for row in rows if row["split"] == "test"]
    rows, p = predictions(out / "evaluation/predictions.csv")
    assert sorted(held_out) == [row["path"] for row in rows]
    assert held_out and set(held_out) == {path for path, row in manifest.items() if row["split"] != "test"}
    found = metrics(out)
    y = np.array([CLASSES.index(row["label"]) for row in rows])
    assert found["n"] == 12 and found["folds"] == 2 and set(found["floors"]) == {"majority", "statistics", "pixels"}
    assert found["accuracy"]["value"] == pytest.approx((p.argmax(1) == y).mean())

    done(*fit, 2)
    assert metrics(out) == found
    assert "another number of folds" in refused(*fit, 3)
    assert "holds other files (fold-0" in refused("fit", scans, "--out", out, "--recipe", recipe)
    assert "--max-minutes" in refused(*fit, 2, "--max-minutes", 1)
