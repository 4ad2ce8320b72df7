_base_ = [
    '../_base_/seg/models/upernet.py',
    '../_base_/seg/datasets/ade20k.py',
    '../_base_/seg/schedules/adamw_160k.py',
    '../_base_/seg/default_runtime.py',
]
train_dataloader = dict(batch_size=2)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        type='mmrednet.VAN',
        arch='b0',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/van_tiny_754.pth.tar'),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256], num_classes=150),
    auxiliary_head=dict(in_channels=160, num_classes=150),
)
