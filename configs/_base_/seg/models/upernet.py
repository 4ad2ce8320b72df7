"""UPerNet on the feature maps of a ResNet-50; a config adds the backbone."""

_base_ = './encoder_decoder.py'
norm_cfg = dict(type='BN', requires_grad=True)
head = dict(dropout_ratio=0.1, num_classes=19, norm_cfg=norm_cfg, align_corners=False)
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(
        type='UPerHead',
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        **head,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        **head,
    ),
)
