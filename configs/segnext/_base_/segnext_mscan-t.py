_base_ = '../../_base_/seg/models/ham.py'
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/mscan_t.pth'),
    ),
    decode_head=dict(in_channels=[64, 160, 256]),
)
