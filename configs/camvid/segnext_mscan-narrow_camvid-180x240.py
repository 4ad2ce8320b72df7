"""The narrow SegNeXt of `make demo-seg` on CamVid, from scratch, for two CPU cores: half an hour at
most.
"""

_base_ = './_base_/ham-narrow_camvid-180x240.py'
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN',
        arch=dict(embed_dims=(16, 32, 80, 128), depths=(2, 2, 3, 1), mlp_ratios=(4, 4, 4, 4)),
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    decode_head=dict(in_channels=[16, 32, 80, 128]),
)
