_base_ = [
    '../_base_/seg/models/ham.py',
    '../_base_/seg/datasets/cityscapes_1024x1024.py',
    '../_base_/seg/schedules/adamw_160k_head10x.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(
        type='mmrednet.RedNet',
        depth=50,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rednet50.pth'),
    ),
    decode_head=dict(
        in_channels=[512, 1024, 2048],
        channels=512,
        ham_channels=512,
        ham_kwargs=dict(MD_R=64),
        num_classes=19,
    ),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)),
)
