"""A narrow MSCAN with Semantic FPN on CamVid, from scratch, for two CPU cores."""

_base_ = './_base_/fpn_camvid-288x384.py'
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN',
        arch=dict(embed_dims=(32, 64, 128, 192), depths=(2, 2, 4, 2), mlp_ratios=(4, 4, 4, 4)),
        drop_path_rate=0.0,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    neck=dict(in_channels=[32, 64, 128, 192]),
)
