"""`dcube diffuse DATA1 DATA2 --out RUN`: step 1 without labels on several sets, and runs that begin with it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_fit import PHANTOM, cli, contents, done, killed_at, refused, table, write_image, write_scans

from dcube.data.store import Store
from dcube.experiments.live_probe import LiveProbe, default_blocks
from dcube.runs import Run
from dcube.stages import open_data
from dcube.training.log import read_log
from dcube.training.state import checkpoints, load_weights

WEIGHTS = "diffusion/model.safetensors"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sets, of two classes each."""
    folder = tmp_path_factory.mktemp("sets")
    write_scans(folder / "ct", 9)
    write_scans(folder / "mri", 6, ("tumour", "none"), seed=1)
    return [str(folder / "ct"), str(folder / "mri")]


@pytest.fixture(scope="module")
def pretrained(sets: list[str], recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    out = tmp_path_factory.mktemp("pretrained") / "pre"
    result = done("diffuse", *sets, "--out", out, "--recipe", recipe)
    assert f"diffusion.init={out / WEIGHTS}" in result.stdout
    return out


def test_it_learns_from_the_training_parts_of_every_set_without_labels(
    pretrained: Path, sets: list[str], recipe: Path, tmp_path: Path
) -> None:
    tensors, about = load_weights(pretrained / WEIGHTS)
    assert about["classes"] == [] and len(tensors["labels.weight"]) == 1, "the null label alone"
    assert about["diffusion"]["contrastive"]["weight"] == 0
    assert "contrastive" not in read_log(pretrained / "diffusion/log.jsonl")[0]
    rows = table(pretrained / "split.csv")
    assert {row["label"] for row in rows} == {"ct", "mri"} and len(rows) == 18 + 12
    data = open_data(Run.open(pretrained))
    assert len(data.indices("train")) < 30 and about["seen"] == data.seen
    done("fit", sets[1], "--out", tmp_path / "run", "--recipe", recipe, "--max-minutes", 0)
    alone = {f"mri/{row['path']}": row["split"] for row in table(tmp_path / "run/split.csv")}
    assert alone == {row["path"]: row["split"] for row in rows if row["label"] == "mri"}, "the splits of `fit`"


def test_a_fit_begins_with_it(pretrained: Path, sets: list[str], recipe: Path, tmp_path: Path) -> None:
    init = shutil.copytree(pretrained, tmp_path / "pre") / WEIGHTS
    fit = ("fit", sets[0], "--out", tmp_path / "run", "--recipe", recipe, "--set", f"diffusion.init={init}")
    assert f"100% of the values) from {init}" in done(*fit, "--max-minutes", 0, "--no-test").stdout
    (start, about), (given, _) = load_weights(tmp_path / "run" / WEIGHTS), load_weights(init)
    assert all(torch.equal(start[name], given[name]) for name in given if name != "labels.weight")
    assert set(about["seen"]) == set(load_weights(init)[1]["seen"]), "handed down"
    done(*fit)
    before = contents(tmp_path / "run")
    init.unlink()
    done(*fit)  # a finished run does not miss the file
    assert contents(tmp_path / "run")[WEIGHTS] == before[WEIGHTS]
    shutil.rmtree(tmp_path / "run")
    assert "is not a file" in refused(*fit)


def test_images_without_labels_are_all_for_training(recipe: Path, sets: list[str], tmp_path: Path) -> None:
    for number in range(7):
        write_image(tmp_path / f"pile/{number}.png", seed=200 + number)
        write_image(tmp_path / f"archive/P{number % 3}/{number}.png", seed=300 + number)
    (tmp_path / "pile/notes.txt").touch()
    rows = ["path,patient_id,split", *(f"P{n % 3}/{n}.png,P{n % 3},{'test' if n % 3 == 2 else ''}" for n in range(7))]
    (tmp_path / "archive/manifest.csv").write_text("\n".join(rows))
    given = (tmp_path / "pile", tmp_path / "archive", sets[0])
    out = tmp_path / "pre"
    done("diffuse", *given, "--out", out, "--recipe", recipe, "--max-minutes", 0)
    split = {row["path"]: row["split"] for row in table(out / "split.csv")}
    assert [split[f"pile/{number}.png"] for number in range(7)] == ["train"] * 7
    assert {split[f"archive/P2/{number}.png"] for number in (2, 5)} == {"test"}
    assert sum(part == "train" for name, part in split.items() if name.startswith("archive")) == 5
    done("diffuse", *given, "--out", out, "--recipe", recipe)
    assert open_data(Run.open(out)).classes == ["pile", "archive", "ct"]
    assert len(open_data(Run.open(out)).indices("train")) == sum(part == "train" for part in split.values())
    write_image(tmp_path / "pile/masks/0.png", seed=0)
    assert "beside them the folder masks" in refused("diffuse", given[0], "--out", tmp_path / "new", "--recipe", recipe)
    for broken, sentence in (
        ("path,lable\nP0/0.png,a", "no column 'label' but 'lable'"),
        (
            "path,patient_id,split\nP0/0.png,P0,\nP0/3.png,P0,test",
            "The group 'P0' is in two splits, train and test (such as P0/0.png and P0/3.png): ",
        ),
        ("path,split\nP0/0.png,test", "no image in the split train"),
    ):
        (tmp_path / "archive/manifest.csv").write_text(broken)
        assert sentence in refused("diffuse", given[1], "--out", tmp_path / "new", "--recipe", recipe)
    (tmp_path / "archive/manifest.csv").write_text("\n".join(rows))
    shutil.rmtree(tmp_path / "pile/masks")
    assert "no class folders" in refused("fit", given[0], "--out", tmp_path / "run")
    assert "has no column 'label'" in refused("fit", given[1], "--out", tmp_path / "run")


def test_what_is_held_out_of_one_set_is_not_seen_through_another(
    recipe: Path, sets: list[str], tmp_path: Path
) -> None:
    """A pile of a hospital's images holds the labelled ones too."""
    for number, image in enumerate(sorted(Path(sets[0]).rglob("*.png"))):
        (tmp_path / "pile").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / f"pile/{number}.png")
    write_image(tmp_path / "pile/new.png", seed=99)
    result = done("diffuse", sets[0], tmp_path / "pile", "--out", tmp_path / "pre", "--recipe", recipe)
    rows = table(tmp_path / "pre/split.csv")
    kept = sum(row["split"] == "train" for row in rows if row["label"] == "ct")
    assert sum(row["split"] == "train" for row in rows if row["label"] == "pile") == kept + 1 < len(rows) / 2
    assert f"pile: {18 - kept} images are left out" in result.stdout
    init = f"diffusion.init={tmp_path / 'pre' / WEIGHTS}"
    done("fit", sets[0], "--out", tmp_path / "run", "--recipe", recipe, "--set", init)


