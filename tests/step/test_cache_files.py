"""States that several caches, one after the other, keep in the same directory."""

import pytest
import torch

from layersift.step.activation_cache import ActivationCache


@pytest.mark.parametrize("batches", [(1, 1), (1, 2, 3), (3, 1, 1, 2)])
def test_no_cache_writes_over_what_an_earlier_one_kept(batches, tmp_path):
    """One process opens the directory again and again, and writes so many batches each time."""
    generator = torch.Generator().manual_seed(0)
    kept, files = {}, 0
    for count in batches:
        cache = ActivationCache(tmp_path, limit=1e9)
        for _ in range(count):
            rows, lengths = [len(kept), len(kept) + 1], [2, 3]
            output = torch.randn(2, 3, 4, generator=generator)
            cache.begin(rows, lengths)
            assert not cache.shallowest
            cache.keep(output, 2)
            assert cache.shallowest
            kept |= {row: output[place, : lengths[place]] for place, row in enumerate(rows)}
            files += 1
            assert len(list(tmp_path.glob("*.safetensors"))) == files
        for opened in (cache, ActivationCache(tmp_path, limit=1e9)):
            for row, states in kept.items():
                opened.begin([row], [len(states)])
                assert opened.shallowest == 2
                served = opened.serve(torch.ones(1, 4, 4))
                assert torch.equal(served[0, : len(states)], states)
                assert not served[0, len(states) :].any()  # padding
    assert cache.served == len(kept)
