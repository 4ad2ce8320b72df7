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
        type='mmrednet.NAT',
        arch='mini',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/nat_mini.pth'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
    auxiliary_head=dict(in_channels=256, num_classes=150),
)
# as published, but that the last norm of the backbone starts from the classifier's final norm
optim_wrapper = dict(
    type='AmpOptimWrapper', paramwise_cfg=dict(custom_keys=dict(rpb=dict(decay_mult=0.0)))
)
