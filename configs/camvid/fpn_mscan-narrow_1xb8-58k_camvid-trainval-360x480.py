"""The narrow MSCAN with Semantic FPN at the length of the literature, for a GPU: 1000 epochs of the
train and val images, tested on the test images. We have not run it.
"""

_base_ = './fpn_mscan-narrow_camvid-288x384.py'

# 1000 epochs of 468 images in batches of 8
iterations, crop_size = 58500, (360, 480)
model = dict(data_preprocessor=dict(size=crop_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
dataset = dict(type='mmrednet.CamVidDataset', data_root='data/camvid/')
train_dataloader = dict(
    num_workers=8,
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                **dataset,
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=train_pipeline,
            )
            for split in ('train', 'val')
        ],
    ),
)
val_dataloader = dict(
    num_workers=4,
    dataset=dict(data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')),
)
test_dataloader = val_dataloader

optim_wrapper = dict(type='AmpOptimWrapper')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=100, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
