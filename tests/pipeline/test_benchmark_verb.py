"""`dcube benchmark` and the tables of `dcube reproduce`: one command, its files, and what it refuses."""

import json
from pathlib import Path

import pytest
import timm
import torch
from tiny_fit import cli, contents, done, refused, table, write_manifest, write_recipe

from dcube import benchmark as field
from dcube.errors import InputError

PHANTOM = "phantom:patients=60,slices=1,size=32"
MODELS = "dcube,test_resnet,majority"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")
    return "--recipe", recipe, "--size", 32, "--weights", "none", "--seeds", "0,1"


def test_one_command_and_its_files(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = "benchmark", PHANTOM, "--models", MODELS, "--out", out, "--budget", "1epochs", *command
    few = ("benchmark", PHANTOM, "--models", "test_resnet,majority", *asked[4:])
    printed = done(*few, "--no-test", "--jobs", 2).stdout
    assert "validation split" in printed and not (out / "test.json").exists()
    trained = {file: file.read_bytes() for file in out.rglob("cell.json")}
    printed = done(*asked).stdout
    held = json.loads((out / "benchmark.json").read_text())
    assert held["plan"]["test_evaluations"] == 1 and "torch" in json.dumps(held["environment"])
    [(name, found)] = held["results"]["sets"].items()
    assert {row["model"] for row in found["systems"]} == set(MODELS.split(","))
    rows = table(out / "benchmark.csv")
    assert {(row["model"], row["seed"]) for row in rows} == {(m, s) for m in MODELS.split(",") for s in "01"}
    assert all(0 <= float(row["macro_f1"]) <= 1 and row["data"] == name for row in rows)
    assert (out / "benchmark.md").read_text().strip() in printed
    assert (out / "benchmark.svg").read_text().count("<svg") == 1
    assert len(trained) == 5 and all(file.read_bytes() == held for file, held in trained.items()), "never repeated"
    before = {name: text for name, text in contents(out).items() if name != ".lock"}
    done(*asked)
    assert before == {name: text for name, text in contents(out).items() if name != ".lock"}

    more = refused(*asked[:3], "majority,statistics", *asked[4:])
    assert "already opened 1 time(s)" in more and "--again" in more
    done(*asked[:3], "majority,statistics", *asked[4:], "--again")
    assert list(json.loads((out / "test.json").read_text())["evaluations"].values()) == [2]
    assert "another budget" in refused(*asked, "--budget", "2epochs")
    assert "another settings" in refused(*asked, "--set", "classifier.width=16")


def test_bad_input_is_found_before_any_work(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def wrong(*changes: object, data: object = PHANTOM, models: str = "majority") -> str:
        return refused("benchmark", data, "--models", models, "--out", out, *command, *changes)

    assert "did you mean resnet1" in wrong(models="resnet19,majority")
    assert "--list" in wrong(models=" ")
    assert "3min" in wrong("--budget", "soon")
    assert "--size 32" in wrong("--size", "16")
    assert "same size" in wrong("--set", "classifier.cnn_size=64")
    assert "above 0 and below 1" in wrong("--share", "1.5")
    assert "--step1-share" in wrong("--step1-share", "0")
    assert "--tries 3" in wrong("--tries", "3")
    assert "go together" in wrong(models="dcube_long") and "go together" in wrong("--long", "20min")
    assert "resnet18, which is not among" in wrong("--weights", "resnet18=none")
    assert "classifier.cnn_weights" in wrong("--weights", "dcube=none", models="dcube,test_resnet")
    assert "a file that is there" in wrong("--weights", "majority=/no/such.pth")
    assert "one row for each system" in wrong("--recipes", "paper", "--tries", "2")
    assert "sampler or none" in wrong("--set", "data.balance=weights")
    assert "has no test split" in wrong("--set", "data.test_fraction=0")
    assert "has no val split" in wrong("--set", "data.val_fraction=0", "--no-test")
    assert "0,1" in wrong("--seeds", "zero")
    assert "DATA and --out" in refused("benchmark", "--models", "majority")
    assert not out.exists()
    full = tmp_path / "full"
    write_manifest(full)
    assert "other files" in refused("benchmark", PHANTOM, "--models", "majority", "--out", full, *command)
    out.write_text("a file")
    assert "is a file" in wrong()


def test_weights_of_ones_own(command: tuple[object, ...], tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing")
    asked = "benchmark", PHANTOM, "--models", "test_resnet", "--out", tmp_path / "out", "--budget", "1epochs", *command
    own = "--weights", f"test_resnet={file}", "--no-test", "--tries", 1
    assert "cannot be read safely" in refused(*asked, *own)
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    printed = done(*asked, *own).stdout
    assert "| file weights.pth |" in printed and "| **RANDOM**" not in printed
    assert "began with other --weights" in refused(*asked, "--weights", "test_resnet=none", "--no-test", "--tries", 1)
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    assert "began with other --weights" in refused(*asked, *own), "others under the same name"


def test_the_list_names_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: field.baseline(name) for name in ("shufflenet_v2", "t2t_vit_7")}
    monkeypatch.setattr(field, "names", lambda: ["dcube", *few, "majority"])
    lines = done("benchmark", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["dcube", *few, "majority"]
    assert "Ma et al., ECCV 2018" in lines[1] and "1.3 M" in lines[1] and "224" in lines[1] and "random" in lines[2]


@pytest.mark.slow
def test_the_whole_list() -> None:
    lines = done("benchmark", "--list").stdout.splitlines()
    assert len(lines) == len(field.names()) and sum(" M " in line for line in lines) >= 24


def test_a_table_is_a_small_function_over_the_harness(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its systems, its recipes; here with two of them."""
    assert "dcube" in field.TABLE1 and len(field.TABLE2) == 14 and field.TABLES["table9"][1] == "paper"
    few = {name: (("test_resnet", "dcube"), recipes) for name, (_, recipes) in field.TABLES.items()}
    monkeypatch.setattr(field, "TABLES", few)
    for study, said in (("table1", "2 configuration(s)"), ("table9", "table IX")):
        out = tmp_path / study
        asked = "reproduce", study, "--data", PHANTOM, "--out", out, "--budget", "1epochs", "--no-test", *command
        assert said in done(*asked).stdout
        held = json.loads((out / "benchmark.json").read_text())
        assert held["plan"]["models"] == ["test_resnet", "dcube"]
        [system] = [r for r in next(iter(held["results"]["sets"].values()))["systems"] if r["model"] == "test_resnet"]
        assert ("sgd" in system["configuration"]) == (study == "table9")
    assert "does not go with table1" in refused("reproduce", "table1", "--data", PHANTOM, "--out", out, "--folds", 2)
    assert "does not go with step1" in refused("reproduce", "step1", "--data", PHANTOM, "--out", out, "--size", 32)
    assert cli("reproduce", "table3", "--data", PHANTOM, "--out", out).exit_code == 2


def test_every_name_of_the_tables_exists() -> None:
    terms = field.make_terms("small", ["runtime.device=cpu"], weights=["none"])
    assert field.check_models_of(field.TABLE2[:-1], terms) == field.TABLE2[:-1]
    with pytest.raises(InputError, match="go together"):
        field.check_models_of(["dcube_long"], terms)
