"""The network of `make demo-panoptic`: Axial-DeepLab, small enough for two CPU cores, on shapes in
landscapes.
"""

_base_ = [
    '../_base_/panoptic/models/panoptic_deeplab.py',
    '../_base_/panoptic/datasets/shapes.py',
    '../_base_/panoptic/default_runtime.py',
]

iterations, batch_size = 1000, 4
channels = 64  # of both decoders (256 and 128 in the published networks)

branch = dict(channels=channels, low_channels=(16, 32))
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        type='mmrednet.AxialResNet',
        arch=0.25,
        depth=26,
        output_stride=16,
        input_size=128,
        num_heads=4,
        out_indices=(0, 1, 3),
    ),
    num_classes=9,
    thing_classes=list(range(5)),
    decoder=dict(
        in_channels=[64, 128, 512],
        context='projection',
        context_channels=channels,
        # statistics of a short run
        norm_cfg=dict(type='BN', momentum=0.1),
    ),
    semantic_decoder=branch,
    instance_decoder=branch,
    # objects are an eighth as large as in the published data sets
    targets=dict(sigma=5, small_area=400),
    losses=dict(hardest=1.0),
    test_cfg=dict(nms_kernel=13, stuff_area=64, top_k=30),
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
    checkpoint=dict(interval=iterations, max_keep_ckpts=1, save_best=None),
)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
randomness = dict(seed=0)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [dict(type='mmrednet.LoadPanopticMap', num_things=5)],
            [dict(type='mmrednet.PackPanopticInputs')],
        ],
    ),
]
