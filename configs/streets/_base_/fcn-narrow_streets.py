"""The segmenter of tools/gallery.py: one resolution, so that the maps of all layers show objects.

`spatial_cfg` of the backbone names the operator; without one it has 3x3 convolutions.
"""

_base_ = './ham-narrow_streets.py'

iterations, batch_size = 150, 2

model = dict(
    backbone=dict(
        type='mmrednet.SpatialResNet',
        depth=26,
        base_channels=16,
        num_stages=2,
        # all feature maps have a quarter of the image's height and width
        strides=(1, 1),
        dilations=(1, 1),
        out_indices=(1,),
    ),
    decode_head=dict(
        _delete_=True,  # of the inherited head, which joins several resolutions
        type='FCNHead',
        in_channels=128,
        in_index=0,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=19,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
train_dataloader = dict(batch_size=batch_size)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=iterations))
