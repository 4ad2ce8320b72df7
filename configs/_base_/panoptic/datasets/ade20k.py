_base_ = './loaders.py'
# width, height
crop_size = (641, 641)
scale = (2560, 640)
# mean of ImageNet, BGR, which normalisation maps to zero
pad_value = (103.53, 116.28, 123.675)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.LoadPanopticMap', num_things=100),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='Pad', size=crop_size, pad_val=dict(img=pad_value, seg=0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmrednet.PackPanopticInputs'),
]
# the truth is loaded last: predictions have the size of the original image, and are compared there
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='mmrednet.LoadPanopticMap', num_things=100),
    dict(type='mmrednet.PackPanopticInputs'),
]
dataset = dict(type='ADE20KPanopticDataset', data_root='data/ade/ADEChallengeData2016/')
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        **dataset,
        ann_file='ade20k_panoptic_train.json',
        data_prefix=dict(img='images/training/', seg='ade20k_panoptic_train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='ade20k_panoptic_val.json',
        data_prefix=dict(img='images/validation/', seg='ade20k_panoptic_val/'),
        pipeline=test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader
# categories of the files that `outfile_prefix` asks for
val_evaluator = dict(ann_file='data/ade/ADEChallengeData2016/ade20k_panoptic_val.json')
test_evaluator = val_evaluator
