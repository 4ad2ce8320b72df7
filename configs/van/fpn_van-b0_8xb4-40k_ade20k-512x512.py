_base_ = [
    '../_base_/seg/models/semantic_fpn.py',
    '../_base_/seg/datasets/ade20k.py',
    '../_base_/seg/schedules/adamw_40k.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        type='mmrednet.VAN',
        arch='b0',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/van_tiny_754.pth.tar'),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
    decode_head=dict(num_classes=150),
)
