"""SegNeXt's decoder; a config adds the backbone and decode_head.in_channels."""

_base_ = './encoder_decoder.py'
model = dict(
    data_preprocessor=dict(size=(512, 512), test_cfg=dict(size_divisor=32)),
    decode_head=dict(
        type='mmrednet.LightHamHead',
        in_index=[1, 2, 3],
        channels=256,
        ham_channels=256,
        ham_kwargs=dict(MD_R=16),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='GN', num_groups=32),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
