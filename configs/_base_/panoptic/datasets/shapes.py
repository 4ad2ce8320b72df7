"""Shapes in landscapes, by tools/synthetic/generate.py --format coco-panoptic."""

_base_ = './loaders.py'
things = ('circle', 'square', 'triangle', 'star', 'cross')
stuff = ('sky', 'hills', 'meadow', 'water')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.LoadPanopticMap', num_things=5),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmrednet.PackPanopticInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.LoadPanopticMap', num_things=5),
    dict(type='mmrednet.PackPanopticInputs'),
]
dataset = dict(
    type='CocoPanopticDataset',
    data_root='data/panoptic_shapes/',
    metainfo=dict(
        classes=things + stuff,
        thing_classes=things,
        stuff_classes=stuff,
        palette=[
            (220, 60, 50),
            (240, 190, 40),
            (60, 180, 75),
            (70, 110, 230),
            (190, 70, 200),
            (170, 205, 235),
            (150, 125, 95),
            (150, 200, 120),
            (60, 105, 150),
        ],
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
