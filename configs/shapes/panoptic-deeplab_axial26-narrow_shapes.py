"""The network of `make demo-panoptic`: Axial-DeepLab, small enough for two CPU cores, on shapes in
landscapes.
"""

_base_ = ['../_base_/panoptic/datasets/shapes.py', 'mmdet::_base_/default_runtime.py']

size = (128, 128)
iterations, batch_size = 1000, 4
channels = 64  # of both decoders (256 and 128 in the published networks)

model = dict(
    type='mmrednet.PanopticDeepLab',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        type='mmrednet.AxialResNet',
        arch=0.25,
        depth=26,
        output_stride=16,
        input_size=size[0],
        num_heads=4,
        out_indices=(0, 1, 3),
    ),
    num_classes=9,
    thing_classes=list(range(5)),
    decoder=dict(
        in_channels=[64, 128, 512],
        context='projection',
        context_channels=channels,
        channels=channels,
        low_channels=(16, 32),
        norm_cfg=dict(type='BN'),
    ),
    semantic_decoder=dict(channels=channels, low_channels=(16, 32)),
    instance_decoder=dict(channels=channels, low_channels=(16, 32)),
    # objects are an eighth as large as in the published data sets
    targets=dict(sigma=5, small_area=400),
    losses=dict(hardest=1.0),
    test_cfg=dict(stuff_area=64, top_k=30),
)

train_dataloader = dict(batch_size=batch_size)
val_dataloader = dict(batch_size=batch_size)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.01),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(by_epoch=False, interval=iterations, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
