"""Joint-embedding terms beside the published codes: stable-worldmodel, PLDM, eb_jepa, LeWorldModel."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from support.originals import Recorded, near
from wmkit.functional import epps_pulley, sigreg
from wmkit.nn import MLP
from wmkit.objectives import LatentPrediction, Term, VarianceCovariance, VICReg
from wmkit.objectives.joint_embedding import PLAIN


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("joint_embedding")


ALL = ("variance", "covariance", "variance_time", "covariance_time", "smoothness")


def of(z: Tensor, frames: str, time: str, *names: str) -> dict[str, Tensor]:
    terms: Mapping[str, Term] = VarianceCovariance(
        dict.fromkeys(names or ALL, 1.0), frames=frames, time=time
    ).of(z)
    return {name: term.loss for name, term in terms.items()}


@pytest.mark.parametrize("case", ["gauss", "collapsed", "shift", "rank2"])
def test_sigreg_and_its_gradient(recorded: Recorded, case: str) -> None:
    z = recorded(f"sigreg:{case}_z").requires_grad_()
    value = sigreg(z, recorded(f"sigreg:{case}_A_raw"))
    near(recorded(f"sigreg:{case}_value"), value)
    near(recorded(f"sigreg:{case}_grad"), torch.autograd.grad(value, z)[0], 1e-4)


def test_sigreg_of_eb_jepa_has_other_nodes_and_no_factor(recorded: Recorded) -> None:
    options = {"nodes": 10, "low": -3.0, "high": 3.0}
    near(recorded("sigreg:ebjepa_ep_val"), epps_pulley(recorded("sigreg:ebjepa_ep_x"), **options))
    one, other, a = (recorded(f"sigreg:ebjepa_{name}") for name in ("z1", "z2", "bcs_A"))
    regular = sum(epps_pulley(x @ (a / a.norm(dim=0)), **options).mean() for x in (one, other)) / 2
    near(recorded("sigreg:ebjepa_bcs"), regular)
    near(recorded("sigreg:ebjepa_bcs_loss"), (one - other).square().mean() + 10 * regular)


def test_stable_worldmodels_port_of_pldm(recorded: Recorded) -> None:
    z = recorded("vicreg:z").requires_grad_()
    found = of(z, "each", "batch")
    names = {"std": "variance", "std_t": "variance_time", "cov": "covariance", "cov_t": "covariance_time"}
    for theirs, ours in ({"temp_align": "smoothness"} | names).items():
        near(recorded(f"vicreg:swm_{theirs}_loss"), found[ours])
    total = 18 * found["variance"] + 0.7 * found["variance_time"] + 12 * found["covariance"]
    total = total + 0.2 * found["smoothness"]
    near(recorded("vicreg:swm_total_18_0.7_12_0.2"), total)
    near(recorded("vicreg:swm_total_grad_z"), torch.autograd.grad(total, z)[0])


def test_pldms_own_terms(recorded: Recorded) -> None:
    z, expected = (recorded(f"vicreg:pldm_{name}").transpose(0, 1) for name in ("enc", "pred"))
    z.requires_grad_()
    expected.requires_grad_()
    found = of(z, "first", "own")
    prediction = LatentPrediction({}).error(expected[:, 1:], z[:, 1:]).mean()
    names = {"std": "variance", "std_t": "variance_time", "cov": "covariance", "sim_t": "smoothness"}
    for theirs, ours in names.items():
        near(recorded(f"vicreg:pldm_{theirs}"), found[ours])
    near(recorded("vicreg:pldm_cov_t(cov_coeff_t=1.5)"), found["covariance_time"])
    near(recorded("vicreg:pldm_sim"), prediction)
    weights = {"variance": 3.9843, "covariance": 6.9238, "variance_time": 0.24535, "smoothness": 0.74242}
    total = prediction + sum(weight * found[name] for name, weight in weights.items())
    near(recorded("vicreg:pldm_total"), total)
    grads = torch.autograd.grad(total, [z, expected])
    for theirs, ours in zip(("enc", "pred"), grads, strict=True):
        near(recorded(f"vicreg:pldm_grad_{theirs}").transpose(0, 1), ours)


@pytest.mark.parametrize(("case", "frames"), [("first1", "first"), ("first0", "all")])
def test_eb_jepas_terms(recorded: Recorded, case: str, frames: str) -> None:
    found = of(recorded("vicreg:z"), frames, "own", "variance", "covariance", "smoothness")
    for theirs, ours in {
        "std_loss": "variance",
        "cov_loss": "covariance",
        "sim_loss_t": "smoothness",
    }.items():
        near(recorded(f"vicreg:eb_{theirs}_{case}"), found[ours])


def test_vicreg_of_two_views(recorded: Recorded) -> None:
    z = recorded("vicreg:z")
    found = {name: term.loss for name, term in VICReg({}).of(z[:, 0], z[:, 1]).items()}
    for theirs, ours in {"invariance": "invariance", "var": "variance", "cov": "covariance"}.items():
        near(recorded(f"vicreg:vicreg_{theirs}_loss"), found[ours])
    total = found["invariance"] + 25 * found["variance"] + found["covariance"]
    near(recorded("vicreg:vicreg_loss"), total)


def test_pldms_inverse_dynamics(recorded: Recorded) -> None:

    z = recorded("vicreg:pldm_enc").transpose(0, 1)  # [B, T, D]
    net = MLP(20, 2, units=12, layers=1, style=PLAIN)
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for layer, number in zip(layers, (0, 2), strict=True):
        for leaf in ("weight", "bias"):
            name = f"vicreg:pldm_idm_w/action_predictor.mlp.{number}.{leaf}"
            getattr(layer, leaf).data.copy_(recorded(name))
    guessed = net(torch.cat([z[:, :-1], z[:, 1:]], -1))
    error = (guessed - recorded("vicreg:pldm_idm_actions").transpose(0, 1)).square().mean()
    near(recorded("vicreg:pldm_idm_loss"), error)
