"""Step 1's own network as f_sub."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dcube.checks import check_models
from dcube.classifier.model import DCubeClassifier, Predictor
from dcube.classifier.train import trials
from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from dcube.features.finetuned import FineTuned, fine_tuned
from dcube.features.frozen import FrozenFeatures
from dcube.features.taps import block_maps
from tiny import randomise, tiny_diffusion, tiny_experiment

UVIT = {"backbone": "uvit", "uvit": {"patch": 4, "width": 16, "depth": 4, "heads": 2}}
DEEPER = {"unet": {"widths": (8, 16), "groups": 4, "layers": 2, "attention": (2,)}}


@pytest.fixture(params=[{}, DEEPER, UVIT], ids=["unet", "deeper unet", "uvit"])
def diffusion(request: pytest.FixtureRequest) -> Diffusion:
    return tiny_diffusion(config=tiny_experiment(diffusion=request.param).diffusion)


def test_it_shows_every_map_on_the_way_down_at_the_places_of_the_smallest(diffusion: Diffusion) -> None:
    images = torch.rand(3, 1, 8, 8)
    network = FineTuned(diffusion, 5).eval()
    names = diffusion.model.blocks
    down = names[: names.index(diffusion.model.middle) + 1]
    maps = block_maps(diffusion, images, torch.full((3,), 5), down)
    side = min(m.shape[-1] for m in maps)
    expected = torch.cat([F.adaptive_avg_pool2d(m, side) for m in maps], 1) / (1 + network.norm.eps) ** 0.5
    assert network(images).shape == (3, network.width, side, side)
    torch.testing.assert_close(network(images), expected)


def test_every_parameter_that_is_left_learns_and_step_1_stays_as_it_is(diffusion: Diffusion) -> None:
    before = {name: tensor.clone() for name, tensor in diffusion.model.state_dict().items()}
    network = FineTuned(diffusion, 5)
    assert all(part.training for part in network.modules())  # dropout is on
    optimizer, generator = torch.optim.SGD(network.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    shown = network(torch.rand(4, 1, 8, 8, generator=generator))
    (shown * torch.randn(shown.shape, generator=generator)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    unmoved = [name for name, g in gradients.items() if g is None or g.abs().max() < 1e-6]
    assert not unmoved
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in diffusion.model.state_dict().items())
    assert not any(p.requires_grad for p in diffusion.model.parameters())
    assert sum(p.numel() for p in network.model.parameters()) < sum(p.numel() for p in diffusion.model.parameters())
    assert any(not torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())


def test_the_classifier_sees_what_step_1_saw() -> None:
    """f_sub of a predictor looks at the small images; the CNN's size does not count."""
    experiment, diffusion = tiny_experiment(classifier={"sub_network": "step1"}), tiny_diffusion()
    assert experiment.sub_size == 8 and tiny_experiment().sub_size == 32
    reading = tiny_experiment(classifier={"sub_network": "step1", "second_reader": 16}).classifier
    frozen = FrozenFeatures(diffusion, [1], "clean", 4)
    own = fine_tuned(diffusion, experiment.classifier, experiment.features)
    assert own is not None and own.timestep == 1  # the earliest of prediction
    model = DCubeClassifier(experiment.classifier, 3, [frozen.shapes[0][0]], own=own)
    randomise(model.head)
    model.eval().requires_grad_(False)
    predictor = Predictor(model, frozen, experiment.classifier, experiment.features, ["a", "b", "c"], {})
    assert predictor.sizes == (8, 8)
    assert replace(predictor, config=tiny_experiment().classifier).sizes == (8, 32)
    assert replace(predictor, config=reading).sizes == (8, 32)
    small, large = torch.rand(2, 4, 1, 8, 8), torch.rand(2, 4, 1, 32, 32)
    with torch.inference_mode():
        answer = predictor(small[0], large[0])
        assert torch.equal(answer, predictor(small[0], large[1]))
        assert not torch.allclose(answer, predictor(small[1], large[0]))
    assert fine_tuned(diffusion, tiny_experiment().classifier, experiment.features) is None


def test_without_a_reader_of_it_no_cnn_is_asked_for() -> None:
    lacking = {"cnn": "no_such_model", "sub_network": "step1"}
    check_models(tiny_experiment(classifier=lacking))
    for other in ({"second_reader": 16}, {"covariance_readers": ["cnn"]}, {"sub_network": "cnn"}):
        with pytest.raises(InputError, match="no model 'no_such_model'"):
            check_models(tiny_experiment(classifier={**lacking, **other}))
    with pytest.raises(InputError, match="no model 'no_such_model'"):  # a study, the floors of a benchmark
        check_models(tiny_experiment(classifier=lacking), cnn=True)
    imitated = {"align": {"weight": 1.0, "cnn": "no_such_model"}}
    with pytest.raises(InputError, match="no model 'no_such_model'"):  # also in a pre-training
        check_models(tiny_experiment(classifier=lacking, diffusion=imitated), classifier=False)


def test_a_cnn_that_has_more_strides_than_pixels_is_refused_before_any_training() -> None:
    small = {"cnn": "inception_v3", "cnn_weights": "none", "cnn_size": 64}
    with pytest.raises(InputError, match="inception_v3 cannot take images of 64 px .* give a larger classifier"):
        check_models(tiny_experiment(classifier=small))


def test_features_under_a_label_that_is_never_trained_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_models(tiny_experiment(diffusion={"label_dropout": 0}))
    assert "features are read under the null label, which step 1 is never trained with" in capsys.readouterr().err
    check_models(tiny_experiment(diffusion={"label_dropout": 0.1}))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("backbone", "more"), [("uvit", {"attention"}), ("unet", set())])
def test_the_attention_of_a_network_that_goes_on_is_tried_too(backbone: str, more: set[str]) -> None:
    """The fused kernel is slow in bf16 on a CPU: a trial decides, as in step 1."""
    settings = tiny_experiment(classifier={"sub_network": "step1"}, diffusion={"backbone": backbone})
    own = FineTuned(tiny_diffusion(config=settings.diffusion), 5)
    model = DCubeClassifier(settings.classifier, 3, [], own=own)
    assert trials(model, 8, 1, []).keys() == {"dtype"} | more
    plain = DCubeClassifier(tiny_experiment().classifier, 3, [])
    assert trials(plain, 32, 1, []).keys() == {"dtype"}
