_base_ = '../segnext/segnext_mscan-b_4xb2-160k_cityscapes-1024x1024.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrednet.RedNet',
        depth=50,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rednet50.pth'),
    ),
    decode_head=dict(in_channels=[512, 1024, 2048]),
)
