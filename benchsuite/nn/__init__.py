"""Networks: backbones, the multi-head wrapper, factorised convolutions."""