def test_a_setting_without_effect_trains_nothing_anew(recipe: Path, sets: list[str], tmp_path: Path) -> None:
    fit = ("fit", sets[0], "--out", tmp_path / "run", "--recipe", recipe, "--no-test")
    done(*fit)
    before = contents(tmp_path / "run")
    result = done("diffuse", tmp_path / "run", "--set", "diffusion.augmentation.strength=2")
    assert "diffusion.augmentation.strength changes nothing here" in result.stderr
    assert "changes nothing here" in done(*fit, "--set", "diffusion.uvit.depth=4").stderr
    after = contents(tmp_path / "run")
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not {name for name in changed if name.endswith((".safetensors", ".yaml"))}, changed


def test_other_initial_weights_under_the_same_name_train_anew(
    pretrained: Path, sets: list[str], recipe: Path, tmp_path: Path
) -> None:
    init = shutil.copytree(pretrained, tmp_path / "pre") / WEIGHTS
    stop = ("--recipe", recipe, "--max-minutes", 0, "--no-test", "--set", f"diffusion.init={init}")
    done("fit", sets[0], "--out", tmp_path / "run", *stop)
    before, _ = load_weights(tmp_path / "run" / WEIGHTS)
    done("diffuse", *sets, "--out", tmp_path / "pre", "--recipe", recipe, "--seed", 0, "--restart")
    done("fit", sets[0], "--out", tmp_path / "run", *stop)
    same, _ = load_weights(tmp_path / "run" / WEIGHTS)
    assert all(torch.equal(before[name], same[name]) for name in before), "equal weights"
    change = ("--set", "diffusion.optimizer.steps=2", "--restart")
    done("diffuse", *sets, "--out", tmp_path / "pre", "--recipe", recipe, *change)
    done("fit", sets[0], "--out", tmp_path / "run", *stop)
    other, _ = load_weights(tmp_path / "run" / WEIGHTS)
    assert not torch.equal(before["stem.weight"], other["stem.weight"])


def test_weights_that_have_seen_the_test_images_are_refused(
    pretrained: Path, sets: list[str], recipe: Path, tmp_path: Path
) -> None:
    fit = ("fit", sets[0], "--recipe", recipe, "--set", f"diffusion.init={pretrained / WEIGHTS}", "--out")
    assert "images that" in refused(*fit, tmp_path / "run", "--seed", 1) and not checkpoints(tmp_path / "run")
    assert "is to be judged by" in refused(*fit, tmp_path / "folds", "--folds", 2)
    done("fit", PHANTOM, "--seed", 1, *fit[2:], tmp_path / "other", "--max-minutes", 0, "--no-test")


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_and_repeated_it_equals_an_uninterrupted_one(
    sets: list[str], recipe: Path, tmp_path: Path, pretrained: Path
) -> None:
    long = ("--recipe", str(recipe), "--set", "diffusion.optimizer.steps=40")
    done("diffuse", *sets, "--out", tmp_path / "whole", *long)
    out, kills = tmp_path / "pieces", 0
    for step in (3, 17):
        kills += killed_at(step, out / "diffusion" / "checkpoint", "diffuse", *sets, "--out", out, *long)
    assert kills and not (out / WEIGHTS).exists()
    done("diffuse", *sets, "--out", out, *long)
    (whole, about), (pieces, also) = load_weights(tmp_path / "whole" / WEIGHTS), load_weights(out / WEIGHTS)
    assert about == also and not [name for name in whole if not torch.equal(whole[name], pieces[name])]


