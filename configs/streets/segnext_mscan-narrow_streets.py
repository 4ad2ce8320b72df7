"""The segmenter of `make demo-seg`: SegNeXt-T at half its width, for two CPU cores, on streets in
Cityscapes format.
"""

_base_ = './_base_/ham-narrow_streets.py'
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN',
        arch=dict(embed_dims=(16, 32, 80, 128), depths=(2, 2, 3, 1), mlp_ratios=(4, 4, 4, 4)),
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    decode_head=dict(in_channels=[16, 32, 80, 128]),
)
