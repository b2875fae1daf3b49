"""Tensors in another shape that the networks of the tests of weights have not: windows of relative positions."""

import torch

from imgcls.models.weights_adapt import adapt

TABLE = "blocks.0.attn.relative_position_bias_table"


def test_relative_positions_of_another_window_are_interpolated_head_by_head() -> None:
    given = torch.zeros(9, 2)  # a window of 2: distances -1, 0, 1
    given[:, 0] = torch.tensor([0.0, 1, 2]).repeat(3)
    given[:, 1] = torch.tensor([0.0, 1, 2]).repeat_interleave(3)
    found = adapt(TABLE, given, torch.zeros(25, 2), first=False)
    assert found is not None
    assert found[1] == "positions in a 2x2 window interpolated"
    across, down = found[0].T.reshape(2, 5, 5)
    assert torch.allclose(across[:, [0, 2, 4]], torch.tensor([0.0, 1, 2]).expand(5, 3), atol=1e-6)
    assert torch.allclose(across, down.T)


def test_an_index_of_positions_is_the_networks_own() -> None:
    own = torch.arange(16)
    found = adapt("attn.relative_position_index", torch.arange(4), own, first=False)
    assert found is not None
    assert torch.equal(found[0], own)


def test_what_nobody_knows_how_to_adapt_is_left() -> None:
    assert adapt(TABLE, torch.zeros(9, 2), torch.zeros(25, 3), first=False) is None
    assert adapt(TABLE, torch.zeros(8, 2), torch.zeros(25, 2), first=False) is None
    assert adapt("encoder.pos_embedding", torch.zeros(1, 9, 4), torch.zeros(1, 26, 4), first=False) is None
    colour, grey = torch.zeros(4, 3, 3, 3), torch.zeros(4, 1, 3, 3)
    assert adapt("conv.weight", colour, grey, first=False) is None
    assert adapt("conv.weight", colour, torch.zeros(4, 1, 5, 5), first=True) is None
    assert adapt("conv.weight", torch.zeros(4, 2, 3, 3), grey, first=True) is None