def test_probes_of_a_training_are_logged_and_shown(sets: list[str], recipe: Path, tmp_path: Path) -> None:
    fit = ("fit", sets[0], "--out", tmp_path / "run", "--recipe", recipe, "--no-test", "--max-minutes", 0.2)
    done(*fit, "--set", "diffusion.probe_minutes=0.0001", "--set", "diffusion.probe_blocks=[0,3]")
    probes = [row for row in read_log(tmp_path / "run/diffusion/log.jsonl") if row.get("event") == "probe"]
    assert [row["step"] for row in probes][:2] == [0, 1] and len(probes) > 3
    for row in probes:
        assert list(row["blocks"]) == ["down1", "up2"] and row["timestep"] == 10
        assert (row["train"], row["n"]) == (10, 4)
        assert row["macro_f1"] == max(block["macro_f1"]["value"] for block in row["blocks"].values())
    assert "macro-F1 of the probe" in (tmp_path / "run/report.html").read_text()
    plain = ("fit", sets[0], "--out", tmp_path / "plain", "--recipe", recipe, "--no-test")
    done(*plain)
    (one, _), (other, _) = (load_weights(tmp_path / run / WEIGHTS) for run in ("run", "plain"))
    assert not [name for name in one if not torch.equal(one[name], other[name])], "a probe changes nothing"
    assert "blocks 0 .. 4" in refused(
        "diffuse", tmp_path / "plain", "--set", "diffusion.augment=true",
        "--set", "diffusion.probe_minutes=1", "--set", "diffusion.probe_blocks=[9]",
    )


def test_probed_images_are_balanced_fixed_and_as_many_as_there_is_time_for(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcube.diffusion.train import load_diffusion

    run, diffusion = Run.open(fitted), load_diffusion(fitted / WEIGHTS)
    look, extra = LiveProbe(open_data(run), run.settings()), dict[str, int]()
    assert [diffusion.model.blocks[i] for i in default_blocks(diffusion.model)] == ["mid", "up2"]
    train, asked = look.rows(7)
    assert len(asked) == 2 and set(look.data.splits[asked]) == {"val"} and set(look.data.splits[train]) == {"train"}
    assert len(set(look.data.labels[train[:3]])) == 3 and len(train) == 5
    first = look(diffusion, extra)
    assert extra == {"probe_images": 600} and first["blocks"] == look(diffusion, extra)["blocks"]
    monkeypatch.setattr("dcube.experiments.live_probe.SECONDS", 1e-3 * first["probe_seconds"])
    look(diffusion, extra)
    assert extra == {"probe_images": 64}, "fewer after a look that took too long"


def test_what_a_pretraining_is_not_for(pretrained: Path, sets: list[str], recipe: Path, tmp_path: Path) -> None:
    for verb in ("select", "classify", "evaluate", "probe"):
        assert "is a pre-training without labels" in refused(verb, pretrained)
    assert "needs --out RUN" in refused("diffuse", *sets)
    assert "not a run folder" in refused("diffuse", sets[0])
    assert "--recipe goes with a pre-training" in refused("diffuse", pretrained, "--recipe", recipe)
    pre = ("diffuse", *sets, "--recipe", recipe, "--out")
    assert "diffusion.augment: False -> True" in refused(*pre, pretrained, "--set", "diffusion.augment=true")
    assert "are the same images" in refused("diffuse", sets[0], sets[0], "--recipe", recipe, "--out", tmp_path / "run")
    assert "no folder or file" in refused(*pre, tmp_path / "run", "--set", "seed=0", tmp_path / "none")
    write_image(tmp_path / "photos/1.png", 1)
    assert "holds other files" in refused(*pre, tmp_path / "photos")
    assert "belongs to the data" in refused("fit", sets[0], "--recipe", recipe, "--out", pretrained)
    assert not (tmp_path / "run").exists()
    page = (pretrained / "report.html").read_text()
    assert "A pre-training without labels" in page and "dcube classify" not in page


def test_a_stage_of_a_pretraining_is_that_of_a_run(pretrained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(pretrained, tmp_path / "copied"))
    stamp = (copied / WEIGHTS).stat().st_mtime_ns
    done("diffuse", copied)
    assert (copied / WEIGHTS).stat().st_mtime_ns == stamp, "nothing to do"
    store = Path(json.loads((copied / "data").read_text())["sets"][1]["store"])
    assert Store.open(store).classes == ["none", "tumour"]
    kept = shutil.move(store, tmp_path / "kept")
    assert "'mri' are no longer at" in refused("diffuse", copied, "--set", "diffusion.augment=true")
    shutil.move(kept, store)
    assert cli("diffuse", copied, "--max-minutes", 0).exit_code == 0
