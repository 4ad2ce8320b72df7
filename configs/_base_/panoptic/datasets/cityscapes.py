_base_ = './loaders.py'
# width, height
crop_size = (2049, 1025)
scale = (2048, 1024)
# mean of ImageNet, BGR, which normalisation maps to zero
pad_value = (103.53, 116.28, 123.675)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.LoadPanopticMap'),
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
    dict(type='mmrednet.LoadPanopticMap'),
    dict(type='mmrednet.PackPanopticInputs'),
]
dataset = dict(type='mmrednet.CityscapesPanopticDataset', data_root='data/cityscapes/')
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        **dataset,
        data_prefix=dict(img='leftImg8bit/train', seg='gtFine/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img='leftImg8bit/val', seg='gtFine/val'),
        pipeline=test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader
